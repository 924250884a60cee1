"""``detkds space``: what a search explores, and how large it is."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkds.cli.common import AsJson, answering, print_json, stdout

if TYPE_CHECKING:
    from rich.table import Table


class Weighting(StrEnum):
    """What the weights of a space mean."""

    GRADIENT = "gradient"
    ABSOLUTE = "absolute"


def space(
    name: Annotated[
        str, typer.Option("--space", help="default, rows, extended, paper, or the path of a file.")
    ] = "default",
    weighting: Annotated[
        Weighting, typer.Option(help="Ratios to the gradient of the task's loss, or factors as in the paper.")
    ] = Weighting.GRADIENT,
    as_json: AsJson = False,
) -> None:
    """Show the genes and options of a search space and count its policies: as written, and distinct losses."""
    with answering():
        data = describe(name, weighting.value)
        if as_json:
            print_json(data)
            return
        console = stdout()
        console.print(_table(data))
        console.print(f"{data['policies']:,} single-term policies, {data['distinct']:,} distinct losses.")
        console.print(
            f"{data['combinations']:,} combinations of the weights of one term of each kind; "
            f"{data['all_distinct']:.2g} distinct policies in all."
        )


def describe(name: str, weighting: Any) -> dict[str, Any]:
    """The space as plain data, with its counts.

    Raises:
        ConfigError: listing every fault of the space file.
    """
    from detkds.policy_search.joint import JointSpace
    from detkds.policy_search.space import load_spaces
    from detkds.runs.preview import combinations

    spaces = load_spaces(name, weighting)
    kinds = {
        kind: {**space.describe(), "policies": space.size, "distinct": space.count_canonical()}
        for kind, space in spaces.items()
    }
    return {
        "space": name,
        "weighting": weighting,
        "knowledge": kinds,
        "policies": sum(kind["policies"] for kind in kinds.values()),
        "distinct": sum(kind["distinct"] for kind in kinds.values()),
        "combinations": combinations(spaces),
        "all_distinct": JointSpace(spaces).count_canonical(),
    }


def _table(data: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"space {data['space']}, {data['weighting']} weights", title_style="")
    table.add_column("knowledge", no_wrap=True)
    table.add_column("gene", no_wrap=True)
    table.add_column("options")
    for name in ("policies", "distinct"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, entry in data["knowledge"].items():
        cells = [kind, f"{entry['policies']:,}", f"{entry['distinct']:,}"]
        for gene, options in entry["genes"].items():
            shown = ", ".join(f"{option:g}" if isinstance(option, float) else str(option) for option in options)
            table.add_row(cells[0], gene, shown, *cells[1:])
            cells = ["", "", ""]
        table.add_section()
    return table
