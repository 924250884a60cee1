"""Who measures the candidates of a run's search: this process, or Ray workers on one or many machines."""

from __future__ import annotations

import copy
import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from detkds.runs.listening import Listener, Meter, Silence
from detkds.runs.plan import Plan
from detkds.runs.teacher_outputs import teacher_outputs
from detkds.search.evaluators.population import PopulationEvaluator
from detkds.search.evaluators.ray import RayEvaluator, Seat
from detkds.search.result import Evaluator
from detkds.training.loop import OnEpoch


@contextmanager
def open_evaluator(plan: Plan, folder: Path, listener: Listener, meter: Meter) -> Iterator[Evaluator]:
    """The evaluator that ``executor`` names.

    Raises:
        SearchError: Ray cannot be reached, or its machines have too little.
    """
    config = plan.config
    if config.executor != "ray":
        yield local_evaluator(plan, folder, listener, meter.epoch)
        return
    listener.note("starting Ray workers")
    with RayEvaluator(
        WorkerRecipe.of(plan, folder),
        population=config.proxy.population,
        device=config.device,
        workers=config.workers,
        threads=config.threads,
        whole_groups=plan.halving is not None,
        on_trained=meter.trained,
        on_note=listener.note,
    ) as evaluator:
        listener.note(str(evaluator.share))
        yield evaluator


def local_evaluator(
    plan: Plan, folder: Path, listener: Listener, on_epoch: OnEpoch | None = None, *, disk_share: float = 1.0
) -> PopulationEvaluator:
    """The evaluator of this process; in ``folder`` it keeps the teacher's outputs, on its share of the disk granted."""
    setting = plan.setting(plan.proxy_data, plan.validation_data, plan.proxy_config)
    return PopulationEvaluator(
        setting,
        population=plan.config.proxy.population,
        calibration_batches=plan.config.proxy.calibration_batches,
        halving=plan.halving,
        filter=plan.config.search.filter,
        seed=plan.config.search.seed,
        ask_teacher=teacher_outputs(plan, setting, folder, listener, disk_share),
        on_epoch=on_epoch,
    )


@dataclass(frozen=True)
class WorkerRecipe:
    """What another process needs to measure candidates as this one would: picklable, and called there.

    Images are read there, under the paths they have here; annotations and the teacher's weights come with it.

    Attributes:
        plan: with the teacher on the CPU.
        folder: the run folder. Where a machine has it too, each worker keeps teacher outputs in a part of it.
        directory: the working folder, which relative paths start from.
    """

    plan: Plan
    folder: Path
    directory: str

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> WorkerRecipe:
        """The recipe of this process."""
        teacher = copy.deepcopy(plan.teacher).cpu()
        return cls(replace(plan, teacher=teacher, device=torch.device("cpu")), folder, os.getcwd())

    def __call__(self, seat: Seat) -> PopulationEvaluator:
        """The evaluator of the worker in that seat; all together keep as much on disk as one would."""
        if os.path.isdir(self.directory):
            os.chdir(self.directory)
        for plugin in self.plan.config.plugins:
            importlib.import_module(plugin)
        device = torch.device(seat.device)
        plan = replace(self.plan, teacher=self.plan.teacher.to(device), device=device)
        if not self.folder.is_dir():
            return local_evaluator(plan, Path(tempfile.mkdtemp(prefix="detkds-")), Silence(), disk_share=0.0)
        own = self.folder / "workers" / str(seat.number)
        own.mkdir(parents=True, exist_ok=True)
        return local_evaluator(plan, own, Silence(), disk_share=1 / seat.of)
