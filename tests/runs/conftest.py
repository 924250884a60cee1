"""A sink of progress that remembers what it was told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from detkds.progress import Event, Progress


class Heard(Progress):
    """Progress with all its events, the stages with their totals and what was done in each, and the notes."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        super().__init__(self.events.append)

    @property
    def stages(self) -> list[tuple[str, float]]:
        """As they began."""
        return [(event.stage, event.total) for event in self.events if event.kind == "stage"]

    @property
    def done(self) -> list[float]:
        """Trainings done at the end of each stage."""
        done: list[float] = []
        for event in self.events:
            if event.kind == "stage":
                done.append(0.0)
            if done:
                done[-1] = event.done
        return done

    @property
    def notes(self) -> list[str]:
        """In order."""
        return [event.text for event in self.events if event.kind == "note"]


@pytest.fixture
def heard() -> Heard:
    """Told nothing yet."""
    return Heard()


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Labels and seeds of the tasks that are really trained, not looked up."""
    from detkds.tasks.scheduler import Scheduler

    trained: list[tuple[str, int]] = []
    real: Callable[..., object] = Scheduler._train

    def counted(self: Scheduler, missing: dict, *more: object) -> object:  # type: ignore[type-arg]
        trained.extend((task.label, task.seed) for task in missing.values())
        return real(self, missing, *more)

    monkeypatch.setattr(Scheduler, "_train", counted)
    return trained
