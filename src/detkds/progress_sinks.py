"""Where the events of a run go: lines for a log or a pipe, a line of a notebook, a file in the run folder."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, cast, get_args

from detkds.errors import UserError
from detkds.files import write_whole
from detkds.progress import Event, Kind, Sink, news_text, state_text

PROGRESS_FILE = "progress.json"
"""Where a run folder keeps its last event."""

SECONDS_BETWEEN_SAVES = 1.0
SECONDS_BETWEEN_LINES = 15.0


def at_most_every(seconds: float, sink: Sink, *, always: Callable[[Event], bool]) -> Sink:
    """A sink that is called with an event only so often, but with those for which ``always`` is true."""
    last = -math.inf

    def throttled(event: Event) -> None:
        nonlocal last
        if always(event) or event.elapsed - last >= seconds:
            last = last if event.kind == "note" else event.elapsed
            sink(event)

    return throttled


def json_lines(stream: IO[str]) -> Sink:
    """A sink that writes every event as a line of JSON; reports of training once a second."""

    def write(event: Event) -> None:
        stream.write(json.dumps(asdict(event), allow_nan=False) + "\n")
        stream.flush()

    return at_most_every(SECONDS_BETWEEN_SAVES, write, always=lambda event: event.kind != "training")


def text_lines(stream: IO[str]) -> Sink:
    """A sink for logs: a line for each stage, each note and the end of a stage, and one every 15 seconds between."""

    def write(event: Event) -> None:
        if event.kind != "close":
            stream.write((event.text if event.kind == "note" else f"{state_text(event)}{news_text(event)}") + "\n")
            stream.flush()

    def always(event: Event) -> bool:
        return event.kind in ("stage", "note") or (event.kind == "finished" and event.done >= event.total)

    return at_most_every(SECONDS_BETWEEN_LINES, write, always=always)


def notebook_line(display: Callable[..., Any] | None = None) -> Sink:
    """A sink that shows one line below a notebook's cell and updates it; no widgets.

    Args:
        display: what shows it, IPython's by default: called with the line and ``display_id=True``, it returns a handle
            with ``update``.
    """
    handle: Any = None

    def show(event: Event) -> None:
        nonlocal handle
        line = {"text/plain": state_text(event) + news_text(event)}
        if handle is not None:
            handle.update(line, raw=True)
            return
        shower = display
        if shower is None:
            from IPython.display import display as shower  # pyright: ignore[reportMissingImports]
        handle = shower(line, raw=True, display_id=True)

    return show


def default_sink(stream: IO[str] | None = None) -> Sink:
    """What shows a run that is started from Python: a line in a notebook, sparse lines (on stderr) elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return notebook_line() if hasattr(shell, "kernel") else text_lines(stream or sys.stderr)


class ProgressFile:
    """A sink that keeps the last event and the last note in a file, which is replaced whole.

    It is written at most once a second, and always when a stage begins or the run ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._note = ""
        self._save = at_most_every(SECONDS_BETWEEN_SAVES, self._write, always=lambda e: e.kind in ("stage", "close"))

    def __call__(self, event: Event) -> None:
        """Keep what an event says."""
        if event.kind == "note":
            self._note = event.text
        self._save(event)

    def _write(self, event: Event) -> None:
        text = json.dumps({**asdict(event), "last_note": self._note}, allow_nan=False)
        write_whole(self.path, lambda file: file.write(text.encode()), sync=False)


def read_progress(path: Path) -> tuple[Event, str]:
    """The last event of a run and its last note, from the file that :class:`ProgressFile` keeps.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; expected what a run keeps there once it has begun") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: {_FOREIGN}, got no JSON") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: {_FOREIGN}, got a JSON {type(data).__name__}")
    faults = [
        f"{path}: {name}: {_FOREIGN}, got {data.get(name, 'nothing')!r}"
        for name, kind in _FIELD_TYPES.items()
        if not isinstance(data.get(name), kind) or isinstance(data.get(name), bool)
    ]
    if not faults and data["kind"] not in get_args(Kind):
        faults = [f"{path}: kind: expected one of {', '.join(get_args(Kind))}, got {data['kind']!r}"]
    if faults:
        raise UserError(faults)
    event = Event(**{item.name: data[item.name] for item in fields(Event)})
    return event, cast(str, data["last_note"])


_FOREIGN = "expected the last event of a run"
_NUMBER, _NONE = (int, float), type(None)
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("kind", "stage", "label", "best_label", "text", "last_note"), (str,)),
    **dict.fromkeys(("done", "total", "elapsed", "time"), _NUMBER),
    **dict.fromkeys(("ap", "best", "remaining"), (*_NUMBER, _NONE)),
}
