"""The command line: one file per command, everything heavy imported inside the commands."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from detkds import __version__
from detkds.cli import (
    compare,
    demo,
    distill,
    evaluate,
    export,
    pair,
    pieces,
    policies,
    proxy_check,
    report,
    search,
    space,
    status,
    train,
)

__all__ = ["app", "main"]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"detkds {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="detkds",
    epilog="Start with: detkds demo. Every command that takes a CONFIG also takes key=value overrides after it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def detkds(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Find how a small object detector should learn from a large one, then train it that way."""


app.command("demo")(demo.demo)
app.command("search")(search.search)
app.command("report")(report.report)
app.command("status")(status.status)
app.command("proxy-check")(proxy_check.proxy_check)
app.command("compare")(compare.compare)
app.command("distill")(distill.distill)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("pair")(pair.pair)
app.command("export")(export.export)
app.command("space")(space.space)
app.add_typer(policies.app, name="policies")
app.command("list")(pieces.list_pieces)


def main() -> None:
    """The ``detkds`` command; plugins and functions that a configuration names may lie in the working folder."""
    sys.path.append(os.getcwd())
    warnings.showwarning = _show_warning
    app()


def _show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """What a user should know, without the line of code that says it."""
    sys.stderr.write(f"{'note' if issubclass(category, RuntimeWarning) else category.__name__}: {message}\n")
