"""Showing a run: a bar on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 15.0


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
            return f", {minutes(gone)} in all"
        return f", {minutes(gone)} gone, about {minutes(gone / max(self.done, 1e-9) * (self.total - self.done))} left"

    def _line(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)


def short(note: str) -> str:
    """A note in one line; a policy of several terms is cut after its first.

    >>> short("AP 3.1  global: - | l2 x 1\\nlogits: - | l2 x 1")
    'AP 3.1  global: - | l2 x 1 (1 more term)'
    """
    first, *more = note.splitlines() or [""]
    return first if not more else f"{first} ({len(more)} more term{'s' if len(more) > 1 else ''})"


def minutes(seconds: float) -> str:
    """A duration for people.

    >>> minutes(42), minutes(150), minutes(9000)
    ('42 s', '2.5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
