"""Who turns tasks into results: this process, or workers with a device each; the results are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from detkds.tasks.task import Task
from detkds.tasks.trainer import OnFraction, Outcome, Trainer


class Executor(Protocol):
    """Turns tasks into results."""

    def run(self, tasks: Mapping[str, Task], on_fraction: OnFraction) -> Iterator[Outcome]:
        """Train tasks, given by their keys; what became of each, as it is known.

        A task that fails gives a ``FAILED`` result. What is raised ends the run, which resumes there.
        """
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class InlineExecutor(AbstractContextManager["InlineExecutor"]):
    """Trains in this process."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def run(self, tasks: Mapping[str, Task], on_fraction: OnFraction) -> Iterator[Outcome]:
        """As :meth:`Executor.run`."""
        return self.trainer.run(tasks, on_fraction)

    def close(self) -> None:
        """Nothing was started."""

    def __exit__(self, *error: object) -> None:
        self.close()
