"""Who trains a run's tasks: this process, worker processes of this machine, or Ray workers on one or many machines."""

from __future__ import annotations

import copy
import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from detkds import registry
from detkds.config import RunConfig
from detkds.runs.plan import SEARCH, Plan
from detkds.runs.teacher_outputs import teacher_outputs
from detkds.tasks.executor import Executor, InlineExecutor
from detkds.tasks.pool import PoolExecutor, Seat
from detkds.tasks.processes import ProcessWorkers, local_seats, start_importing
from detkds.tasks.ray import RayWorkers
from detkds.tasks.trainer import Trainer
from detkds.training.checkpoint import StateFiles
from detkds.training.loop import TrainingObserver
from detkds.training.processes import ALONE, Processes


def make_trainer(
    plan: Plan,
    folder: Path,
    note: Callable[[str], None],
    *,
    disk_share: float = 1.0,
    processes: Processes = ALONE,
    observer: TrainingObserver | None = None,
) -> Trainer:
    """What trains this run's tasks in one process; ``folder`` keeps its states and the teacher's outputs."""
    outputs = cache(lambda: teacher_outputs(plan, folder, note, disk_share))
    return Trainer(
        plan.setups,
        population=plan.config.proxy.population,
        calibration_batches=plan.config.proxy.calibration_batches,
        halving=plan.halving,
        teacher_of=lambda setup: outputs().get(setup) if setup == SEARCH else None,
        states=StateFiles(folder / "states"),
        processes=processes,
        observer=observer,
    )


def open_executor(plan: Plan, folder: Path, note: Callable[[str], None]) -> Executor:
    """The executor that the configuration asks for.

    Raises:
        SearchError: Ray cannot be reached, or the machines have too little.
    """
    config = plan.config
    population, recipe = config.proxy.population, WorkerRecipe.of(plan, folder)
    if config.executor == "ray":
        note("starting Ray workers")
        workers = RayWorkers(recipe, config.device, config.workers, config.threads)
        note(str(workers.share))
        return PoolExecutor(workers, population=population, note=note)
    seats = worker_seats(config)
    if seats:
        return PoolExecutor(ProcessWorkers(recipe, seats), population=population, note=note)
    if config.executor == "auto" and (piece := piece_of_main()):
        note(f"trained in this process alone: workers could not import {piece}, which the main script defines")
    return InlineExecutor(make_trainer(plan, folder, note))


@dataclass(frozen=True)
class WorkerRecipe:
    """What another process needs to train as this one would: picklable, and called there.

    Images are read there, under the paths they have here; annotations and the teacher's weights come with it.

    Attributes:
        plan: with the teacher on the CPU.
        folder: the run folder. Where a machine has it too, workers keep states and teacher outputs in it.
        directory: the working folder, which relative paths start from.
    """

    plan: Plan
    folder: Path
    directory: str

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> WorkerRecipe:
        """The recipe of this process."""
        teacher = copy.deepcopy(plan.teacher).cpu()
        return cls(replace(plan, teacher=teacher, device=torch.device("cpu")), folder.absolute(), os.getcwd())

    def __call__(self, seat: Seat) -> Trainer:
        """The trainer of the worker in that seat; all together keep as much on disk as one would."""
        if os.path.isdir(self.directory):
            os.chdir(self.directory)
        for plugin in self.plan.config.plugins:
            importlib.import_module(plugin)
        device = torch.device(seat.device)
        plan = replace(self.plan, teacher=self.plan.teacher.to(device), device=device)
        if self.folder.is_dir():
            return make_trainer(plan, self.folder, _silent, disk_share=1 / seat.of)
        return make_trainer(plan, Path(tempfile.mkdtemp(prefix="detkds-")), _silent, disk_share=0.0)


def _silent(text: str) -> None:
    """What workers note is of no interest elsewhere."""


def prepare_workers(config: RunConfig) -> None:
    """Let worker processes that will be needed import what they need while this one does something else.

    Raises:
        UserError: the machine has too little for the workers asked for.
    """
    if config.executor != "ray" and len(worker_seats(config)) > 1:
        start_importing("detkds.runs.preload")


def worker_seats(config: RunConfig) -> list[Seat]:
    """The places of worker processes on this machine; none where this process trains alone."""
    seats = local_seats(config.device, config.workers, config.threads) if config.executor != "inline" else []
    alone = config.executor == "auto" and (len(seats) < 2 or piece_of_main() is not None)
    return [] if alone else seats


def count_workers(plan: Plan) -> int:
    """How many trainings or populations go on at a time; of Ray, as many as are asked for."""
    config = plan.config
    return config.workers or 1 if config.executor == "ray" else max(1, len(worker_seats(config)))


def piece_of_main() -> str | None:
    """A registered piece that lies in the script this process runs, where other processes cannot import it from."""
    for kind in vars(registry).values():
        if isinstance(kind, registry.Registry):
            for name in kind:
                if kind[name].__module__ == "__main__":
                    return f"{kind.kind} {name!r}"
    return None
