"""Train students that differ by their policy alone: same initial weights, batches, augmentation and teacher outputs."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from detkds.evaluation.coco_ap import Metrics, evaluate_boxes
from detkds.evaluation.predict import predict_dataset
from detkds.policy import Policy
from detkds.structures import Batch
from detkds.training.loop import AskTeacher, OnEpoch, OnStep, train
from detkds.training.member import Member


@dataclass(frozen=True)
class Candidate:
    """A policy to train a student with. Without ``inherit`` the student keeps its own initial neck and head."""

    name: str
    policy: Policy
    inherit: bool = True


@dataclass(frozen=True, eq=False)
class Setting:
    """What all candidates of a comparison share.

    Attributes:
        teacher: the frozen teacher, on ``device``; None only where no candidate distils.
        build_student: from (seed, inherit) to a fresh student.
        train_data, test_data: images to train on, and to measure AP on.
        config: how each student is trained.
        size: pixels of the longer image side.
    """

    teacher: Detector | None
    build_student: Callable[[int, bool], Detector]
    train_data: CocoDataset
    test_data: CocoDataset
    config: TrainConfig
    size: int
    device: torch.device

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
            store=self.store,
            workers=self.config.workers,
            rank=rank,
            world=world,
        )


@dataclass(frozen=True)
class Trained:
    """What became of a candidate: its student and metrics, or the reason for its failure."""

    candidate: Candidate
    student: Detector
    metrics: Metrics | None
    failure: str | None
    seconds: float


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
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[Trained]:
    """Train and evaluate all candidates side by side, in order.

    The result of a candidate does not depend on the company it is trained in.

    Args:
        seed: of initial weights, data order and augmentation, the same for every candidate.
        checkpoint: where the state is kept after every epoch, and taken up from where the file exists.
        distributed: one of ``world`` processes of an initialised process group, number ``rank``. ``batch_size`` is then
            that of one process, and only process 0 measures.
        ask_teacher: gives the teacher's outputs for the batches of ``seed``; by default the teacher is run on each.

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
        )
        for candidate in candidates
    ]
    train(
        members,
        setting.teacher,
        setting.batches(seed, rank=rank, world=world),
        setting.config,
        device=setting.device,
        checkpoint=checkpoint,
        rank=rank,
        world=world,
        ask_teacher=ask_teacher,
        on_step=on_step,
        on_epoch=on_epoch,
    )
    share = (time.perf_counter() - started) / max(1, len(members))
    results = []
    for candidate, member in zip(candidates, members, strict=True):
        began = time.perf_counter()
        metrics = None
        if member.failure is None and rank == 0:
            metrics = measure(member.student, setting)
        seconds = share + time.perf_counter() - began
        results.append(Trained(candidate, member.student, metrics, member.failure, seconds))
    return results


def train_in_populations(
    setting: Setting,
    candidates: Sequence[Candidate],
    *,
    seed: int,
    population: int,
    checkpoints: Path | None = None,
    ask_teacher: AskTeacher | None = None,
    on_epoch: OnEpoch | None = None,
) -> Iterator[list[Trained]]:
    """Train any number of candidates, ``population`` at a time, and yield each population's results in order.

    Where memory runs out, the population is halved and tried again; a candidate that does not fit alone has failed.

    Args:
        checkpoints: a folder for the states of unfinished populations; they are removed when finished.
        ask_teacher: as in :func:`train_candidates`.
    """
    waiting = list(candidates)
    while waiting:
        chunk = waiting[:population]
        state = None
        if checkpoints is not None:
            names = " ".join(f"{candidate.name} {candidate.policy.key}" for candidate in chunk)
            state = checkpoints / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}-seed{seed}.state"
        try:
            trained = train_candidates(
                setting, chunk, seed=seed, checkpoint=state, ask_teacher=ask_teacher, on_epoch=on_epoch
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


def measure(detector: Detector, setting: Setting) -> Metrics:
    """Box AP of a detector on the setting's test images."""
    predictions = predict_dataset(
        detector,
        setting.test_data,
        size=setting.size,
        batch_size=setting.config.batch_size,
        device=setting.device,
        store=setting.test_store,
    )
    return evaluate_boxes(setting.test_data, predictions)
