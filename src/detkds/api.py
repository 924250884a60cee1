"""The commands from Python: each takes a configuration and gives a typed result.

A configuration is the path of a YAML file, a mapping of the same form, or a
:class:`detkds.config.RunConfig`. Keyword arguments override its keys, nested ones with two underscores:
``detkds.search("mine.yaml", name="second", train__lr=0.02)``.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detkds.config import RunConfig
from detkds.config_file import apply_overrides, parse_config
from detkds.detectors.base import Detector
from detkds.policy import Policy, load_policy
from detkds.progress import Progress
from detkds.progress_sinks import default_sink
from detkds.runs import compare as compare_command
from detkds.runs import evaluate as evaluate_command
from detkds.runs import export as export_command
from detkds.runs import search as search_command
from detkds.runs import train as train_command
from detkds.runs.pair import describe_pair
from detkds.runs.plan import load_run
from detkds.structures import Batch
from detkds.training.calibrate import calibrate as calibrated
from detkds.training.calibrate import probe_terms

Config = str | Path | Mapping[str, Any] | RunConfig


class Leaderboard(list[dict[str, Any]]):
    """Records, best first: ``name``, ``kind``, ``ap`` (mean, points), ``spread``, ``gain`` over the plain student with
    ``low`` and ``high`` of its 95% interval, and ``ap_by_seed``."""

    def to_pandas(self) -> Any:
        """The records as a pandas frame.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas  # pyright: ignore[reportMissingImports]

        return pandas.DataFrame(list(self))

    def _repr_html_(self) -> str:
        columns = ("name", "kind", "ap", "spread", "gain", "low", "high")
        head = "".join(f"<th>{column}</th>" for column in columns)
        rows = ("".join(f"<td>{_cell(record[column])}</td>" for column in columns) for record in self)
        return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison showed.

    Attributes:
        folder: of the run, with everything that it left.
        verdict: who won, by how much, and how sure that is.
        summary: every number, as plain data.
    """

    folder: Path
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def verdict(self) -> str:
        """Who won, by how much, and how sure that is."""
        return self.summary["verdict"]

    def leaderboard(self) -> Leaderboard:
        """The compared students and the teacher, best first."""
        records = [
            {
                "name": row["name"],
                "kind": row["kind"],
                "ap": row["mean"],
                "spread": row["spread"],
                "gain": (row["to_plain"] or {}).get("mean"),
                "low": (row["to_plain"] or {}).get("low"),
                "high": (row["to_plain"] or {}).get("high"),
                "ap_by_seed": dict(row["ap"]),
            }
            for row in self.summary["rows"]
        ]
        records.sort(key=lambda record: -1.0 if record["ap"] is None else record["ap"], reverse=True)
        return Leaderboard(records)

    def _repr_html_(self) -> str:
        verdict, folder = html.escape(self.verdict), html.escape(str(self.folder))
        return f"<p>{verdict}</p>{self.leaderboard()._repr_html_()}<p>{folder}</p>"


@dataclass(frozen=True)
class SearchResult(ComparisonResult):
    """What a search found, and how it compares.

    Attributes:
        policy: the one that was chosen, with absolute weights.
        student: the file of the student trained with it; None where every such training failed.
        report: the page that shows the run.
    """

    policy: Policy
    student: Path | None
    report: Path


@dataclass(frozen=True)
class TrainingResult:
    """What the training of one detector left: its weights, the log of its losses, and its metrics (fractions)."""

    weights: Path
    steps: Path
    metrics: Mapping[str, Any] = field(repr=False)

    @property
    def ap(self) -> float:
        """AP on the test images, in points (0-100)."""
        return 100 * self.metrics["ap"]


def search(config: Config, *, progress: Progress | None = None, **overrides: Any) -> SearchResult:
    """Find the best policy for a pair and data, train the student with it, and compare; as ``detkds search``.

    Args:
        progress: told what happens; by default a line in a notebook, sparse lines on stderr elsewhere.

    Raises:
        UserError: every fault in the configuration, before anything is trained.
    """
    resolved = resolve(config, overrides)
    with _shown(progress) as shown:
        finished = search_command.run_search(resolved, shown)
    folder, student = finished.folder, finished.folder / "student.safetensors"
    return SearchResult(
        folder,
        finished.summary,
        Policy.from_dict(finished.summary["policy"]),
        student if student.exists() else None,
        folder / "report.html",
    )


def compare(
    config: Config, policies: Sequence[str] = (), *, progress: Progress | None = None, **overrides: Any
) -> ComparisonResult:
    """Train the plain student and each policy at the full budget over the seeds; as ``detkds compare``.

    Args:
        policies: names of shipped policies or files; none for those of ``final.policies``.
        progress: as in :func:`search`.

    Raises:
        UserError: every fault in the configuration and the policies, before anything is trained.
    """
    resolved = resolve(config, overrides)
    with _shown(progress) as shown:
        summary = compare_command.run_compare(resolved, policies, shown)
    return ComparisonResult(resolved.folder, summary)


def distill(
    config: Config,
    policy: str | Path | None = None,
    seed: int | None = None,
    *,
    progress: Progress | None = None,
    **overrides: Any,
) -> TrainingResult:
    """Train the student with one policy at the full budget; as ``detkds distill``.

    Args:
        policy: a shipped policy's name or a file; None for the policy that the search of this run found.
        seed: of initial weights and data order; None: the first of ``final.seeds``.
        progress: as in :func:`search`.

    Raises:
        UserError: every fault in the configuration, no such policy, or a training that failed.
    """
    resolved = resolve(config, overrides)
    with _shown(progress) as shown:
        done = train_command.run_distill(resolved, policy, seed, shown)
    assert done is not None, "torchrun starts the command line"
    return TrainingResult(done.weights, done.steps, done.metrics)


def evaluate(
    config: Config,
    weights: str | Path,
    which: Literal["student", "teacher"] = "student",
    split: Literal["test", "train"] = "test",
    **overrides: Any,
) -> dict[str, Any]:
    """COCO metrics (fractions) of a detector of the configuration with the weights of a file; as ``detkds evaluate``.

    Raises:
        UserError: every fault in the data, the detector and the weights.
    """
    return evaluate_command.run_evaluate(resolve(config, overrides), Path(weights), which, split)


def export(
    config: Config,
    to: str | Path,
    form: Literal["home", "onnx"] = "home",
    weights: str | Path | None = None,
    *,
    check: bool = True,
    **overrides: Any,
) -> export_command.Exported:
    """Write the student for use without this package; as ``detkds export``.

    Raises:
        UserError: every fault in the data, the detector and the weights; what cannot be exported, and why.
    """
    file = None if weights is None else Path(weights)
    return export_command.export(resolve(config, overrides), Path(to), form, file, check=check)


def pair(teacher: Detector, student: Detector) -> dict[str, Any]:
    """What can be distilled between two detectors, what cannot and why; as ``detkds pair``.

    Returns:
        ``levels``, ``offered`` and ``refused`` kinds of knowledge, ``responses`` and ``classes_by_name``.
    """
    return describe_pair(student.info, teacher.info)


def calibrate(
    policy: Policy | str | Path, student: Detector, teacher: Detector, batches: Iterable[Batch], *, seed: int = 0
) -> Policy:
    """The policy with absolute weights for a training loop of one's own, measured on a few batches.

    A weight that is a ratio to the task's gradient becomes the factor that gives this ratio of gradient norms on the
    student's features. The student is left as it is.

    Args:
        batches: a few, with targets, on the detectors' device.
        seed: of what terms draw at random.

    Raises:
        UserError: the policy cannot be used, or a term has no loss to measure.
    """
    import copy

    from detkds.errors import PolicyError

    loaded = policy if isinstance(policy, Policy) else load_policy(policy)
    probes = probe_terms(loaded.terms, copy.deepcopy(student), teacher, list(batches), seed=seed)
    faults = [f"term '{unit}': {probe.failure}" for unit, probe in probes.items() if probe.failure]
    if faults:
        raise PolicyError(faults)
    return calibrated(loaded, probes)


def resolve(config: Config, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration with overrides, whose names join nested keys with two underscores.

    Raises:
        ConfigError: listing every fault.
    """
    written = [f"{key.replace('__', '.')}={_written(value)}" for key, value in overrides.items()]
    if isinstance(config, str | Path):
        return load_run(config, written)
    data = config.model_dump(mode="json") if isinstance(config, RunConfig) else config
    return parse_config(apply_overrides(data, written))


def _written(value: Any) -> str:
    """A value as YAML on one line, which JSON is."""
    return json.dumps(value, default=str)


def _shown(progress: Progress | None) -> Progress:
    return Progress(default_sink()) if progress is None else progress


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return "" if value is None else html.escape(str(value))
