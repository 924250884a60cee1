"""The training loop: one batch and one teacher forward for every student in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkds.config import TrainConfig
from detkds.structures import Batch
from detkds.training.checkpoint import StateFiles
from detkds.training.processes import ALONE, Processes
from detkds.training.student import StudentTrainer, autocast
from detkds.training.teacher import TeacherForward


@dataclass
class Clock:
    """Seconds spent in each part of training, summed up over the trainings that it is given to.

    Attributes:
        now: tells the time; :func:`time.process_time` where others share the machine.
    """

    data: float = 0.0
    teacher: float = 0.0
    students: float = 0.0
    steps: int = 0
    now: Callable[[], float] = time.perf_counter


class TrainingObserver:
    """Is told what happens in a training, and may stop students at the end of a pass; this one does nothing."""

    def __init__(self) -> None:
        self.clock = Clock()

    def step(self, student: StudentTrainer, losses: dict[str, Tensor]) -> None:
        """A student has taken a step with these losses."""

    def epoch(self, done: int, students: Sequence[StudentTrainer]) -> None:
        """``done`` passes are over for the students still in training; before the state is saved."""


def train(
    students: Sequence[StudentTrainer],
    batches: Callable[[int], Iterable[Batch]],
    config: TrainConfig,
    teacher: TeacherForward | None = None,
    *,
    processes: Processes = ALONE,
    states: StateFiles | None = None,
    observer: TrainingObserver | None = None,
) -> None:
    """Train all students side by side; one that fails or is stopped is left behind with its reason, the others go on.

    The training ends early where none is left.

    Args:
        students: each may follow another policy.
        batches: from the epoch's number to this process's batches; the same number gives the same batches, and every
            process gets equally many.
        teacher: the frozen teacher's forward pass; None where no student reads it.
        processes: those that share this training. The first alone writes states; where there are others, a failure
            ends the training, because they would wait for a student that is left behind.
        states: where the state is kept after passes, and taken up from.
        observer: is told of every step and pass.
    """
    observer = observer or TrainingObserver()
    clock = observer.clock
    for epoch in range(states.load(students) if states is not None else 0, config.epochs):
        if not any(student.alive for student in students):
            break
        started = clock.now()
        for index, batch in enumerate(batches(epoch)):
            batch = batch.to(students[0].device)
            clock.data += clock.now() - started
            alive = [student for student in students if student.alive]
            started = clock.now()
            teacher_output = None
            if teacher is not None and any(student.distils for student in alive):
                responses = any(student.model.distiller.reads_responses for student in alive)
                with autocast(students[0].device, config.amp):
                    teacher_output = teacher(epoch, index, batch, responses)
            clock.teacher += clock.now() - started
            started = clock.now()
            for student in alive:
                try:
                    losses = student.train_step(batch, teacher_output)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    if processes.distributed:
                        raise
                    student.failure = f"{type(error).__name__}: {error}"
                    continue
                observer.step(student, losses)
            clock.students += clock.now() - started
            clock.steps += 1
            started = clock.now()
        alive = [student for student in students if student.alive]
        for student in alive:
            student.end_epoch()
        observer.epoch(epoch + 1, alive)
        if states is not None and processes.first:
            states.save(students, epoch + 1, last=epoch + 1 == config.epochs)
