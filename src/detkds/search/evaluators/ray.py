"""Measures candidates in several processes, one per device, on this machine or on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from detkds.errors import UserError
from detkds.policy import Policy
from detkds.search.evaluators.shares import portions, share
from detkds.search.result import Evaluator, HalvingGroup, Result, SearchError, State

MAX_STARTS = 3
"""Failed starts in a row after which the place of a worker is given up."""

MAX_KILLS = 2
"""Lost workers after which a population is split into single candidates, and a single candidate has failed."""

_PATIENCE = 60.0
"""Seconds without any worker after which the user is told what is waited for."""


@dataclass(frozen=True)
class Seat:
    """A worker's place: its number, from 0, among how many, and its device."""

    number: int
    of: int
    device: str


class DeviceLostError(RuntimeError):
    """An accelerator that no longer answers: whatever its process gave last cannot be trusted."""


class Worker:
    """What a Ray actor is: a process that keeps an evaluator, and with it teacher and data, on a device of its own."""

    def start(self, build: Callable[[Seat], Evaluator], seat: Seat, threads: int) -> None:
        """Build the evaluator, torch using so many threads on the CPU."""
        torch.set_num_threads(threads)
        self._device = torch.device(seat.device)
        self._evaluator = build(seat)

    def evaluate(self, policies: Sequence[Policy], groups: Sequence[HalvingGroup]) -> list[Result]:
        """One result per policy, in order.

        Raises:
            DeviceLostError: the device is broken, which failed candidates alone would not tell.
        """
        try:
            return self._evaluator.evaluate(policies, groups)
        finally:
            self._check_device()

    def _check_device(self) -> None:
        if self._device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            raise DeviceLostError(str(error).partition("\n")[0]) from None


@dataclass(eq=False)
class _Job:
    """Candidates to be measured by one worker, and the places where that cost a worker."""

    candidates: list[int]
    lost_at: list[_Place] = field(default_factory=list)


@dataclass(eq=False)
class _Place:
    """A worker's actor, the call it is busy with, and the job this call is for; none where it starts."""

    seat: Seat
    actor: Any
    call: Any
    job: _Job | None = None
    ready: bool = False
    failed_starts: int = 0


class RayEvaluator:
    """Hands candidates out to workers that each keep teacher and data on their own device.

    The results are those of the evaluator that the workers build, whatever the number of workers. A worker that dies is
    replaced. Its candidates are tried again, where possible by another worker; what has cost two workers is tried one
    by one, and a single candidate that has cost two workers is ``FAILED``. Workers end with this process.

    Ray is started on this machine and stopped again, unless it runs in this process already or ``RAY_ADDRESS`` says
    where a cluster is. Close it, or use it in a ``with`` statement.

    Args:
        build: makes the evaluator of a worker; pickled, and called in the worker's process.
        population: candidates that are handed to one worker at most.
        device, workers, threads: as in :func:`share`.
        whole_groups: whether candidates of one group must be measured in one place, because they stop each other.
        on_trained: called with the number of candidates that a worker has measured.
        on_note: called with what the user should know.

    Raises:
        SearchError: there is no such cluster, or its machines have too little.
    """

    def __init__(
        self,
        build: Callable[[Seat], Evaluator],
        *,
        population: int = 8,
        device: str | None = None,
        workers: int | None = None,
        threads: int | None = None,
        whole_groups: bool = False,
        on_trained: Callable[[int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        import ray

        self.population = population
        self.whole_groups = whole_groups
        self._on_trained = on_trained or (lambda count: None)
        self._on_note = on_note or (lambda text: None)
        self._owns_ray = not ray.is_initialized()
        self._places: list[_Place] = []
        if self._owns_ray:
            start_ray()
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.share = share(nodes, device, workers, threads)
            self._build = ray.put(build)
            self._actor: Any = ray.remote(Worker).options(
                num_cpus=self.share.cpus, num_gpus=self.share.gpus, max_restarts=0, scheduling_strategy="SPREAD"
            )
            seats = [Seat(number, self.share.workers, self.share.device) for number in range(self.share.workers)]
            self._places = [_Place(seat, *self._start(seat)) for seat in seats]
        except BaseException:
            self.close()
            raise

    def evaluate(self, policies: Sequence[Policy], groups: Sequence[HalvingGroup] = ()) -> list[Result]:
        """One result per policy, in order.

        Raises:
            SearchError: no worker can be started.
        """
        names = [group.name for group in groups] or [""] * len(policies)
        jobs = deque(
            _Job(part) for part in portions(names, self.population, max(1, len(self._places)), self.whole_groups)
        )
        results: dict[int, Result] = {}
        while len(results) < len(policies):
            for place in self._places:
                if place.ready and place.call is None and (job := self._next_job(jobs, place)) is not None:
                    place.job = job
                    own_groups = [groups[i] for i in job.candidates] if groups else ()
                    place.call = place.actor.evaluate.remote([policies[i] for i in job.candidates], own_groups)
            results |= self._collect(self._first_done(), jobs)
        return [results[index] for index in range(len(policies))]

    def close(self) -> None:
        """End all workers, and Ray where it was started here."""
        import ray

        if not ray.is_initialized():
            return
        for place in self._places:
            ray.kill(place.actor)
        self._places = []
        if self._owns_ray:
            ray.shutdown()

    def __enter__(self) -> RayEvaluator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, seat: Seat) -> tuple[Any, Any]:
        actor = self._actor.remote()
        return actor, actor.start.remote(self._build, seat, self.share.threads)

    def _next_job(self, jobs: deque[_Job], place: _Place) -> _Job | None:
        """The first job that has not cost this place a worker, or that no other worker could take over."""
        for job in jobs:
            elsewhere = any(other.ready and other not in job.lost_at for other in self._places)
            if place not in job.lost_at or not elsewhere:
                jobs.remove(job)
                return job
        return None

    def _first_done(self) -> _Place:
        import ray

        if not self._places:
            raise SearchError("search.evaluator: expected Ray workers, got none: it was closed, or all were given up")
        calls = {place.call: place for place in self._places if place.call is not None}
        done, _ = ray.wait(list(calls), num_returns=1, timeout=_PATIENCE)
        if not done:
            if not any(place.ready for place in self._places):
                self._on_note(f"waiting for a Ray worker: each needs {self._needs} on one machine")
            done, _ = ray.wait(list(calls), num_returns=1)
        return calls[done[0]]

    @property
    def _needs(self) -> str:
        return f"{self.share.gpus:g} GPU" if self.share.gpus else f"{self.share.cpus} free CPUs"

    def _collect(self, place: _Place, jobs: deque[_Job]) -> dict[int, Result]:
        """What a finished call brought: results by position, where it is not a start or a lost worker."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        call, job = place.call, place.job
        place.call = place.job = None
        try:
            found = ray.get(call)
        except RayTaskError as error:
            if job is not None and not isinstance(error.cause, DeviceLostError):
                raise error.cause from error
            cause = error.cause
            reason: str | UserError = cause if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
        except RayError as error:
            reason = _cause(error)
        else:
            place.ready, place.failed_starts = True, 0
            if job is None:
                return {}
            self._on_trained(len(job.candidates))
            return dict(zip(job.candidates, found, strict=True))
        self._replace(place, reason, starting=job is None)
        return {} if job is None else self._try_again(job, place, str(reason), jobs)

    def _replace(self, place: _Place, reason: str | UserError, *, starting: bool) -> None:
        """Start a new worker in a place that lost its own, or give the place up.

        Raises:
            SearchError: this was the last place.
        """
        import ray

        ray.kill(place.actor)
        place.ready = False
        if starting:
            place.failed_starts = MAX_STARTS if isinstance(reason, UserError) else place.failed_starts + 1
            if place.failed_starts >= MAX_STARTS:
                self._places.remove(place)
                if not self._places:
                    faults = reason.faults if isinstance(reason, UserError) else [reason]
                    raise SearchError(f"search.evaluator: no Ray worker could be started: {fault}" for fault in faults)
                self._on_note(f"a Ray worker could not be started, {len(self._places)} are left: {reason}")
                return
        place.actor, place.call = self._start(place.seat)

    def _try_again(self, job: _Job, place: _Place, reason: str, jobs: deque[_Job]) -> dict[int, Result]:
        """Queue the candidates of a lost worker again; the result of one that is now known to be the cause."""
        job.lost_at.append(place)
        count = len(job.candidates)
        self._on_note(f"a Ray worker was lost with {count} candidate{'s' * (count > 1)}: {reason}")
        if len(job.lost_at) < MAX_KILLS:
            jobs.append(job)
        elif count > 1:
            jobs.extend(_Job([candidate]) for candidate in job.candidates)
        else:
            self._on_trained(1)
            return {job.candidates[0]: Result(State.FAILED, reason=f"its worker died {MAX_KILLS} times: {reason}")}
        return {}


def start_ray(**options: Any) -> None:
    """Connect to the cluster at ``RAY_ADDRESS``, or start Ray on this machine; quietly, beside the display of progress.

    Args:
        options: further ones of ``ray.init``.

    Raises:
        SearchError: neither is possible.
    """
    import ray
    from ray._private import worker

    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _check_address(address)
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address or "local", **quiet, **options)
    except Exception as error:  # Ray raises plain ones
        where = f"no Ray cluster answers at {address} (RAY_ADDRESS)" if address else "Ray cannot be started here"
        raise SearchError(f"search.evaluator: {where}: {error}") from error
    # Ray prints dead workers on stdout, where results of commands belong, and has no public switch for that.
    worker._worker_logs_enabled = False


def _check_address(address: str) -> None:
    """Refuse at once what Ray would try to reach for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _cause(error: Exception) -> str:
    """The line of Ray's message that says what happened, without advice, ids and addresses."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("\t")]
    said = [line for line in lines if "before finishing this task" not in line] or lines or [type(error).__name__]
    return said[0].partition(" Some common causes")[0].strip()
