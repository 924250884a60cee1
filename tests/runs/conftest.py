"""A listener that remembers what it was told."""

from __future__ import annotations

import pytest


class Heard:
    """Stages with their totals, the units done in each, and all notes."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done: list[float] = []
        self.notes: list[str] = []

    def stage(self, title: str, total: int) -> None:
        self.stages.append((title, total))
        self.done.append(0.0)

    def advance(self, units: float, note: str = "") -> None:
        self.done[-1] += units
        if note:
            self.notes.append(note)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def heard() -> Heard:
    """Told nothing yet."""
    return Heard()
