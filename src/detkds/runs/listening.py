"""What a run tells while it runs, and how much of the work an epoch is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol


class Listener(Protocol):
    """Is told what a run does; the command line shows it."""

    def stage(self, title: str, total: int) -> None:
        """A part of the run begins, with this many units of work."""
        ...

    def advance(self, units: float, note: str = "") -> None:
        """Work was done; fractions of a unit, and steps back where work turned out not to be needed, may come."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


class Silence:
    """A listener that nobody hears."""

    def stage(self, title: str, total: int) -> None:
        """Nothing is shown."""

    def advance(self, units: float, note: str = "") -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """Nothing is shown."""


class Meter:
    """Turns epochs of trainings that run side by side into units of one training each.

    While a group trains, every epoch is worth its share; when a training is done its whole unit has been told.

    Args:
        listener: is told.
        epochs: of each training.
        population: how many train side by side.
        shares: what share of the trainings is expected to be under way in each epoch; all where it is empty.
    """

    def __init__(self, listener: Listener, epochs: int, population: int, shares: Sequence[float] = ()) -> None:
        self.listener = listener
        self.population = population
        self._gone = [0.0, *accumulate(shares or [1.0] * epochs)]
        self._size = 0
        self._share = 0.0
        self._finished_populations = 0
        self._last = 0

    def begin(self, size: int) -> None:
        """A group of ``size`` trainings begins."""
        self._size, self._share, self._finished_populations, self._last = size, 0.0, 0, 0

    def epoch(self, done: int) -> None:
        """The present population has done this many epochs."""
        if done <= self._last:
            self._finished_populations += 1
        self._last = done
        populations = max(1, math.ceil(self._size / self.population))
        share = min(1.0, (self._finished_populations + self._gone[done] / self._gone[-1]) / populations)
        self.listener.advance(self._size * (share - self._share))
        self._share = share

    def trained(self, count: int) -> None:
        """So many trainings of the group are done, where nothing was told of their epochs."""
        share = min(1.0, self._share + count / max(1, self._size))
        self.listener.advance(self._size * (share - self._share))
        self._share = share

    def result(self, units: float, note: str) -> None:
        """A training of the group is done and counts ``units``."""
        self.listener.advance(units - self._share, note)
