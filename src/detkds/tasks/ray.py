"""Workers of Ray: on this machine, or on the machines of a cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

import torch

from detkds.policy_search.result import SearchError
from detkds.tasks.pool import BuildTrainer, Lost, Message, Raised, Ready, Seat, serve
from detkds.tasks.shares import share
from detkds.tasks.task import Task

_POLL = 0.2
"""Seconds between two looks at what workers have said of trainings that go on."""


class Worker:
    """What a Ray actor is: a process that keeps a trainer, and with it teacher and data, on a device of its own."""

    def start(self, build: BuildTrainer, seat: Seat) -> None:
        """Build the trainer, torch using so many threads on the CPU."""
        torch.set_num_threads(seat.threads)
        self._device = torch.device(seat.device)
        self._trainer = build(seat)

    def run(self, tasks: Mapping[str, Task], said: Any, number: int) -> None:
        """Serve a job; messages go into a queue."""
        serve(self._trainer, tasks, lambda message: said.put((number, message)), self._device)


class RayWorkers:
    """Actors of Ray; they end with this process.

    Ray is started on this machine and stopped again, unless it runs in this process already or ``RAY_ADDRESS`` says
    where a cluster is.

    Args:
        build: makes a worker's trainer.
        device, workers, threads: as in :func:`detkds.tasks.shares.share`.

    Raises:
        SearchError: there is no such cluster, or its machines have too little.
    """

    def __init__(self, build: BuildTrainer, device: str | None, workers: int | None, threads: int) -> None:
        import ray
        from ray.util.queue import Queue

        self._owns_ray = not ray.is_initialized()
        self._actors: dict[int, Any] = {}
        self._calls: dict[int, tuple[Any, bool]] = {}
        if self._owns_ray:
            start_ray()
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.share = share(nodes, device, workers, threads)
            self.seats = [
                Seat(number, self.share.workers, self.share.device, self.share.threads)
                for number in range(self.share.workers)
            ]
            self.needs = f"{self.share.gpus:g} GPU" if self.share.gpus else f"{self.share.cpus} free CPUs"
            self._build = ray.put(build)
            self._said = Queue(actor_options={"num_cpus": 0})
            self._actor: Any = ray.remote(Worker).options(
                num_cpus=self.share.cpus, num_gpus=self.share.gpus, max_restarts=0, scheduling_strategy="SPREAD"
            )
        except BaseException:
            self.close()
            raise

    def start(self, number: int) -> None:
        """As :meth:`detkds.tasks.pool.Workers.start`."""
        self.stop(number)
        actor = self._actors[number] = self._actor.remote()
        self._calls[number] = actor.start.remote(self._build, self.seats[number]), True

    def send(self, number: int, tasks: Mapping[str, Task]) -> None:
        """As :meth:`detkds.tasks.pool.Workers.send`."""
        self._calls[number] = self._actors[number].run.remote(dict(tasks), self._said, number), False

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        """As :meth:`detkds.tasks.pool.Workers.receive`."""
        import ray

        waited = 0.0
        while waited < timeout:
            calls = {call: number for number, (call, _) in self._calls.items()}
            over, _ = ray.wait(list(calls), num_returns=1, timeout=_POLL) if calls else ([], [])
            waited += _POLL
            messages = self._queued()
            for call in over:
                number = calls[call]
                _, starting = self._calls.pop(number)
                messages += [(number, message) for message in _ended(call, starting)]
            if messages:
                return messages
        return []

    def stop(self, number: int) -> None:
        """As :meth:`detkds.tasks.pool.Workers.stop`."""
        import ray

        self._calls.pop(number, None)
        actor = self._actors.pop(number, None)
        if actor is not None:
            ray.kill(actor)

    def close(self) -> None:
        """End all workers, and Ray where it was started here."""
        import ray

        if not ray.is_initialized():
            return
        for number in list(self._actors):
            self.stop(number)
        if self._owns_ray:
            ray.shutdown()

    def _queued(self) -> list[tuple[int, Message]]:
        count = self._said.qsize()
        return self._said.get_nowait_batch(count) if count else []


def _ended(call: Any, starting: bool) -> list[Message]:
    """What a call that is over means: a start that succeeded or did not, a job that failed, or a lost worker.

    A job that succeeded has said so itself.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(call)
    except RayTaskError as error:
        cause: Any = error.cause
        broken = isinstance(cause, torch.AcceleratorError)
        return [Lost(str(cause).partition("\n")[0]) if broken else Raised(cause, starting)]
    except RayError as error:
        return [Lost(_cause(error))]
    return [Ready()] if starting else []


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
        raise SearchError(f"executor: {where}: {error}") from error
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
