"""``detkds compare``: policies side by side at the full budget, without a search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detkds.config import RunConfig
from detkds.report.plots import comparison_plot, standalone
from detkds.runs.comparison import contenders
from detkds.runs.folder import open_folder, write_text
from detkds.runs.listening import Listener
from detkds.runs.pipeline import clocked, compare_at_full_budget, ready_teacher, total_seconds
from detkds.runs.plan import Plan, make_plan
from detkds.runs.step_cost import step_costs
from detkds.runs.summary import compared, finite

RECORD, PICTURE = "comparison.json", "comparison.svg"
"""What a comparison leaves in the run folder."""


def compare_policies(config: RunConfig, policies: Sequence[str], listener: Listener) -> dict[str, Any]:
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
    if policies:
        config = config.model_copy(update={"final": config.final.model_copy(update={"policies": tuple(policies)})})
    plan = make_plan(config)
    with open_folder(config) as folder:
        teacher = ready_teacher(plan, folder, listener)
        with clocked(folder, "comparison"):
            rows = compare_at_full_budget(plan, folder, [], listener)
        with clocked(folder, "step cost"):
            costs = _costs(plan, folder, listener)
        found = compared(plan, teacher, rows, total_seconds(folder))
        for row in found["rows"]:
            row["cost"] = costs.get(row["name"])
        write_text(folder / RECORD, json.dumps(finite(found), indent=1, allow_nan=False))
        write_text(folder / PICTURE, standalone(comparison_plot(found["rows"])))
    return found


def _costs(plan: Plan, folder: Path, listener: Listener) -> dict[str, dict[str, Any]]:
    """What a step costs, by contender's name."""
    entries = contenders(plan, [])
    listener.stage("cost of a step", 1)
    setting = plan.setting(plan.train_data, plan.test_data, plan.config.train)
    policies = [entry.policy for entry in entries]
    costs = step_costs(setting, policies, plan.config.final.seeds[0], folder / "step_cost.jsonl")
    listener.advance(1)
    return {entry.name: asdict(cost) for entry, cost in zip(entries, costs, strict=True)}


def files(folder: Path) -> dict[Path, str]:
    """What a comparison left, and what each file is."""
    return {
        folder / RECORD: "every number above",
        folder / PICTURE: "the picture",
        folder / "students": "the weights of every student",
    }
