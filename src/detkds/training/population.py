"""Train students that differ by their policy alone: same initial weights, batches, augmentation and teacher outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from detkds.detectors.base import Detector
from detkds.evaluation.coco_ap import Metrics
from detkds.policy import Policy
from detkds.training.checkpoint import StateFiles
from detkds.training.loop import TrainingObserver, train
from detkds.training.processes import ALONE, Processes
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer
from detkds.training.teacher import TeacherForward, live


@dataclass(frozen=True)
class StudentSpec:
    """A student to train: a key of its own, a policy with absolute weights, and what it starts from.

    Without ``inherit`` it keeps its own initial neck and head.
    """

    key: str
    policy: Policy
    inherit: bool = True


@dataclass(frozen=True)
class Rungs:
    """Where students are measured in the midst of their training, and who stops there.

    Attributes:
        epochs: after which AP is measured on the setup's test images, ascending.
        stops: from the index of a rung and the AP there, a fraction, by student's key, to those that stop and why.
    """

    epochs: tuple[int, ...]
    stops: Callable[[int, Mapping[str, float]], Mapping[str, str]]


@dataclass(frozen=True)
class TrainResult:
    """What became of a student.

    Attributes:
        student: as it is after its last step, or at its best validation AP where ``config.keep`` asks for that.
        metrics: of the student at the end; None where it failed or was stopped.
        failure: the error that ended it, or None; stopped: why it was stopped at its last rung, or None.
        seconds: wall time spent on it; what students share is split by their steps.
        epochs: passes it was trained for.
        rungs: AP, a fraction, at each rung it reached.
        curve: one record per pass: mean losses by name, and ``validation_ap`` (a fraction) where it was measured.
    """

    key: str
    student: Detector
    metrics: Metrics | None
    failure: str | None
    seconds: float
    stopped: str | None = None
    epochs: float = 0.0
    rungs: tuple[float, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()


def train_population(
    setup: TrainingSetup,
    specs: Sequence[StudentSpec],
    *,
    seed: int,
    teacher: TeacherForward | None = None,
    rungs: Rungs | None = None,
    processes: Processes = ALONE,
    states: StateFiles | None = None,
    observer: TrainingObserver | None = None,
) -> list[TrainResult]:
    """Train and measure all students side by side, in order.

    A student does not depend on the company it is trained in, nor on being measured on the way.

    Args:
        seed: of initial weights, data order and augmentation, the same for every student.
        teacher: gives the teacher's outputs for the batches of ``seed``; by default the teacher is run on each.
        rungs: where losing students stop; None trains all to the end.
        processes: of an initialized process group that share the training; ``batch_size`` is then that of one process,
            and only the first measures.
        states, observer: as in :func:`detkds.training.loop.train`.

    Raises:
        DataError: there are fewer batches than processes, or an image is broken.
        WeightsError: ``states`` holds something else than states of these students.
    """
    started = time.perf_counter()
    config, first = setup.config, processes.first
    total_steps = setup.steps(epochs=config.epochs, world=processes.world)
    students = [
        StudentTrainer(
            spec.key,
            setup.build_student(seed, spec.inherit),
            spec.policy,
            setup.teacher,
            config,
            total_steps,
            seed=seed,
            device=setup.device,
            distributed=processes.distributed,
            self_taught=setup.self_taught,
        )
        for spec in specs
    ]
    if teacher is None and setup.teacher is not None and not setup.self_taught:
        teacher = live(setup.teacher)
    measuring = _Measuring(setup, rungs, observer or TrainingObserver(), first)
    train(
        students,
        setup.batches(seed, processes),
        config,
        teacher,
        processes=processes,
        states=states,
        observer=measuring,
    )
    shared = (time.perf_counter() - started) / max(1, sum(student.steps for student in students))
    results = []
    for student in students:
        started = time.perf_counter()
        if config.keep == "best":
            student.restore_best()
        metrics = setup.measure(student.student) if student.alive and first else None
        results.append(
            TrainResult(
                student.key,
                student.student,
                metrics,
                student.failure,
                shared * student.steps + time.perf_counter() - started,
                stopped=student.stopped,
                epochs=student.steps * config.epochs / total_steps,
                rungs=tuple(student.rungs),
                curve=tuple(student.curve),
            )
        )
    return results


class _Measuring(TrainingObserver):
    """Measures students at the end of passes: for successive halving, and for the curve of validation AP."""

    def __init__(self, setup: TrainingSetup, rungs: Rungs | None, inner: TrainingObserver, first: bool) -> None:
        self.clock = inner.clock
        self.step = inner.step
        self._setup, self._rungs, self._inner, self._first = setup, rungs, inner, first

    def epoch(self, done: int, students: Sequence[StudentTrainer]) -> None:
        config = self._setup.config
        every, data = config.validate_every, self._setup.validation_data
        if every is not None and data is not None and self._first and (done % every == 0 or done == config.epochs):
            for student in students:
                ap = self._setup.measure(student.student, data).ap
                student.curve[-1]["validation_ap"] = ap
                if config.keep == "best" and math.isfinite(ap):
                    student.keep_best(done, ap)
        if self._rungs is not None and done in self._rungs.epochs:
            self._stop(self._rungs, self._rungs.epochs.index(done), students)
        self._inner.epoch(done, students)

    def _stop(self, rungs: Rungs, rung: int, students: Sequence[StudentTrainer]) -> None:
        """Measure students at a rung and stop those that lose; an AP that is no number is a failure."""
        aps: dict[str, float] = {}
        for student in students:
            ap = self._setup.measure(student.student).ap
            if math.isfinite(ap):
                aps[student.key] = ap
                student.rungs.append(ap)
            else:
                student.failure = f"AP after epoch {rungs.epochs[rung]} is not a finite number: {ap}"
        stops = rungs.stops(rung, aps)
        for student in students:
            student.stopped = stops.get(student.key)
