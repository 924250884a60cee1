"""Showing a run: a bar on a terminal, sparse lines or JSON elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from detkds import progress
from detkds.progress import Event, Sink, count_text, duration_text, result_text
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
            TextColumn("[bold]{task.description}"),
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
            description=escape(event.stage) or "starting",
            total=event.total or None,
            completed=event.done,
            counts=f"{count_text(event.done)}/{count_text(event.total)}" if event.stage else "",
            remaining=event.remaining,
            updated=self._bar.get_time(),
        )
        if event.kind != "training":
            self._bar.refresh()
        if event.kind == "note":
            self._bar.console.print(f"[cyan]•[/cyan] {escape(event.text)}")
        elif event.kind == "finished":
            self._bar.console.print(f"  [dim]{escape(result_text(event))}[/dim]")


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


class Reporter:
    """A listener of runs (:class:`detkds.runs.pipeline.Listener`) that writes to a console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.title, self.total, self.done, self._ended = "", 0, 0.0, False
        self._began = self._spoke = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.3g}/{task.total:g}"),
                TextColumn("gone"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, title: str, total: int) -> None:
        """A part of the run begins, with this many units of work."""
        self.title, self.total, self.done, self._ended = title, total, 0.0, False
        self._began = self._spoke = time.monotonic()
        if self._bar is None:
            self._line(f"{title}: 0/{total}")
            return
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(title, total=total)

    def advance(self, units: float, note: str = "") -> None:
        """Work was done; what ``note`` says is shown, where there is room only now and then."""
        self.done = min(self.done + units, float(self.total))
        if self._bar is not None:
            if note:
                self.console.print(f"  [dim]{escape(short(note))}[/dim]")
            for task in self._bar.task_ids:
                self._bar.update(task, completed=self.done)
            return
        now = time.monotonic()
        ends = self.done > self.total - 1e-6 and bool(note) and not self._ended
        if now - self._spoke >= SECONDS_BETWEEN_LINES or ends:
            self._spoke, self._ended = now, ends
            self._line(f"{self.title}: {self.done:.3g}/{self.total}{self._times(now)}  {short(note)}".rstrip())

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.console.print(f"[cyan]•[/cyan] {escape(text)}" if self._bar is not None else escape(text))

    def _times(self, now: float) -> str:
        gone = now - self._began
        if self.done > self.total - 1e-6:
            return f", {duration_text(gone)} in all"
        left = gone / max(self.done, 1e-9) * (self.total - self.done)
        return f", {duration_text(gone)} gone, about {duration_text(left)} left"

    def _line(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)


def short(note: str) -> str:
    """A note in one line; a policy of several terms is cut after its first.

    >>> short("AP 3.1  global: - | l2 x 1\\nlogits: - | l2 x 1")
    'AP 3.1  global: - | l2 x 1 (1 more term)'
    """
    first, *more = note.splitlines() or [""]
    return first if not more else f"{first} ({len(more)} more term{'s' if len(more) > 1 else ''})"
