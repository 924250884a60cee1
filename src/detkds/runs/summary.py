"""The result of a run as plain data: what ``summary.json`` holds and every table is made from."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import detkds
from detkds.files import write_text
from detkds.policy import Policy
from detkds.policy_search.result import State, Trial
from detkds.runs.comparison import with_box_ap
from detkds.runs.confirmation import Confirmed
from detkds.runs.datasets import describe_data
from detkds.runs.plan import Plan
from detkds.runs.verdict import TEACHER, Row, verdict

TRAININGS = "trainings.json"
"""The metrics of every training of the comparison."""


def summarize(
    plan: Plan,
    teacher: Mapping[str, Any],
    rows: Sequence[Row],
    records: Sequence[Trial],
    confirmed: Sequence[Confirmed],
    seconds: Mapping[str, float],
    opponent: str | None = None,
) -> dict[str, Any]:
    """Collect everything a reader needs to judge the run; AP in points (0-100).

    Args:
        opponent: the hand-designed policy that the validation images chose.
    """
    counts = {state: sum(r.state is not None and r.state.value == state for r in records) for state in _STATES}
    return {
        **compared(plan, teacher, rows, seconds, opponent, confirmed[0].mean if confirmed[0].ap else None),
        "opponent": opponent,
        "policy": confirmed[0].policy.to_dict(),
        "confirmation": [candidate.to_dict() for candidate in confirmed],
        "search": {
            "weighting": plan.config.search.weighting,
            "sampler": plan.config.search.sampler,
            "seed": plan.config.search.seed,
            "method": plan.config.search.method,
            "filter": plan.config.search.filter,
            "trainings": sum(record.counts for record in records),
            "epochs": _proxy_epochs(plan, records),
            "looked_up": sum(bool(record.duplicate_of) for record in records),
            "states": counts,
            "refused_knowledge": dict(plan.refused),
        },
    }


def compared(
    plan: Plan,
    teacher: Mapping[str, Any],
    rows: Sequence[Row],
    seconds: Mapping[str, float],
    opponent: str | None = None,
    validation: float | None = None,
) -> dict[str, Any]:
    """What a comparison at the full budget shows, and on what data, pair and machine; AP in points (0-100).

    Args:
        opponent, validation: as in :func:`detkds.runs.verdict.verdict`.
    """
    measured = [_teacher_row(teacher, plan)] if teacher else []
    return {
        "name": plan.config.name,
        "version": detkds.__version__,
        "metric": plan.metric,
        "verdict": verdict((*measured, *rows), plan.metric, opponent, validation),
        "rows": [row.to_dict() for row in (*measured, *rows)],
        "seeds": sorted({seed for row in rows for seed in row.ap}),
        "data": {
            "train": describe_data(plan.train_data),
            "test": describe_data(plan.test_data),
            "proxy": describe_data(plan.proxy_data),
            "validation": describe_data(plan.validation_data),
        },
        "inherited_tensors": len(plan.inherited),
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "machine": {
            "processor": platform.machine(),
            "device": str(plan.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def _teacher_row(metrics: Mapping[str, Any], plan: Plan) -> Row:
    known = comparable(metrics, masks=plan.masks)
    ap = known.get("ap")
    return Row(
        name=TEACHER,
        kind="teacher",
        policy="",
        ap={} if ap is None else {plan.config.seed: 100 * ap},
        mean=math.nan if ap is None else 100 * ap,
        spread=0.0,
        metrics={k: 100 * v for k, v in known.items() if k.startswith(("ap", "box_ap")) and _number(v)},
    )


def comparable(teacher: Mapping[str, Any], *, masks: bool) -> dict[str, Any]:
    """Of the teacher's metrics what can stand beside the students': of masks or of boxes alone, as theirs are."""
    of_masks = teacher.get("kind") == "mask"
    if masks and not of_masks:
        return {"box_ap": teacher["ap"]}
    return with_box_ap(teacher) if masks or not of_masks else dict(teacher["boxes"])


def write_summary(
    folder: Path, summary: Mapping[str, Any], records: Sequence[Trial], policy: Policy, trainings: Sequence[Any] = ()
) -> None:
    """Write ``summary.json``, ``trials.jsonl``, ``trainings.json`` (of the comparison) and ``policy.yaml``."""
    write_text(folder / "summary.json", json.dumps(finite(summary), indent=1, allow_nan=False))
    write_text(folder / "trials.jsonl", "".join(json.dumps(finite(r.to_dict())) + "\n" for r in records))
    write_text(folder / TRAININGS, json.dumps({"trainings": finite(trainings)}, allow_nan=False))
    write_text(folder / "policy.yaml", policy.to_yaml())


def _proxy_epochs(plan: Plan, records: Sequence[Trial]) -> dict[str, float]:
    """Epochs that candidates were trained for, and that were saved because they stopped early."""
    stopped = [record for record in records if record.state is State.PRUNED and record.counts]
    saved = sum(plan.proxy_config.epochs - record.epochs for record in stopped)
    return {"trained": round(sum(record.epochs for record in records), 2), "saved": round(saved, 2)}


_STATES = ("complete", "filtered", "pruned", "failed")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def finite(data: Any) -> Any:
    """The same data with null in place of numbers JSON does not have."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
