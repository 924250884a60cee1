"""One student in training: its distiller, optimizer, schedule and everything needed to go on after a kill."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detkds.config import TrainConfig
from detkds.detectors.base import Detector
from detkds.distiller import Distiller
from detkds.errors import ConfigError
from detkds.policy import Policy
from detkds.structures import Batch, DetectorOutput
from detkds.training.schedule import build_optimizer, lr_factor
from detkds.training.teacher import teacher_forward


class DivergenceError(RuntimeError):
    """A training whose loss is no longer finite."""


class DistilledStudent(nn.Module):
    """The student and its distiller as one module, so that wrappers such as DDP see a single forward."""

    def __init__(self, student: Detector, distiller: Distiller) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller

    def forward(self, batch: Batch, teacher_output: DetectorOutput | None) -> dict[str, Tensor]:
        """The task's and the distiller's losses of one step."""
        output = self.student(batch)
        losses = {f"task/{name}": loss for name, loss in output.losses.items()}
        if teacher_output is not None and len(self.distiller.policy):
            losses.update(self.distiller(output, teacher_output, batch.targets))
        return losses


class StudentTrainer:
    """Trains one student of a population.

    With ``self_taught`` its teacher is the moving average of its own weights (``config.ema``): Mean Teacher, Tarvainen
    and Valpola, NeurIPS 2017.

    Attributes:
        key: what it is called in states and logs.
        failure: the error that ended its training, or None.
        stopped: why it was stopped early though nothing is wrong with it, or None.
        rungs: its AP, a fraction, wherever successive halving measured it.
        curve: one record per pass: the mean of every loss, and the validation AP where it was measured.
        best: epoch, AP and weights of the best validation AP so far, where ``config.keep`` asks for them.
        steps: optimizer steps taken.
    """

    def __init__(
        self,
        key: str,
        student: Detector,
        policy: Policy,
        teacher: Detector | None,
        config: TrainConfig,
        total_steps: int,
        *,
        seed: int,
        device: torch.device,
        distributed: bool = False,
        self_taught: bool = False,
    ) -> None:
        self.key = key
        self.config = config
        self.seed = seed
        self.total_steps = total_steps
        self.device = device
        self.steps = 0
        self.failure: str | None = None
        self.stopped: str | None = None
        self.rungs: list[float] = []
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        distiller = Distiller(
            policy,
            student=student,
            teacher=teacher if teacher is not None else student,
            seed=seed,
            total_steps=total_steps,
        )
        self.model = DistilledStudent(student, distiller).to(device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.amp == "bf16" and device.type == "cpu":
            for layer in self.model.modules():
                if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1:
                    layer.register_forward_pre_hook(_refuse_single_cell)
        self.wrapped: nn.Module = DistributedDataParallel(self.model) if distributed else self.model
        self.optimizer = build_optimizer(self.model.parameters(), config)
        self.scaler = torch.GradScaler(device.type, enabled=config.amp == "fp16")
        self.average = None
        if config.ema is not None:
            self.average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        if self_taught and self.average is None:
            raise ValueError("a student that teaches itself needs the decay of its moving average, config.ema")
        self.self_taught = self_taught
        self._losses: dict[str, Tensor] = {}
        self._counted = 0

    @property
    def alive(self) -> bool:
        """Whether it is still in training."""
        return self.failure is None and self.stopped is None

    @property
    def distils(self) -> bool:
        """Whether it learns from a teacher's output."""
        return len(self.model.distiller.policy) > 0

    @property
    def student(self) -> Detector:
        """The student to evaluate and save: the moving average where there is one."""
        return cast(Detector, self.average.module) if self.average is not None else self.model.student

    def train_step(self, batch: Batch, teacher_output: DetectorOutput | None) -> dict[str, Tensor]:
        """One optimizer step; the losses it was made from, detached. A student that teaches itself asks its average.

        Random draws inside the step depend on the seed and the step alone, so that a student is trained alike alone
        and in company, and after a resume.

        Raises:
            DivergenceError: a loss or the gradient is not finite. Under ``fp16`` such a gradient is no failure: the
                step is left out and the loss scale lowered.
        """
        self.model.train()
        factor = lr_factor(self.steps, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        with seeded(self.seed * 1_000_003 + self.steps, self.device):
            with autocast(self.device, self.config.amp):
                if self.self_taught and self.distils:
                    teacher_output = teacher_forward(
                        self.student, batch, responses=self.model.distiller.reads_responses
                    )
                losses = self.wrapped(batch, teacher_output)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)
        self._check_finite(losses, total, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model.student)
        self.steps += 1
        losses = {name: loss.detach() for name, loss in losses.items()}
        for name, loss in losses.items():
            self._losses[name] = self._losses[name] + loss if name in self._losses else loss
        self._counted += 1
        return losses

    def end_epoch(self) -> dict[str, float]:
        """Close a pass: its record in the curve, the mean of every loss over the steps of the pass."""
        record = {name: loss.item() / max(1, self._counted) for name, loss in self._losses.items()}
        self.curve.append(record)
        self._losses, self._counted = {}, 0
        return record

    def keep_best(self, epoch: int, ap: float) -> None:
        """Remember the weights where this validation AP is the best so far."""
        if not self.best or ap > self.best["ap"]:
            weights = {name: tensor.detach().clone() for name, tensor in self.student.state_dict().items()}
            self.best = {"epoch": epoch, "ap": ap, "weights": weights}

    def restore_best(self) -> None:
        """Give the student the weights of its best validation AP, where they were kept."""
        if self.best:
            self.student.load_state_dict(self.best["weights"])

    def _check_finite(self, losses: Mapping[str, Tensor], total: Tensor, norm: Tensor) -> None:
        """After the backward pass, so that of several processes none waits for the gradients of one that gave up."""
        whole = total.detach() if self.scaler.is_enabled() else total.detach() + norm
        if torch.isfinite(whole):
            return
        culprits = [f"{name} = {loss.item():g}" for name, loss in losses.items() if not loss.isfinite()]
        culprits = culprits or [f"gradient norm = {norm.item():g}"]
        self.optimizer.zero_grad(set_to_none=True)
        raise DivergenceError(f"training diverged, not finite at step {self.steps}: {', '.join(culprits)}")

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed training needs; the teacher is not part of it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "steps": self.steps,
            "failure": self.failure,
            "stopped": self.stopped,
            "rungs": self.rungs,
            "curve": self.curve,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.steps, self.failure = state["steps"], state["failure"]
        self.stopped, self.rungs = state["stopped"], list(state["rungs"])
        self.curve, self.best = list(state["curve"]), dict(state["best"])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a generator of this seed inside, and leave the global one untouched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed % 2**63)
        yield


def _refuse_single_cell(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a map of one cell: torch's weight gradient of it is unwritten on the CPU in bfloat16 (torch 2.15)."""
    if layer.training and inputs[0].shape[-2:].numel() == 1:
        raise ConfigError(
            f"train.amp: bf16 on a CPU needs feature maps of more than one cell before every strided convolution, got"
            f" {tuple(inputs[0].shape)} before {layer}: take a larger data.size or leave train.amp out"
        )


def autocast(device: torch.device, amp: str | None) -> torch.autocast:
    """The autocast context of a training configuration."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=amp is not None)
