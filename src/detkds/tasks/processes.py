"""Worker processes on this machine, one per GPU or CPU core."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import connection, forkserver, get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

import torch

from detkds.policy_search.result import SearchError
from detkds.tasks.pool import BuildTrainer, Lost, Message, Raised, Ready, Seat, serve
from detkds.tasks.shares import share
from detkds.tasks.task import Task

_FORKSERVER = "forkserver" in get_all_start_methods()
_CONTEXT: Any = get_context("forkserver" if _FORKSERVER else "spawn")
# A plain fork is no way: autograd's threads do not survive it, and the teacher may have been trained in this process.


def start_importing(module: str) -> None:
    """Begin to import a module for workers to come, beside this process, where workers can be forked from that."""
    if _FORKSERVER:
        _CONTEXT.set_forkserver_preload([module])
        with _without_main():
            forkserver.ensure_running()


def machine() -> dict[str, float]:
    """The CPU cores that this process may use, and the GPUs of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"CPU": cores, "GPU": torch.cuda.device_count() if torch.cuda.is_available() else 0}


def local_seats(device: str | None, workers: int | None, threads: int) -> list[Seat]:
    """The places of workers on this machine: one per GPU, or without GPUs one per ``threads`` cores.

    A single device that is named serves one worker, or as many as are asked for.

    Raises:
        SearchError: the machine has too little for that.
    """
    if device not in (None, "cpu", "cuda"):
        return [Seat(number, workers or 1, device, threads) for number in range(workers or 1)]
    resources = machine()
    shares = share([resources], device, workers, threads)
    gpus = int(resources["GPU"])
    devices = [
        f"cuda:{number % gpus}" if shares.device == "cuda" else shares.device for number in range(shares.workers)
    ]
    return [Seat(number, shares.workers, name, threads) for number, name in enumerate(devices)]


class ProcessWorkers:
    """Processes of this machine; they end with this one, however it ends.

    Args:
        build: makes a worker's trainer.
        seats: where workers sit.
    """

    def __init__(self, build: BuildTrainer, seats: list[Seat]) -> None:
        self.seats = seats
        self.needs = f"{seats[0].threads} CPU core{'s' * (seats[0].threads > 1)}"
        self._build = build
        self._processes: dict[int, tuple[BaseProcess, Connection]] = {}

    def start(self, number: int) -> None:
        """As :meth:`detkds.tasks.pool.Workers.start`.

        Raises:
            SearchError: the system starts no process.
        """
        self.stop(number)
        here, there = _CONTEXT.Pipe()
        seat = self.seats[number]
        process = _CONTEXT.Process(target=_work, args=(there, self._build, seat), name=f"detkds-worker-{number}")
        try:
            with _without_main():
                process.start()
        except OSError as error:
            raise SearchError(f"executor: a worker process cannot be started: {error}") from None
        there.close()
        self._processes[number] = process, here

    def send(self, number: int, tasks: Mapping[str, Task]) -> None:
        """As :meth:`detkds.tasks.pool.Workers.send`."""
        with contextlib.suppress(OSError):  # it has just died, which is heard of with the next message
            self._processes[number][1].send(dict(tasks))

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        """As :meth:`detkds.tasks.pool.Workers.receive`."""
        numbers: dict[Any, int] = {pipe: number for number, (_, pipe) in self._processes.items()}
        messages: list[tuple[int, Message]] = []
        for pipe in connection.wait(list(numbers), timeout):
            number = numbers[pipe]
            try:
                messages.append((number, pipe.recv()))  # type: ignore[union-attr]
            except (EOFError, OSError):
                messages.append((number, Lost(self._cause(number))))
        return messages

    def stop(self, number: int) -> None:
        """As :meth:`detkds.tasks.pool.Workers.stop`."""
        if number in self._processes:
            process, pipe = self._processes.pop(number)
            process.kill()
            process.join()
            pipe.close()

    def close(self) -> None:
        """End all workers."""
        for number in list(self._processes):
            self.stop(number)

    def _cause(self, number: int) -> str:
        process, pipe = self._processes.pop(number)
        pipe.close()
        process.join(timeout=10)
        code = process.exitcode
        if code is None:
            process.kill()
            return "it no longer answers"
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"


def _work(pipe: Connection, build: BuildTrainer, seat: Seat) -> None:
    """A worker's life: build the trainer, then serve jobs until the pipe is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(seat.threads)
    try:
        trainer = build(seat)
    except BaseException as error:
        pipe.send(Raised(_picklable(error), starting=True))
        return
    pipe.send(Ready())
    while True:
        try:
            tasks = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            serve(trainer, tasks, pipe.send, torch.device(seat.device))
        except KeyboardInterrupt:
            return  # the process that was asked to stop says so
        except torch.AcceleratorError:
            os._exit(1)  # whatever a broken device gives cannot be trusted
        except Exception as error:
            pipe.send(Raised(_picklable(error)))


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep a process that starts from importing the script that this one runs: not every script guards its calls."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _picklable(error: BaseException) -> BaseException:
    """The error, or one of the same words where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
