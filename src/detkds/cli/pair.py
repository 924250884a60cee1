"""``detkds pair``: what can be distilled between two detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkds.cli.common import AsJson, answering, print_json, stdout

if TYPE_CHECKING:
    from rich.table import Table

Expression = Annotated[str, typer.Argument(help="Such as 'retinanet(backbone=resnet50)'.", show_default=False)]


def pair(
    teacher: Expression,
    student: Expression,
    classes: Annotated[int, typer.Option(min=1, help="How many classes both know.")] = 80,
    check: Annotated[bool, typer.Option("--check", help="Take one distillation step on random images too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what can be distilled between two detectors, what cannot and why, and the adapters that are needed."""
    from detkds.runs.pair import describe_pair, detectors_of
    from detkds.runs.pair_check import check_pair_step

    with answering():
        teaching, learning = detectors_of(teacher, student, [f"class {number}" for number in range(classes)])
        data = describe_pair(learning.info, teaching.info)
        if check:
            step = check_pair_step(learning, teaching)
            data["check"] = {"losses": step.losses, "faults": step.faults}
        if as_json:
            print_json({"teacher": teacher, "student": student, **data})
            return
        console = stdout()
        for side, expression in (("teacher", teacher), ("student", student)):
            console.print(f"{side}: {expression}; responses: {data['responses'][side]}")
        console.print(levels_table(data["levels"]))
        console.print(_knowledge(data))
        if check:
            faults = data["check"]["faults"]
            console.print("one step: " + ("; ".join(faults) if faults else "all is well"))


def levels_table(levels: list[dict[str, Any]]) -> Table:
    """The student's levels, the teacher's that they imitate, and what joins them."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="levels", title_style="", title_justify="left")
    for column in ("student", "stride", "channels", "teacher", "stride", "channels", "between them"):
        table.add_column(column, justify="right" if column in ("stride", "channels") else "left")
    for level in levels:
        ours = (level["level"], f"{level['stride']:g}", str(level["channels"]))
        if level["teacher_level"] is None:
            table.add_row(*ours, "-", "-", "-", "nothing of this stride")
            continue
        joined = [text for key, text in (("resized", "resized"), ("adapter", "1x1 adapter")) if level[key]]
        theirs = (level["teacher_level"], f"{level['teacher_stride']:g}", str(level["teacher_channels"]))
        table.add_row(*ours, *theirs, ", ".join(joined) or "equal")
    return table


def _knowledge(data: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="knowledge", title_style="", title_justify="left")
    table.add_column("kind")
    table.add_column("")
    for kind in data["offered"]:
        by_name = kind == "logits" and data["classes_by_name"]
        table.add_row(kind, "can be distilled" + (", classes matched by name" if by_name else ""))
    for kind, reason in data["refused"].items():
        table.add_row(kind, f"cannot: {reason}")
    return table
