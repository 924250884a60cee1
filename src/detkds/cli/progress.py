"""Showing a run: a bar on a terminal, sparse lines or JSON elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from detkds import progress
from detkds.progress import Event, Sink, count_text, result_text
from detkds.progress_sinks import json_lines, text_lines

SECONDS_BETWEEN_LINES = 15.0


class ProgressStyle(StrEnum):
    """How a command shows its progress on stderr; ``auto`` is a bar on a terminal and text elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"
    NONE = "none"


ProgressOption = Annotated[
    ProgressStyle,
    typer.Option("--progress", help="On stderr: a bar on a terminal and text elsewhere, text, JSON lines, or nothing."),
]


@contextmanager
def showing(console: Console, style: ProgressStyle = ProgressStyle.AUTO) -> Iterator[progress.Progress]:
    """The progress of a command, shown on this console until the command ends; a quiet console shows nothing."""
    sinks: list[Sink] = []
    if not console.quiet and style is not ProgressStyle.NONE:
        if style is ProgressStyle.JSON:
            sinks.append(json_lines(console.file))
        elif style is ProgressStyle.AUTO and console.is_terminal:
            sinks.append(TerminalBar(console))
        else:
            sinks.append(text_lines(console.file))
    with progress.Progress(*sinks) as shown:
        yield shown


class TerminalBar:
    """A sink that draws a bar, with what is being trained and the best so far below it, and a line for each result."""

    def __init__(self, console: Console) -> None:
        self._bar = _Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counts]}"),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            _Remaining(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, counts="", remaining=None, updated=0.0)
        self._bar.start()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.kind == "close":
            self._bar.stop()
            return
        best = f"best AP {event.best:.1f} ({event.best_label})" if event.best is not None else ""
        training = f"training {event.label}" if event.kind == "training" else ""
        self._bar.details = "   ".join(part for part in (training, best) if part)
        self._bar.update(
            self._task,
            description=event.stage or "starting",
            total=event.total or None,
            completed=event.done,
            counts=f"{count_text(event.done)}/{count_text(event.total)}" if event.stage else "",
            remaining=event.remaining,
            updated=self._bar.get_time(),
        )
        if event.kind != "training":
            self._bar.refresh()
        if event.kind == "note":
            self._bar.console.print(Text.assemble(("•", "cyan"), f" {event.text}"))
        elif event.kind == "finished":
            self._bar.console.print(f"  {result_text(event)}", style="dim")


class _Bar(Progress):
    """A bar with a line of details below it."""

    details = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar and the details."""
        yield from super().get_renderables()
        if self.details:
            yield Text(f"  {self.details}", style="dim", no_wrap=True, overflow="ellipsis")


class _Remaining(ProgressColumn):
    """The estimated time to the end, counting down between events."""

    def render(self, task: Task) -> Text:
        remaining = task.fields["remaining"]
        if remaining is None:
            return Text("-:--:--", style="progress.remaining")
        seconds = max(0, round(remaining - (task.get_time() - task.fields["updated"])))
        return Text(f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}", style="progress.remaining")
