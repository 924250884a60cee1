"""From tasks to results: what is stored is looked up, what is not is trained once, and kept as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from detkds.errors import ConfigError
from detkds.policy_search.result import State
from detkds.progress import Progress
from detkds.tasks.executor import Executor
from detkds.tasks.store import Store
from detkds.tasks.task import Task, TaskResult


class Scheduler:
    """Runs tasks on an executor, through a store.

    Args:
        store: where results are kept.
        executor: who trains what is not stored.
        digest_for: from a task to the digest of the content of its setup.
        progress: told of every training.
    """

    def __init__(self, store: Store, executor: Executor, digest_for: Callable[[Task], str], progress: Progress) -> None:
        self.store = store
        self.executor = executor
        self.progress = progress
        self._digest_for = digest_for

    def key(self, task: Task) -> str:
        """What a task's result is stored under."""
        return task.key(self._digest_for(task))

    def run(self, tasks: Sequence[Task]) -> list[TaskResult]:
        """The result of every task, in order; tasks that are the same training are trained once."""
        keys = [self.key(task) for task in tasks]
        missing: dict[str, Task] = {}
        for key, task in zip(keys, tasks, strict=True):
            if self.store.get(key) is None:
                known = missing.get(key, task)
                missing[key] = replace(known, keep_weights=known.keep_weights or task.keep_weights)
        incomplete = {task.group.name for task in missing.values() if task.group is not None}
        for key, task in zip(keys, tasks, strict=True):
            if task.group is not None and task.group.name in incomplete:
                missing[key] = task  # those that are compared with one another are trained together
            elif key not in missing:
                self._tell(key, task, self.store.get(key), stored=True)
        results = self._train(missing)
        return [results.get(key) or self._stored(key) for key in keys]

    def weights(self, task: Task) -> Path:
        """The weights of a task's student, trained again where they are not kept any more.

        Raises:
            ConfigError: its training failed.
        """
        key = self.key(task)
        path = self.store.weights(key)
        if path is None:
            result = self._train({key: replace(task, keep_weights=True)})[key]
            path = self.store.weights(key)
            if path is None:
                raise ConfigError(f"{task.label}: its training failed: {result.reason}")
        else:
            self._tell(key, task, self._stored(key), stored=True)
        return path

    def _train(self, missing: dict[str, Task]) -> dict[str, TaskResult]:
        results: dict[str, TaskResult] = {}

        def on_fraction(key: str, done: float) -> None:
            self.progress.training(key, done, missing[key].label)

        for outcome in self.executor.run(missing, on_fraction):
            task = missing[outcome.key]
            result = outcome.result
            if not outcome.transient:
                result = self.store.put(outcome.key, task, result, outcome.weights)
            results[outcome.key] = result
            self._tell(outcome.key, task, result)
        return results

    def _stored(self, key: str) -> TaskResult:
        result = self.store.get(key)
        assert result is not None
        return result

    def _tell(self, key: str, task: Task, result: TaskResult | None, *, stored: bool = False) -> None:
        assert result is not None
        text = str(task.policy) if result.state is State.COMPLETE else f"{result.state}: {result.reason}"
        if result.trained:
            self.progress.finished(key, task.label, result.ap, text, stored=stored)
        else:
            self.progress.note(f"{task.label}  {text}")
