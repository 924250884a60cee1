"""The training loop: one batch and one teacher forward for every student in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detkds.config import TrainConfig
from detkds.detectors.base import Detector
from detkds.structures import Batch, DetectorOutput
from detkds.training.ask import ask
from detkds.training.checkpoint import load_state, save_state
from detkds.training.member import Member, autocast

OnStep = Callable[[Member, dict[str, Tensor]], None]
OnEpoch = Callable[[int], None]
AskTeacher = Callable[[int, int, Batch, bool], DetectorOutput]
"""From an epoch, a batch's index in it, the batch, and whether responses are wanted, to the teacher's output."""
AtRung = Callable[[int, Sequence[Member]], None]


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


def train(
    members: Sequence[Member],
    teacher: Detector | None,
    batches: Callable[[int], Iterable[Batch]],
    config: TrainConfig,
    *,
    device: torch.device,
    checkpoint: Path | None = None,
    rank: int = 0,
    world: int = 1,
    ask_teacher: AskTeacher | None = None,
    rungs: Sequence[int] = (),
    at_rung: AtRung | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    clock: Clock | None = None,
) -> Clock:
    """Train all members side by side; one that fails or is stopped is left behind with its reason, the others go on.

    The training ends early where none is left.

    Args:
        members: students with their distillers; each may follow another policy.
        teacher: frozen, in evaluation mode and without gradient throughout; None where no member distils.
        batches: from the epoch's number to this process's batches; the same number gives the same batches, and every
            process gets equally many.
        checkpoint: where the state is kept after every epoch, and taken up from where the file exists.
        rank, world: this process and the number of processes. Process 0 alone writes the checkpoint; where there are
            others, a failure ends the training, because they would wait for a member that is left behind.
        ask_teacher: gives the teacher's output for a batch; by default the teacher is run on it.
        rungs, at_rung: epochs after which ``at_rung`` is called with the rung's index and the members still in
            training; it measures and may stop them, and must leave them otherwise as they are. One process only.
        on_step: called with a member and its losses after each of its steps; on_epoch: with the epochs done.
        clock: takes the time and is returned; by default a new one of wall time.
    """
    clock = Clock() if clock is None else clock
    first_epoch = load_state(checkpoint, members) if checkpoint is not None else 0
    if teacher is not None:
        teacher.requires_grad_(False)
    for epoch in range(first_epoch, config.epochs):
        if not any(member.alive for member in members):
            break
        started = clock.now()
        for index, batch in enumerate(batches(epoch)):
            batch = batch.to(device)
            clock.data += clock.now() - started
            alive = [member for member in members if member.alive]
            started = clock.now()
            teacher_output = None
            if teacher is not None and any(member.distils for member in alive):
                responses = any(member.model.distiller.reads_responses for member in alive)
                with autocast(device, config.amp):
                    if ask_teacher is None:
                        teacher_output = ask(teacher, batch, responses=responses)
                    else:
                        teacher_output = ask_teacher(epoch, index, batch, responses)
            clock.teacher += clock.now() - started
            started = clock.now()
            for member in alive:
                try:
                    losses = member.train_step(batch, teacher_output)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    if world > 1:
                        raise
                    member.failure = f"{type(error).__name__}: {error}"
                    continue
                if on_step is not None:
                    on_step(member, losses)
            clock.students += clock.now() - started
            clock.steps += 1
            started = clock.now()
        if at_rung is not None and epoch + 1 in rungs:
            at_rung(rungs.index(epoch + 1), [member for member in members if member.alive])
        if checkpoint is not None and rank == 0:
            save_state(checkpoint, members, epoch + 1)
        if on_epoch is not None:
            on_epoch(epoch + 1)
    return clock
