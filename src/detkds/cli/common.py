"""What the commands share: arguments, consoles, and what is said when something goes wrong."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from detkds.errors import UserError

Config = Annotated[Path, typer.Argument(help="A run configuration (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Set a key of it: train.lr=0.02 name=second", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and its cost, and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines; progress stays on stderr.")]
Fork = Annotated[
    str | None,
    typer.Option("--fork", help="Work in a new run of this name, and take over what is still valid of the old one."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of initial weights and data order; the config's by default.")]

_FULL_OR_FORBIDDEN = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "the file may not grow any further",
    errno.EROFS: "choose another folder with runs=",
    errno.EACCES: "choose another folder with runs=",
    errno.EPERM: "choose another folder with runs=",
    errno.EIO: "check the disk",
    errno.EISDIR: "a folder is in its place; remove that",
}
_NARROWEST = 120


def stdout() -> Console:
    """Where results go; wide enough for the tables where it is no terminal."""
    return _console(stderr=False)


def stderr(*, quiet: bool = False) -> Console:
    """Where progress goes."""
    return _console(stderr=True, quiet=quiet)


def print_json(data: Any) -> None:
    """JSON on stdout, and nothing else there."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


@contextmanager
def answering(*, resumable: bool = False, quiet: bool = False) -> Iterator[None]:
    """Turn what can go wrong into lines on stderr and an exit code.

    A user's mistake, or a disk that cannot be written: 2. Ctrl-C: 130. Anything else is a fault of ours and keeps its
    traceback.

    Args:
        resumable: whether running the same command again goes on where it stopped.
        quiet: say nothing (processes of a distributed training other than the first).
    """
    again = "; run the same command again to go on from the last finished epoch" if resumable else ""
    try:
        yield
    except UserError as error:
        if not quiet:
            faults = error.faults
            title = "error" if len(faults) == 1 else f"{len(faults)} errors"
            _say(f"{title}:", *(f"  {line}" for line in faults))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        if not quiet:
            _say(f"interrupted{again}")
        raise typer.Exit(130) from None
    except (OSError, RuntimeError) as error:
        fault = _disk_fault(error)
        if fault is None:
            raise
        where = f"{fault.filename}: " if fault.filename else ""
        advice = _FULL_OR_FORBIDDEN[fault.errno or 0]
        if not quiet:
            _say("error:", f"  {where}cannot be written: {fault.strerror}; {advice}{again}")
        raise typer.Exit(2) from None


def _disk_fault(error: BaseException | None) -> OSError | None:
    """The error of a full or forbidden disk that an error is or stems from; torch wraps them in its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL_OR_FORBIDDEN:
            return error
        error = error.__cause__ or error.__context__
    return None


def _say(*lines: str) -> None:
    sys.stderr.write("\n".join(lines) + "\n")


def _console(stderr: bool, quiet: bool = False) -> Console:
    console = Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)  # names are text
    if not console.is_terminal:
        console.width = max(console.width, _NARROWEST)
    return console
