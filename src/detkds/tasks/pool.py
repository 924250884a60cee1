"""Hands tasks out to workers, each with a device of its own; replaces workers that die and tries their tasks again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from detkds.errors import UserError
from detkds.policy_search.result import SearchError, State
from detkds.tasks.shares import portions
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import OnFraction, Outcome, Trainer

MAX_STARTS = 3
"""Failed starts in a row after which the place of a worker is given up."""

MAX_LOSSES = 2
"""Lost workers after which a job is split into single tasks, and a single task has failed."""

PATIENCE = 60.0
"""Seconds without any worker after which the user is told what is waited for."""


@dataclass(frozen=True)
class Seat:
    """A worker's place: its number, from 0, among how many; its device, and CPU threads of torch."""

    number: int
    of: int
    device: str
    threads: int = 1


BuildTrainer = Callable[[Seat], Trainer]
"""Makes a worker's trainer; pickled, and called in the worker's process."""


@dataclass(frozen=True)
class Ready:
    """A worker has started."""


@dataclass(frozen=True)
class Fraction:
    """Which fraction of a task's training is done."""

    key: str
    done: float


@dataclass(frozen=True)
class Done:
    """A worker has finished its job: every outcome has been sent."""


@dataclass(frozen=True)
class Raised:
    """A worker's trainer raised what no task is to blame for; ``starting``: it could not be built."""

    error: BaseException
    starting: bool = False


@dataclass(frozen=True)
class Lost:
    """A worker has died, or its device no longer answers."""

    reason: str


Message = Ready | Fraction | Outcome | Done | Raised | Lost


class Workers(Protocol):
    """Processes with a trainer each, started, told and heard one by one."""

    @property
    def seats(self) -> Sequence[Seat]:
        """Where workers sit."""
        ...

    @property
    def needs(self) -> str:
        """What one worker needs, in words."""
        ...

    def start(self, number: int) -> None:
        """Start the worker of a seat, in place of one that is there."""
        ...

    def send(self, number: int, tasks: Mapping[str, Task]) -> None:
        """Give a worker that is ready its job."""
        ...

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        """What workers have said, by seat; empty where nothing came in time."""
        ...

    def stop(self, number: int) -> None:
        """End a worker."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


@dataclass(eq=False)
class _Job:
    """Tasks for one worker by key, and the seats where that cost a worker."""

    tasks: dict[str, Task]
    lost_at: set[int] = field(default_factory=set)
    losses: int = 0


@dataclass(eq=False)
class _Place:
    """A seat, whether its worker is ready, and its present job."""

    ready: bool = False
    job: _Job | None = None
    failed_starts: int = 0


class PoolExecutor:
    """Hands tasks out to workers that each keep teacher and data on their own device.

    The results are those of one process, whatever the number of workers. A worker that dies is replaced. Its tasks are
    tried again, where possible by another worker; a job that has cost two workers is tried task by task, and a single
    task that has cost two workers is ``FAILED``.

    Args:
        workers: started with the first job.
        population: tasks that are handed to one worker at most.
        note: told what the user should know.
    """

    def __init__(
        self, workers: Workers, *, population: int = 8, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self.workers = workers
        self.population = population
        self._note = note
        self._places: dict[int, _Place] = {}
        self._messages: deque[tuple[int, Message]] = deque()
        self._started = False

    def run(self, tasks: Mapping[str, Task], on_fraction: OnFraction = lambda key, done: None) -> Iterator[Outcome]:
        """As :meth:`detkds.tasks.executor.Executor.run`.

        Raises:
            SearchError: no worker can be started.
        """
        if tasks and not self._started:
            self._started = True
            for seat in self.workers.seats:
                self._places[seat.number] = _Place()
                self.workers.start(seat.number)
        jobs, left = self._jobs(tasks), set(tasks)
        while left:
            self._hand_out(jobs)
            self._messages.extend(self._receive())
            while self._messages:
                number, message = self._messages.popleft()
                place = self._places.get(number)
                if place is None:
                    continue
                if isinstance(message, Fraction):
                    on_fraction(message.key, message.done)
                    continue
                for outcome in self._handle(number, place, message, jobs):
                    if outcome.key in left:
                        left.discard(outcome.key)
                        yield outcome

    def close(self) -> None:
        """End all workers."""
        self.workers.close()
        self._places = {}

    def __enter__(self) -> PoolExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _jobs(self, tasks: Mapping[str, Task]) -> deque[_Job]:
        """Tasks of one setup and seed in portions that keep all workers busy; the largest first."""
        alike: dict[tuple[str, int], list[str]] = {}
        for key, task in tasks.items():
            alike.setdefault((task.setup, task.seed), []).append(key)
        count = len(self.workers.seats)
        left = len(alike) % count  # those that all workers together have no whole round of are shared among them
        found = []
        for place, keys in enumerate(sorted(alike.values(), key=len, reverse=True)):
            share = count // left if place >= len(alike) - left else 1
            groups = [group.name if (group := tasks[key].group) is not None else "" for key in keys]
            whole = any(tasks[key].group is not None for key in keys)
            parts = portions(groups, self.population, share, whole)
            found += [_Job({keys[index]: tasks[keys[index]] for index in part}) for part in parts]
        return deque(sorted(found, key=lambda job: -len(job.tasks)))

    def _hand_out(self, jobs: deque[_Job]) -> None:
        for number, place in self._places.items():
            if place.ready and place.job is None and (job := self._next_job(jobs, number)) is not None:
                place.job = job
                self.workers.send(number, job.tasks)

    def _next_job(self, jobs: deque[_Job], number: int) -> _Job | None:
        """The first job that has not cost this seat a worker, or that no other worker could take over."""
        for job in jobs:
            elsewhere = any(place.ready and other not in job.lost_at for other, place in self._places.items())
            if number not in job.lost_at or not elsewhere:
                jobs.remove(job)
                return job
        return None

    def _receive(self) -> list[tuple[int, Message]]:
        if not self._places:
            raise SearchError("executor: expected workers, got none: it was closed, or all were given up")
        messages = self.workers.receive(PATIENCE)
        if not messages and not any(place.ready for place in self._places.values()):
            self._note(f"waiting for a worker: each needs {self.workers.needs}")
        return messages

    def _handle(self, number: int, place: _Place, message: Message, jobs: deque[_Job]) -> list[Outcome]:
        if isinstance(message, Ready):
            place.ready, place.failed_starts = True, 0
        elif isinstance(message, Outcome):
            if place.job is not None:
                place.job.tasks.pop(message.key, None)
            return [message]
        elif isinstance(message, Done):
            place.job = None
        elif isinstance(message, Raised):
            if not message.starting:
                place.job = None
                raise message.error
            error = message.error
            self._replace(number, place, error if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        elif isinstance(message, Lost):
            job, place.job = place.job, None
            self._replace(number, place, message.reason)
            return [] if job is None else self._try_again(job, number, message.reason, jobs)
        return []

    def _replace(self, number: int, place: _Place, reason: str | UserError) -> None:
        """Start a new worker in a seat that lost its own, or give the seat up.

        Raises:
            SearchError: this was the last seat.
        """
        starting, place.ready = not place.ready, False
        if starting:
            place.failed_starts = MAX_STARTS if isinstance(reason, UserError) else place.failed_starts + 1
            if place.failed_starts >= MAX_STARTS:
                self.workers.stop(number)
                del self._places[number]
                if not self._places:
                    faults = reason.faults if isinstance(reason, UserError) else [reason]
                    raise SearchError(f"executor: no worker could be started: {fault}" for fault in faults)
                self._note(f"a worker could not be started, {len(self._places)} are left: {reason}")
                return
        self.workers.start(number)

    def _try_again(self, job: _Job, number: int, reason: str, jobs: deque[_Job]) -> list[Outcome]:
        """Queue the tasks of a lost worker again; the result of one that is now known to be the cause."""
        count = len(job.tasks)
        if not count:
            return []
        job.lost_at.add(number)
        job.losses += 1
        self._note(f"a worker was lost with {count} training{'s' * (count > 1)}: {reason}")
        if job.losses < MAX_LOSSES:
            jobs.append(job)
        elif count > 1:
            jobs.extend(_Job({key: task}) for key, task in job.tasks.items())
        else:
            [key] = job.tasks
            text = f"its worker died {MAX_LOSSES} times: {reason}"
            return [Outcome(key, TaskResult(State.FAILED, reason=text), transient=True)]
        return []


def serve(trainer: Trainer, tasks: Mapping[str, Task], say: Callable[[Any], None], device: torch.device) -> None:
    """What a worker does with a job: train it and say what becomes of it.

    Raises:
        torch.AcceleratorError: the device is broken, which failed trainings alone would not tell.
    """
    for outcome in trainer.run(tasks, lambda key, done: say(Fraction(key, done))):
        if outcome.result.state is State.FAILED and device.type == "cuda":
            torch.cuda.synchronize(device)
        say(outcome)
    say(Done())
