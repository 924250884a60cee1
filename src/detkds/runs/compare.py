"""``detkds compare``: policies side by side at the full budget, without a search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detkds.config import RunConfig
from detkds.files import write_text
from detkds.progress import Progress
from detkds.report.plots import comparison_plot, standalone
from detkds.runs.comparison import compare, contenders, teacherless
from detkds.runs.executors import prepare_workers
from detkds.runs.plan import COMPARISON, make_plan
from detkds.runs.session import Session, open_session
from detkds.runs.step_cost import step_costs
from detkds.runs.summary import compared, finite
from detkds.tasks.store import WEIGHTS

RECORD, PICTURE = "comparison.json", "comparison.svg"
"""What a comparison leaves in the run folder."""


def run_compare(config: RunConfig, policies: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Train the plain student and each policy once per seed of ``final.seeds``, and say what the numbers show.

    All of a seed share initial weights, batches and augmentation. Finished trainings, those of a search of this run
    too, are not repeated. What a step costs under each policy is measured apart; see :mod:`detkds.runs.step_cost`.

    Args:
        policies: names of shipped policies or files; none for those of ``final.policies``.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        UserError: every fault in the configuration and the policies, before anything is trained.
    """
    prepare_workers(config)
    plan = make_plan(with_policies(config, policies))
    with open_session(plan, progress) as session:
        teacher = session.prepare_teacher(beside=teacherless(plan))
        with session.scheduler() as scheduler, session.clocked("comparison"):
            rows = compare(plan, scheduler, contenders(plan, [])).rows
        with session.clocked("step cost"):
            costs = _costs(session)
        comparison = compared(plan, teacher, rows, session.seconds())
        for row in comparison["rows"]:
            row["cost"] = costs.get(row["name"])
        write_text(session.folder / RECORD, json.dumps(finite(comparison), indent=1, allow_nan=False))
        write_text(session.folder / PICTURE, standalone(comparison_plot(comparison["rows"])))
    return comparison


def with_policies(config: RunConfig, policies: Sequence[str]) -> RunConfig:
    """The configuration with these hand-designed policies; with its own where none are named."""
    final = config.final.model_copy(update={"policies": tuple(policies) or config.final.policies})
    return config.model_copy(update={"final": final})


def _costs(session: Session) -> dict[str, dict[str, Any]]:
    """What a step costs, by contender's name."""
    plan = session.plan
    entries = contenders(plan, [])
    session.progress.stage("cost of a step", 1)
    policies = [entry.policy for entry in entries]
    costs = step_costs(
        plan.setups[COMPARISON], policies, plan.config.final.first_seeds[0], session.folder / "step_cost.jsonl"
    )
    return {entry.name: asdict(cost) for entry, cost in zip(entries, costs, strict=True)}


def files(folder: Path) -> dict[Path, str]:
    """What a comparison left, and what each file is."""
    return {
        folder / RECORD: "every number above",
        folder / PICTURE: "the picture",
        folder / WEIGHTS: "the weights of every student",
    }
