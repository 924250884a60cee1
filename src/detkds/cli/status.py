"""``detkds status``: where a run stands, seen from another terminal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detkds.cli.common import AsJson, answering, print_json, stdout

if TYPE_CHECKING:
    from detkds.progress import Event

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name below runs/.", show_default=False)]


def status(run: Run, as_json: AsJson = False) -> None:
    """Show the stage of a run, what is done, the best so far and the time that remains; also while it is running."""
    with answering():
        folder = find_run(run)
        state = read_status(folder)
        if as_json:
            print_json(state)
            return
        console = stdout()
        for line in status_lines(state):
            console.print(line, soft_wrap=True)


def find_run(run: str) -> Path:
    """The folder of a run that is given as a path or by its name below ``runs/``.

    Raises:
        ConfigError: there is none.
    """
    from detkds.errors import ConfigError

    candidates = [Path(run), Path("runs") / run]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ConfigError(f"{run}: expected a run folder; there is none at {' or '.join(map(str, candidates))}")


def read_status(folder: Path) -> dict[str, Any]:
    """What a run folder says of its run, as plain data.

    The keys are those of :class:`detkds.progress.Event` and ``folder``, ``state``, ``last_note`` and ``age`` (seconds
    since the event). ``state`` is ``running``, ``finished`` or ``stopped``, or ``unknown`` where this user may not look
    at the lock.

    Raises:
        UserError: the folder has no progress, or holds something else in its place.
    """
    import time

    from detkds.progress_sinks import PROGRESS_FILE, read_progress

    running = is_locked(folder)
    event, last_note = read_progress(folder / PROGRESS_FILE)
    return {
        "folder": str(folder),
        "state": _state(event, running),
        **asdict(event),
        "last_note": last_note,
        "age": max(0.0, time.time() - event.time),
    }


def is_locked(folder: Path) -> bool | None:
    """Whether a process is at work in a run folder; None where this user may not look."""
    from filelock import FileLock, Timeout

    path = folder / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return None


def _state(event: Event, running: bool | None) -> str:
    if running is None:
        return "unknown"
    if running:
        return "running"
    return "finished" if event.kind == "close" and not event.text else "stopped"


def status_lines(state: dict[str, Any]) -> list[str]:
    """The status as text."""
    from detkds.progress import count_text, duration_text

    name = state["state"]
    lines = [f"{state['folder']}: {name}, last event {duration_text(state['age'])} ago"]
    if name == "stopped":
        reason = state["text"] if state["kind"] == "close" else "its process ended without closing it (killed?)"
        lines.append(f"  reason     {reason}; run the same command again to continue")
    if state["stage"]:
        lines.append(f"  stage      {state['stage']}, {count_text(state['done'])} of {count_text(state['total'])}")
    if state["best"] is not None:
        lines.append(f"  best       AP {state['best']:.1f}  {state['best_label']}")
    lines.append(f"  elapsed    {duration_text(state['elapsed'])}")
    if name == "running" and state["remaining"] is not None:
        lines.append(f"  remaining  about {duration_text(max(0.0, state['remaining'] - state['age']))}")
    if name == "running" and state["kind"] == "training":
        lines.append(f"  training   {state['label']}")
    if state["last_note"]:
        lines.append(f"  last note  {state['last_note']}")
    return lines
