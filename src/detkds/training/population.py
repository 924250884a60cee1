"""Train students that differ by their policy alone: same initial weights, batches, augmentation and teacher outputs."""

from __future__ import annotations

import gc
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from detkds.config import TrainConfig
from detkds.data.augment import Augmentation
from detkds.data.coco import CocoDataset
from detkds.data.loader import batch_count, training_batches, training_store
from detkds.data.store import ImageStore
from detkds.detectors.base import Detector
from detkds.evaluation.coco_ap import Metrics, evaluate_boxes, evaluate_masks
from detkds.evaluation.predict import predict_images
from detkds.policy import Policy
from detkds.structures import Batch
from detkds.training.loop import AskTeacher, OnEpoch, OnStep, train
from detkds.training.member import Member


@dataclass(frozen=True)
class Candidate:
    """A policy to train a student with. Without ``inherit`` the student keeps its own initial neck and head.

    Candidates of one ``group``, which stand together in a sequence, are not shared out over several populations where
    one can hold them.
    """

    name: str
    policy: Policy
    inherit: bool = True
    group: str = ""


@dataclass(frozen=True)
class Rungs:
    """Where candidates are measured in the midst of their training, and who stops there.

    Attributes:
        epochs: after which AP is measured on the setting's test images, ascending.
        stops: from the index of a rung and the AP there, a fraction, by candidate's name, to those that stop and why.
    """

    epochs: tuple[int, ...]
    stops: Callable[[int, Mapping[str, float]], Mapping[str, str]]


@dataclass(frozen=True, eq=False)
class Setting:
    """What all candidates of a comparison share.

    Attributes:
        teacher: the frozen teacher, on ``device``; None only where no candidate distils.
        build_student: from (seed, inherit) to a fresh student.
        train_data, test_data: images to train on, and to measure AP on.
        config: how each student is trained.
        size: pixels of the longer image side.
        self_taught: whether every student is taught by its own moving average. ``teacher`` is then another student,
            against which losses are checked and scaled before a training.
        masks: whether the students predict masks: targets carry them, and AP is that of masks.
    """

    teacher: Detector | None
    build_student: Callable[[int, bool], Detector]
    train_data: CocoDataset
    test_data: CocoDataset
    config: TrainConfig
    size: int
    device: torch.device
    self_taught: bool = False
    masks: bool = False

    @cached_property
    def augmentation(self) -> Augmentation:
        """How training images vary."""
        return Augmentation(**self.config.augmentation.model_dump())

    @cached_property
    def store(self) -> ImageStore:
        """Decoded training images, shared by all epochs, seeds and candidates."""
        return training_store(self.train_data, size=self.size, augmentation=self.augmentation)

    @cached_property
    def test_store(self) -> ImageStore:
        """Decoded test images, shared by all measurements."""
        return ImageStore(self.test_data, self.size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass in a single process."""
        return self.steps(epochs=1)

    def steps(self, *, epochs: int, world: int = 1) -> int:
        """Optimiser steps of ``epochs`` passes that ``world`` processes share, each taking its own batches.

        Raises:
            DataError: there are fewer batches than processes.
        """
        return epochs * batch_count(self.config.draws or len(self.train_data), self.config.batch_size, world)

    def batches(self, seed: int, *, rank: int = 0, world: int = 1) -> Callable[[int], Iterable[Batch]]:
        """From an epoch's number to its batches, which depend on this setting and the arguments alone.

        Of ``world`` processes, number ``rank`` gets its own share of them; all get equally many.
        """
        return lambda epoch: training_batches(
            self.train_data,
            size=self.size,
            batch_size=self.config.batch_size,
            seed=seed,
            epoch=epoch,
            augmentation=self.augmentation,
            draws=self.config.draws,
            masks=self.masks,
            store=self.store,
            workers=self.config.workers,
            rank=rank,
            world=world,
        )


@dataclass(frozen=True)
class Trained:
    """What became of a candidate.

    Attributes:
        student: as it is after its last step.
        metrics: of the student at the end; None where it failed or was stopped.
        failure: the error that ended it, or None; stopped: why it was stopped at its last rung, or None.
        seconds: wall time spent on it; what candidates share is split by their steps.
        epochs: passes it was trained for.
        rungs: AP, a fraction, at each rung it reached.
    """

    candidate: Candidate
    student: Detector
    metrics: Metrics | None
    failure: str | None
    seconds: float
    stopped: str | None = None
    epochs: float = 0.0
    rungs: tuple[float, ...] = ()


def train_candidates(
    setting: Setting,
    candidates: Sequence[Candidate],
    *,
    seed: int,
    checkpoint: Path | None = None,
    distributed: bool = False,
    rank: int = 0,
    world: int = 1,
    ask_teacher: AskTeacher | None = None,
    rungs: Rungs | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[Trained]:
    """Train and evaluate all candidates side by side, in order.

    The student of a candidate does not depend on the company it is trained in, nor on being measured at rungs.

    Args:
        seed: of initial weights, data order and augmentation, the same for every candidate.
        checkpoint: where the state is kept after every epoch, and taken up from where the file exists.
        distributed: one of ``world`` processes of an initialised process group, number ``rank``. ``batch_size`` is then
            that of one process, and only process 0 measures.
        ask_teacher: gives the teacher's outputs for the batches of ``seed``; by default the teacher is run on each.
        rungs: where losing candidates stop; None trains all to the end.

    Raises:
        DataError: there are fewer batches than processes, or an image is broken.
        WeightsError: ``checkpoint`` is not a state of these candidates.
    """
    started = time.perf_counter()
    total_steps = setting.steps(epochs=setting.config.epochs, world=world)
    members = [
        Member(
            candidate.name,
            setting.build_student(seed, candidate.inherit),
            candidate.policy,
            setting.teacher,
            setting.config,
            total_steps,
            seed=seed,
            device=setting.device,
            distributed=distributed,
            self_taught=setting.self_taught,
        )
        for candidate in candidates
    ]
    train(
        members,
        None if setting.self_taught else setting.teacher,
        setting.batches(seed, rank=rank, world=world),
        setting.config,
        device=setting.device,
        checkpoint=checkpoint,
        rank=rank,
        world=world,
        ask_teacher=ask_teacher,
        rungs=() if rungs is None else rungs.epochs,
        at_rung=None if rungs is None else lambda rung, alive: _climb(rungs, rung, alive, setting),
        on_step=on_step,
        on_epoch=on_epoch,
    )
    shared = (time.perf_counter() - started) / max(1, sum(member.steps for member in members))
    results = []
    for candidate, member in zip(candidates, members, strict=True):
        began = time.perf_counter()
        metrics = None
        if member.alive and rank == 0:
            metrics = measure(member.student, setting)
        seconds = shared * member.steps + time.perf_counter() - began
        epochs = member.steps * setting.config.epochs / total_steps
        results.append(
            Trained(
                candidate,
                member.student,
                metrics,
                member.failure,
                seconds,
                stopped=member.stopped,
                epochs=epochs,
                rungs=tuple(member.rungs),
            )
        )
    return results


def _climb(rungs: Rungs, rung: int, members: Sequence[Member], setting: Setting) -> None:
    """Measure members at a rung and stop those that lose; an AP that is no number is a failure."""
    aps: dict[str, float] = {}
    for member in members:
        ap = measure(member.student, setting).ap
        if math.isfinite(ap):
            aps[member.name] = ap
            member.rungs.append(ap)
        else:
            member.failure = f"AP after epoch {rungs.epochs[rung]} is not a finite number: {ap}"
    stops = rungs.stops(rung, aps)
    for member in members:
        member.stopped = stops.get(member.name)


def train_in_populations(
    setting: Setting,
    candidates: Sequence[Candidate],
    *,
    seed: int,
    population: int,
    checkpoints: Path | None = None,
    ask_teacher: AskTeacher | None = None,
    rungs: Rungs | None = None,
    on_epoch: OnEpoch | None = None,
) -> Iterator[list[Trained]]:
    """Train any number of candidates, ``population`` at a time, and yield each population's results in order.

    Where memory runs out, the population is halved and tried again; a candidate that does not fit alone has failed.

    Args:
        checkpoints: a folder for the states of unfinished populations; they are removed when finished.
        ask_teacher: as in :func:`train_candidates`.
        rungs: where losing candidates stop; None trains all to the end.
    """
    waiting = list(candidates)
    while waiting:
        chunk = _next_population(waiting, population)
        state = None
        if checkpoints is not None:
            names = " ".join(f"{candidate.name} {candidate.policy.key}" for candidate in chunk)
            state = checkpoints / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}-seed{seed}.state"
        try:
            trained = train_candidates(
                setting,
                chunk,
                seed=seed,
                checkpoint=state,
                ask_teacher=ask_teacher,
                rungs=rungs,
                on_epoch=on_epoch,
            )
        except torch.OutOfMemoryError as error:
            if len(chunk) == 1:
                failure = f"out of memory when trained alone: {error}"
                trained = [Trained(chunk[0], setting.build_student(seed, chunk[0].inherit), None, failure, 0.0)]
            else:
                population = len(chunk) // 2
                gc.collect()
                torch.cuda.empty_cache()
                continue
        waiting = waiting[len(chunk) :]
        yield trained
        if state is not None:
            state.unlink(missing_ok=True)


def _next_population(waiting: Sequence[Candidate], population: int) -> list[Candidate]:
    """The first candidates, at most ``population``; a group is cut in two only where it stands at the beginning."""
    count = min(population, len(waiting))
    if count < len(waiting) and (group := waiting[count].group):
        begin = next(place for place, candidate in enumerate(waiting) if candidate.group == group)
        count = min(count, begin) or count
    return list(waiting[:count])


def measure(detector: Detector, setting: Setting) -> Metrics:
    """AP of a detector on the setting's test images: of its masks, where it and the students predict them."""
    predictions = predict_images(
        detector,
        setting.test_data,
        size=setting.size,
        batch_size=setting.config.batch_size,
        device=setting.device,
        store=setting.test_store,
    )
    evaluate = evaluate_masks if setting.masks and detector.info.masks else evaluate_boxes
    return evaluate(setting.test_data, predictions)
