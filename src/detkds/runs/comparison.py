"""Train policies at the full budget over several seeds and say what the numbers show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detkds.detectors.weights import save_weights
from detkds.policy import Policy
from detkds.runs.folder import append_line, read_lines
from detkds.runs.plan import Plan
from detkds.runs.verdict import INHERITED, PLAIN, SEARCHED, Row, with_differences
from detkds.runs.weights import absolute_policies
from detkds.statistics import mean_and_spread
from detkds.training.loop import OnEpoch
from detkds.training.population import Candidate, Setting, Trained, train_in_populations


@dataclass(frozen=True)
class Contender:
    """One line of a comparison before it is trained; ``kind`` is ``plain``, ``hand`` or ``searched``."""

    name: str
    kind: str
    policy: Policy
    inherit: bool = True


def contenders(plan: Plan, searched: Sequence[Policy]) -> list[Contender]:
    """The plain student, with its own and any inherited neck and head, then the hand-designed and the searched."""
    plain = [Contender(PLAIN, "plain", Policy(), inherit=False)]
    if plan.inherited:
        plain.append(Contender(INHERITED, "plain", Policy()))
    hand = [Contender(name, "hand", policy) for name, policy in plan.policies.items()]
    found = [
        Contender(SEARCHED if i == 0 else f"{SEARCHED} #{i + 1}", "searched", policy)
        for i, policy in enumerate(searched)
    ]
    return plain + hand + found


def compare(
    plan: Plan,
    folder: Path,
    entries: Sequence[Contender],
    *,
    on_seed: Callable[[int, int], None] | None = None,
    on_result: Callable[[str, int, float | None], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[Row]:
    """Train every contender once per seed on all training images and measure it on the test images.

    All contenders of a seed share initial weights, batches and augmentation. Finished trainings are kept in
    ``final.jsonl`` and not repeated; unfinished ones go on at their last epoch. Students lie in ``students/``.

    Args:
        on_seed: called with a seed and the number of trainings that it still needs.
        on_result: called with a contender's name, the seed, and its AP, a fraction, or None where it failed.
        on_epoch: called with the epochs that the trainings under way have done.
    """
    setting = plan.setting(plan.train_data, plan.test_data, plan.config.train)
    policies = absolute_policies(plan, setting, [entry.policy for entry in entries])
    entries = [replace(entry, policy=policy) for entry, policy in zip(entries, policies, strict=True)]
    ledger = Ledger(folder / "final.jsonl", states=folder / "states", students=folder / "students")
    seeds = plan.config.final.seeds
    size = plan.config.proxy.population
    records = ledger.train(setting, entries, seeds, size, on_seed=on_seed, on_result=on_result, on_epoch=on_epoch)
    return rows(entries, records, seeds)


@dataclass(frozen=True)
class Ledger:
    """Finished trainings as JSON lines, so that none is repeated.

    Attributes:
        path: the file.
        states: a folder for unfinished trainings, which go on at their last epoch.
        students: where students are saved; None keeps their numbers only.
    """

    path: Path
    states: Path
    students: Path | None = None

    def train(
        self,
        setting: Setting,
        entries: Sequence[Contender],
        seeds: Sequence[int],
        population: int,
        *,
        on_seed: Callable[[int, int], None] | None = None,
        on_result: Callable[[str, int, float | None], None] | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> list[dict[str, Any]]:
        """Train every contender, weights absolute, once per seed; the records of all. Callbacks as in ``compare``."""
        keys = {entry.name: entry.policy.key for entry in entries}
        for seed in seeds:
            done = {record["name"] for record in self.records(keys) if record["seed"] == seed}
            missing = [Candidate(e.name, e.policy, e.inherit) for e in entries if e.name not in done]
            if on_seed is not None:
                on_seed(seed, len(missing))
            for trained in train_in_populations(
                setting, missing, seed=seed, population=population, checkpoints=self.states, on_epoch=on_epoch
            ):
                for one in trained:
                    self._keep(one, seed, keys[one.candidate.name])
                    if on_result is not None:
                        on_result(one.candidate.name, seed, one.metrics.ap if one.metrics else None)
        return self.records(keys)

    def records(self, keys: Mapping[str, str]) -> list[dict[str, Any]]:
        """The stored results that were made with these policies, by contender's name."""
        return [record for record in read_lines(self.path) if keys.get(record["name"]) == record["key"]]

    def _keep(self, trained: Trained, seed: int, key: str) -> None:
        if trained.failure is None and self.students is not None:
            self.students.mkdir(exist_ok=True)
            save_weights(trained.student, self.students / f"{slug(trained.candidate.name)}-seed{seed}.safetensors")
        record = {
            "name": trained.candidate.name,
            "seed": seed,
            "key": key,
            "metrics": trained.metrics.to_dict() if trained.metrics else None,
            "failure": trained.failure,
            "seconds": round(trained.seconds, 2),
        }
        append_line(self.path, record)


def with_box_ap(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of masks with AP of the boxes beside them as ``box_ap``; those of boxes as they are."""
    boxes = metrics.get("boxes")
    return {**metrics, "box_ap": boxes["ap"]} if boxes else dict(metrics)


def rows(entries: Sequence[Contender], records: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[Row]:
    """One row per contender from its stored results; differences are to the better plain student."""
    by_name: dict[str, dict[int, dict[str, Any]]] = {entry.name: {} for entry in entries}
    for record in records:
        if record["seed"] in seeds:
            by_name[record["name"]][record["seed"]] = record
    aps = {
        name: {seed: 100 * record["metrics"]["ap"] for seed, record in found.items() if record["metrics"]}
        for name, found in by_name.items()
    }
    result = []
    for entry in entries:
        found = by_name[entry.name]
        mean, spread = mean_and_spread(list(aps[entry.name].values()))
        measured = [with_box_ap(record["metrics"]) for record in found.values() if record["metrics"]]
        metrics = {
            key: mean_and_spread([100 * m[key] for m in measured if m.get(key) is not None])[0]
            for key in ("ap50", "ap75", "ap_small", "ap_medium", "ap_large", "box_ap")
            if any(m.get(key) is not None for m in measured)
        }
        result.append(
            Row(
                name=entry.name,
                kind=entry.kind,
                policy=str(entry.policy),
                ap=aps[entry.name],
                mean=mean,
                spread=spread,
                metrics=metrics,
                failures={seed: record["failure"] for seed, record in found.items() if record["failure"]},
                seconds=mean_and_spread([record["seconds"] for record in found.values()])[0] if found else 0.0,
            )
        )
    return with_differences(result)


def slug(name: str) -> str:
    """A name that can stand in a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name).strip("-")
