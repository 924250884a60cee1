"""What one training step costs under each policy, in time and in memory, measured side by side.

The trainings of a comparison run at different moments, beside different company; their times say little. Here all
policies take steps in turn on one batch, in one process, from one student, so that a machine that slows down slows all.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detkds.files import append_line, read_lines
from detkds.policy import Policy
from detkds.runs.plan import absolute
from detkds.structures import Batch, DetectorOutput
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer, autocast, seeded
from detkds.training.teacher import teacher_forward

WARM_UP, TIMED = 10, 20
"""Rounds of one step each; of fewer rounds the first third warms up."""
PATIENCE = 300.0
"""Seconds after which no round is begun, once there are four."""
_UNMOVED = 1e-12  # a learning rate that keeps the student where it is


@dataclass(frozen=True)
class StepCost:
    """What a training step costs; nothing is known where it failed.

    Attributes:
        seconds: of a whole step, forward, backward and optimizer, with the teacher's forward pass where there is one;
            the median over the rounds.
        ratio: to the plain student's step of the same round; the median over the rounds.
        student_mb: 10^6 bytes of activations that the student's own losses hold for the backward pass.
        losses_mb: what the distillation losses hold beside them: each stored tensor that autograd saved, once, without
            weights, the batch and what the two detectors gave out. It is counted, not measured: the same on every
            device.
        rounds: that were timed.
        failure: why no step could be taken.
    """

    seconds: float | None = None
    ratio: float | None = None
    student_mb: float | None = None
    losses_mb: float | None = None
    rounds: int = 0
    failure: str | None = None


def step_costs(setup: TrainingSetup, policies: Sequence[Policy], seed: int, path: Path) -> list[StepCost]:
    """The cost of each policy; what was measured before on this device is read from ``path``.

    Policies that are still to be measured are timed beside the plain student anew.
    """
    device = str(setup.device)
    known: dict[str, StepCost] = {}
    for line in read_lines(path):
        if line.get("device") == device:
            with contextlib.suppress(KeyError, TypeError):  # of another form: measured again
                known.setdefault(line["policy"], StepCost(**line["cost"]))
    wanted = {policy.key: policy for policy in map(absolute, policies)}
    if missing := [policy for key, policy in wanted.items() if key not in known]:
        for key, cost in measure_costs(setup, missing, seed).items():
            if cost.failure is None:  # what failed, for want of memory perhaps, is tried again
                append_line(path, {"policy": key, "device": device, "cost": asdict(cost)})
            known.setdefault(key, cost)
    return [known[absolute(policy).key] for policy in policies]


def measure_costs(setup: TrainingSetup, policies: Sequence[Policy], seed: int) -> dict[str, StepCost]:
    """The cost of each policy, weights absolute, and of the plain student, by the policy's key."""
    batch = next(iter(setup.batches(seed)(0))).to(setup.device)
    student = setup.build_student(seed, True)
    config = setup.config.model_copy(update={"lr": _UNMOVED})
    trainers = {
        policy.key: StudentTrainer(
            policy.key,
            student,
            policy,
            setup.teacher,
            config,
            max(WARM_UP + TIMED, setup.steps_per_epoch * config.epochs),
            seed=seed,
            device=setup.device,
            self_taught=setup.self_taught,
        )
        for policy in (Policy(), *policies)
    }
    held: dict[str, tuple[int, int]] = {}
    times: dict[str, list[float]] = {key: [] for key in trainers}
    failures: dict[str, str] = {}
    began = time.perf_counter()
    for number in range(WARM_UP + TIMED):
        if number >= 4 and time.perf_counter() - began > PATIENCE:
            break
        for key in (key for key in trainers if key not in failures):
            try:
                if number == 0:
                    held[key] = _held(trainers[key], setup, batch)
                times[key].append(_seconds(trainers[key], setup, batch))
            except Exception as error:  # a policy that fails has no cost; the others have
                failures[key] = f"{type(error).__name__}: {error}"
    counted = {key: own[min(WARM_UP, len(own) // 3) :] for key, own in times.items()}
    plain = counted[Policy().key] if Policy().key not in failures else None
    return {
        key: StepCost(failure=failures[key]) if key in failures else _cost(counted[key], plain, held[key])
        for key in trainers
    }


def _cost(own: Sequence[float], plain: Sequence[float] | None, held: tuple[int, int]) -> StepCost:
    ratio = statistics.median(a / b for a, b in zip(own, plain, strict=True)) if plain else None
    student_mb, losses_mb = (round(size / 1e6, 3) for size in held)
    return StepCost(statistics.median(own), ratio, student_mb, losses_mb, len(own))


def _seconds(student: StudentTrainer, setup: TrainingSetup, batch: Batch) -> float:
    """The time of one whole step."""
    _wait(setup.device)
    started = time.perf_counter()
    student.train_step(batch, _teacher_output(student, setup, batch))
    _wait(setup.device)
    return time.perf_counter() - started


def _teacher_output(student: StudentTrainer, setup: TrainingSetup, batch: Batch) -> DetectorOutput | None:
    """What the frozen teacher gives for the batch, where it reads one."""
    if not student.distils or setup.self_taught or setup.teacher is None:
        return None
    with autocast(setup.device, student.config.amp):
        return teacher_forward(setup.teacher, batch, responses=student.model.distiller.reads_responses)


def _held(student: StudentTrainer, setup: TrainingSetup, batch: Batch) -> tuple[int, int]:
    """Bytes held for the backward pass: by the student's own losses, and by the distillation losses beside them."""
    model = student.model.train()
    fixed = [*model.parameters(), *model.buffers(), batch.images]
    answer = _teacher_output(student, setup, batch)
    with seeded(student.seed, setup.device), autocast(setup.device, student.config.amp):
        with bytes_held(fixed) as by_student:
            output = model.student(batch)
        if not student.distils:
            return sum(by_student.values()), 0
        if answer is None:
            answer = teacher_forward(student.student, batch, responses=model.distiller.reads_responses)
        with bytes_held([*fixed, *_tensors(output), *_tensors(answer)]) as by_losses:
            kept = model.distiller(output, answer, batch.targets)
    held = sum(size for place, size in by_losses.items() if place not in by_student)
    del kept  # the graph lived until here, so that no place was given away twice
    return sum(by_student.values()), held


@contextlib.contextmanager
def bytes_held(without: Sequence[Tensor | nn.Parameter]) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves inside for the backward pass, by its address.

    Args:
        without: tensors whose storages do not count.
    """
    known = {_place(tensor) for tensor in without}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _place(tensor) not in known:
            found[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of an output."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, DetectorOutput):
        yield from _tensors(vars(value))
    elif isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, list | tuple):
        yield from (tensor for item in value for tensor in _tensors(item))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
