"""What a run is doing: one object that every stage reports to.

A run makes one :class:`Progress` and hands it down to everything that trains; :mod:`detkds.progress_sinks` shows and
keeps what it is told. Standard library only.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

Kind = Literal["stage", "training", "finished", "note", "close"]

SECONDS_BETWEEN_EVENTS = 0.1


@dataclass(frozen=True)
class Event:
    """One thing that happened, with the state of the run at that moment; plain data.

    Attributes:
        kind: a stage began, a training went on, a training finished, a note, or the end of the run.
        stage: the stage under way; empty before the first.
        done, total: trainings of the stage, fractions of those under way included.
        label: what is being trained, or what has finished.
        ap: of what has finished, in points (0-100); None where it has none.
        best, best_label: the best AP of the stage so far, and whose it is.
        elapsed: seconds since the run began in this process.
        remaining: estimated seconds to the end of the run, or of the stage where nothing is known of the others;
            None where nothing can be said yet.
        text: of a note or a finished training; at the end the reason for an early one.
        time: of the event, in seconds since 1970.
    """

    kind: Kind
    stage: str = ""
    done: float = 0.0
    total: float = 0.0
    label: str = ""
    ap: float | None = None
    best: float | None = None
    best_label: str = ""
    elapsed: float = 0.0
    remaining: float | None = None
    text: str = ""
    time: float = 0.0


Sink = Callable[[Event], None]


@dataclass
class _Stage:
    """Where the present stage stands; ``skipped`` counts trainings that took this process no time."""

    name: str = ""
    total: float = 0.0
    began: float = 0.0
    active: dict[str, tuple[float, float]] = field(default_factory=dict)  # key: fraction at its start, fraction now
    finished: set[str] = field(default_factory=set)
    skipped: float = 0.0
    best: float | None = None
    best_label: str = ""

    @property
    def done(self) -> float:
        return len(self.finished) + sum(now for _, now in self.active.values())

    @property
    def worked(self) -> float:
        """Trainings' worth of work that this process has seen."""
        return max(0.0, self.done - self.skipped - sum(start for start, _ in self.active.values()))


class Progress:
    """Is told what a run does and hands it to its sinks; without a sink it is silent.

    Safe to use from several threads. A sink that raises OSError (a closed pipe, a full disk) is dropped with a note to
    the others: showing progress never ends a run.

    Args:
        sinks: called with each :class:`Event`; reports of training at most ten times a second.
        clock: seconds; where it goes backwards, time stands still.
    """

    def __init__(self, *sinks: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._sinks = list(sinks)
        self._clock = clock
        self._lock = threading.RLock()
        self._began = self._latest = clock()
        self._stage = _Stage(began=self._began)
        self._begun: set[str] = set()
        self._expected: dict[str, float] = {}
        self._spent = self._foreseen = 0.0  # seconds taken by, and expected for, the work of the stages that are over
        self._last_training = -math.inf
        self._closed = False

    def add_sink(self, sink: Sink) -> None:
        """Tell this sink too from now on, beginning with the present stage."""
        with self._lock:
            self._sinks.append(sink)
            if self._stage.name:
                self._tell(sink, self._event("stage"))

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take up estimated seconds by stage, in the order of the stages, for the remaining time of the whole run."""
        with self._lock:
            self._expected = {name: value for name, value in seconds.items() if math.isfinite(value)}

    def stage(self, name: str, trainings: float) -> None:
        """A stage with this many trainings begins; for the present stage only the number changes."""
        with self._lock:
            if name != self._stage.name:
                if self._stage.name in self._expected:
                    spent, foreseen = self._spent_and_foreseen()
                    self._spent, self._foreseen = self._spent + spent, self._foreseen + foreseen
                self._stage = _Stage(name, began=self._now())
                self._begun.add(name)
            self._stage.total = trainings
            self._emit(self._event("stage"))

    def training(self, key: str, fraction: float, label: str = "") -> None:
        """The training ``key`` of this stage has done this fraction (0 to 1); smaller ones than before are ignored.

        Report where a training starts (0, or what a checkpoint has) before its first step: that part costs no time,
        which the estimate of the remaining time must know.
        """
        with self._lock:
            if key in self._stage.finished or not fraction >= 0:
                return
            fraction = min(fraction, 1.0)
            start, before = self._stage.active.get(key, (fraction if fraction < 1 else 0.0, 0.0))
            self._stage.active[key] = (start, max(before, fraction))
            now = self._now()
            if now - self._last_training >= SECONDS_BETWEEN_EVENTS:
                self._last_training = now
                self._emit(self._event("training", label=label or key))

    def finished(self, key: str, label: str, ap: float | None = None, text: str = "", *, stored: bool = False) -> None:
        """The training ``key`` is over and counts 1, however little it trained; a second time counts nothing.

        Args:
            ap: in points (0-100); None, or not a number, where it has none.
            text: what else to show: its policy, the reason for a failure.
            stored: it was finished before this process began; it counts, but says nothing of the pace.
        """
        with self._lock:
            stage = self._stage
            start, _ = stage.active.pop(key, (0.0, 0.0))
            if key not in stage.finished:
                stage.finished.add(key)
                stage.skipped += 1.0 if stored else start
            if ap is not None and not math.isfinite(ap):
                ap = None
            if ap is not None and (stage.best is None or ap > stage.best):
                stage.best, stage.best_label = ap, label
            self._emit(self._event("finished", label=label, ap=ap, text=text))

    def note(self, text: str) -> None:
        """Something worth a line."""
        with self._lock:
            self._emit(self._event("note", text=text))

    def close(self, reason: str = "") -> None:
        """The run is over: finished, or ended early for a reason. Only the first call counts."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._emit(self._event("close", text=reason))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("" if kind is None else f"{kind.__name__}: {value}".rstrip(": "))

    def _now(self) -> float:
        self._latest = max(self._latest, self._clock())
        return self._latest

    def _event(self, kind: Kind, label: str = "", ap: float | None = None, text: str = "") -> Event:
        stage = self._stage
        done = stage.done
        return Event(
            kind=kind,
            stage=stage.name,
            done=done,
            total=max(stage.total, done),
            label=label,
            ap=ap,
            best=stage.best,
            best_label=stage.best_label,
            elapsed=self._now() - self._began,
            remaining=self._remaining(),
            text=text,
            time=time.time(),
        )

    def _emit(self, event: Event) -> None:
        for sink in tuple(self._sinks):
            self._tell(sink, event)

    def _tell(self, sink: Sink, event: Event) -> None:
        try:
            sink(event)
        except OSError as error:
            self._sinks.remove(sink)
            self.note(f"progress is no longer shown in one place: {error}")

    def _spent_and_foreseen(self) -> tuple[float, float]:
        """Seconds the present stage has taken, and those expected for the work that was done in them."""
        stage = self._stage
        share = min(1.0, stage.worked / stage.total) if stage.total else 1.0
        return self._latest - stage.began, self._expected.get(stage.name, 0.0) * share

    def _remaining(self) -> float | None:
        """By the pace of this stage and the expected seconds of those to come, corrected by how right they were.

        Expected seconds count like a twentieth of the work already seen, so that the first moments decide nothing.
        """
        stage, known = self._stage, self._expected
        spent, foreseen = self._spent_and_foreseen()
        worked = stage.worked
        if stage.name in known and stage.total:
            prior = 0.05 * stage.total
            pace = (spent + prior * known[stage.name] / stage.total) / (worked + prior)
        elif worked:
            pace = spent / worked
        elif stage.done < stage.total:
            return None
        else:
            pace = 0.0
        begun = [index for index, name in enumerate(known) if name in self._begun]
        later = sum(list(known.values())[max(begun, default=-1) + 1 :])
        if stage.name in known:
            prior = 0.05 * sum(known.values())
            later *= (self._spent + spent + prior) / max(self._foreseen + foreseen + prior, 1e-9)
        return pace * max(0.0, stage.total - stage.done) + later


def state_text(event: Event) -> str:
    """Where a run stands, in one line.

    >>> state_text(Event("training", "search", 12.25, 60, best=37.62, best_label="gid", elapsed=150, remaining=700))
    'search: 12.2/60, 2.5 min elapsed, about 12 min remaining, best AP 37.6 (gid)'
    """
    parts = [f"{event.stage}: {count_text(event.done)}/{count_text(event.total)}" if event.stage else "starting"]
    if event.elapsed >= 1:
        parts.append(f"{duration_text(event.elapsed)} elapsed")
    if event.remaining is not None and event.kind != "close":
        parts.append(f"about {duration_text(event.remaining)} remaining")
    if event.best is not None:
        parts.append(f"best AP {event.best:.1f} ({event.best_label})")
    return ", ".join(parts)


def result_text(event: Event) -> str:
    """What a finished training came to, in one line; a policy of several terms is cut after its first.

    >>> result_text(Event("finished", label="joint/3", ap=3.14, text="global: - | l2 x 1\\nlogits: - | l2 x 1"))
    'joint/3  AP 3.1  global: - | l2 x 1 (1 more term)'
    """
    first, *more = event.text.splitlines() or [""]
    rest = f" ({len(more)} more term{'s' if len(more) > 1 else ''})" if more else ""
    ap = f"AP {event.ap:.1f}" if event.ap is not None else ""
    return "  ".join(part for part in (event.label, ap, first + rest) if part)


def news_text(event: Event) -> str:
    """What an event adds to the state of the run."""
    if event.kind == "training":
        return f", training {event.label}"
    if event.kind == "finished":
        return f"; {result_text(event)}"
    return f"; {event.text}" if event.text else ""


def count_text(value: float) -> str:
    """A number of trainings, with a decimal where it is no whole one.

    >>> count_text(3.0), count_text(12.25)
    ('3', '12.2')
    """
    return f"{value:.1f}".removesuffix(".0")


def duration_text(seconds: float) -> str:
    """A duration for people.

    >>> duration_text(42), duration_text(150), duration_text(800), duration_text(9000)
    ('42 s', '2.5 min', '13 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    value, unit = (seconds / 60, "min") if seconds < 5400 else (seconds / 3600, "h")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
