"""``--dry-run``: the resolved plan and what it will cost, without leaving a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detkds.cli.common import print_json, stdout
from detkds.cli.pair import levels_table
from detkds.progress import duration_text

if TYPE_CHECKING:
    from detkds.config import RunConfig
    from detkds.runs.plan import Plan


def print_plan(config: RunConfig, cost: Callable[[Plan], dict[str, float]], as_json: bool) -> None:
    """Resolve a configuration, time a few steps and print the plan.

    Raises:
        UserError: every fault in it.
    """
    from detkds.runs.plan import make_plan
    from detkds.runs.preview import preview
    from detkds.runs.spending import within_budget

    with tempfile.TemporaryDirectory(prefix="detkds-") as scratch:
        plan = within_budget(make_plan(config.model_copy(update={"runs": Path(scratch)})))
        data = {**preview(plan), "folder": str(config.folder), "minutes": cost(plan)}
    if as_json:
        print_json(data)
    else:
        _show(stdout(), data)


def _show(console: Console, data: Mapping[str, Any]) -> None:
    pair, search, compared = data["pair"], data["search"], data["comparison"]
    teacher, student = pair["teacher"], pair["student"]
    facts = _grid()
    facts.add_row("run", f"{data['name']} in {data['folder']}, on {data['device']}, {data['data']['size']} pixels")
    facts.add_row("training images", data["data"]["train"])
    facts.add_row("test images", f"{data['data']['test']} (reported on, never searched on)")
    facts.add_row("proxy", f"{data['data']['proxy']}, cut from the training images")
    facts.add_row("validation", f"{data['data']['validation']}, cut from the training images")
    facts.add_row("teacher", f"{_detector(teacher)}, {teacher['weights']}")
    inherited = student["inherited_tensors"]
    facts.add_row("student", f"{_detector(student)}, {inherited} tensors inherited from the teacher's neck and head")
    facts.add_row("policies", ", ".join(compared["policies"]))
    seeds = "5 seeds or more for what matters" if compared["seeds"] is None else f"seeds {_listed(compared['seeds'])}"
    facts.add_row("comparison", f"{compared['trainings']} trainings at the full budget, {seeds}")
    trainings = search["trainings"]
    spent = f"{trainings['single']} single, {trainings['combination']} of {search['combinations']:,} combinations"
    if trainings["policies"]:
        spent = f"{len(search['portfolio'])} of the portfolio first: {', '.join(search['portfolio'])}"
    elif trainings["joint"]:
        spent = f"in one joint space of {search['joint_policies']:.2g} policies"
    unfiltered = "" if search["filter"] else ", no candidate refused beforehand"
    facts.add_row(
        "search",
        f"{trainings['total']} candidate trainings ({spent}), "
        + ("" if trainings["policies"] else f"sampler {search['sampler']}, ")
        + f"{search['weighting']} weights{unfiltered}",
    )
    if halving := search["halving"]:
        rungs = ", ".join(map(str, halving["rungs"]))
        brackets = f", {halving['brackets']} brackets" if halving["brackets"] > 1 else ""
        facts.add_row("halving", f"AP after epochs {rungs} of the proxy; 1 of {halving['eta']} goes on{brackets}")
    if search["evaluator"] == "ray":
        workers = search["workers"] or "one worker per device"
        facts.add_row("Ray workers", f"{workers}; the time below is that of a search in one process")
    race = " -> ".join(map(str, search["race"])) or "none"
    facts.add_row("race", f"{race} of the best candidates at the full budget, one seed a round")
    facts.add_row("cost", f"search and race cost {search['cost']:.1f} full trainings")
    console.print(facts)
    console.print(levels_table(pair["levels"]))
    console.print(_knowledge(data["knowledge"]))
    stages = data["minutes"]
    parts = ", ".join(f"{name} {duration_text(60 * value)}" for name, value in stages.items() if name != "total")
    total = (f"about {duration_text(60 * stages['total'])}", "bold")
    console.print(Text.assemble(total, f" from scratch on this machine: {parts}"))


def _knowledge(knowledge: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="knowledge", title_style="", title_justify="left")
    table.add_column("kind")
    table.add_column("policies", justify="right")
    table.add_column("distinct", justify="right")
    table.add_column("")
    for kind, counts in knowledge["offered"].items():
        table.add_row(kind, f"{counts['policies']:,}", f"{counts['distinct']:,}", "searched")
    for kind, reason in knowledge["refused"].items():
        table.add_row(kind, "-", "-", f"left out: {reason}")
    return table


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _detector(entry: Mapping[str, Any]) -> str:
    body = f" on {entry['backbone']}" if entry["backbone"] else ""
    return f"{entry['detector']}{body}, {entry['parameters'] / 1e6:.2f} M parameters"


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    return grid
