"""``detkds list``: every registered piece, with one line on each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from detkds.cli.common import AsJson, answering, print_json, stdout


class Family(StrEnum):
    """The families of pieces that can be named in a configuration or a policy."""

    KNOWLEDGE = "knowledge"
    TRANSFORMS = "transforms"
    DISTANCES = "distances"
    ADAPTERS = "adapters"
    SCHEDULES = "schedules"
    DETECTORS = "detectors"
    SAMPLERS = "samplers"


def list_pieces(
    family: Annotated[Family | None, typer.Argument(help="Only this family.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the pieces that policies and configurations can name."""
    with answering():
        from detkds import registry

        found = {
            member.value: {name: kind.summary(name) for name in kind}
            for member in ([family] if family else list(Family))
            for kind in [getattr(registry, member.name)]
        }
        if as_json:
            print_json(found)
            return
        from rich import box
        from rich.table import Table

        for title, pieces in found.items():
            table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
            table.add_column("name", no_wrap=True)
            table.add_column("what it is")
            for name, summary in pieces.items():
                table.add_row(name, summary)
            stdout().print(table)
