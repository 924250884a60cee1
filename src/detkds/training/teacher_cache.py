"""The teacher's outputs of a search, computed once and read back by every later population.

All populations of a search train on the same batches: same seed, same epochs, same draws of every augmentation. So the
frozen teacher gives the same outputs each time, and they can be kept on disk, by epoch and batch: those of a flipped
image beside, and never in place of, those of the image as it is.

Outputs are rounded to half precision *whether they are read or computed*. That is what makes the choice between both a
matter of speed alone: a search that is killed, runs out of disk or decides otherwise on another day ends with the same
trials, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from detkds.detectors.base import Detector
from detkds.structures import Batch, DetectorOutput
from detkds.training.batch_files import BatchFiles
from detkds.training.teacher import teacher_forward

_FIELDS = ("features", "logits", "regression", "box_distribution")
_HALF_MAX = torch.finfo(torch.float16).max
_T = TypeVar("_T")


@dataclass(frozen=True)
class Decision:
    """How a search gets its teacher's outputs, and what that was decided from.

    Attributes:
        way: ``cached`` on disk; ``shared``, one forward pass for each batch of a population; ``live``, the same where
            a population is one student.
        reason: what stood against ``cached`` beside the times, or empty.
        forward, write, read: seconds per batch.
        batches: of one population.
        kept: how many of them are kept on disk.
        batch_bytes: of one batch on disk.
        populations: how many are expected to train.
    """

    way: Literal["live", "shared", "cached"]
    reason: str
    forward: float
    write: float
    read: float
    batches: int
    kept: int
    batch_bytes: int
    populations: int

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1000 * getattr(self, name):.3g} ms" for name in ("forward", "write", "read"))
        stored = self.kept or self.batches
        batches = f"{stored} of {self.batches} batches" if stored < self.batches else f"{stored} batches"
        size = f"{stored * self.batch_bytes / 1e6:.3g} MB"
        text = f"teacher: {self.way} ({times} per batch; {batches}, {size}; {self.populations} populations)"
        return f"{text}: {self.reason}" if self.reason else text

    @property
    def mean(self) -> float:
        """Seconds per batch, on the mean over all batches of all populations."""
        share = self.kept / max(1, self.batches)
        kept = kept_cost(self.forward, self.write, self.read, self.populations) / max(1, self.populations)
        return share * kept + (1 - share) * self.forward

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def kept_cost(forward: float, write: float, read: float, populations: int) -> float:
    """What a batch costs over all populations where its outputs are kept: the first computes them, the others read."""
    return forward + write + (populations - 1) * read


class TeacherCache:
    """Gives the teacher's outputs to the training loop: an :data:`detkds.training.teacher.TeacherForward`.

    The first batch asked for decides: it is computed, written and read, and with P populations expected outputs are
    kept where ``forward + write + (P - 1) read < P forward`` and at least one batch has room. What has no room is
    computed each time. Outputs that the teacher cannot restore (:meth:`detkds.detectors.base.Detector.restore`) are
    neither kept nor rounded.

    Args:
        teacher: frozen.
        files: where outputs are kept.
        batches: of one population, over all its epochs.
        populations: how many are expected to train on them.
        shared: whether a population is more than one student.
        mode: ``auto`` decides by cost; ``cached`` keeps what there is room for.
        decision: one that was made before for the same ``files``.
        on_decision: called with a new one.
    """

    def __init__(
        self,
        teacher: Detector,
        files: BatchFiles,
        *,
        batches: int,
        populations: int,
        shared: bool = True,
        mode: Literal["auto", "cached"] = "auto",
        decision: Decision | None = None,
        on_decision: Callable[[Decision], None] | None = None,
    ) -> None:
        self.teacher = teacher
        self.files = files
        self.batches = batches
        self.populations = populations
        self.shared = shared
        self.mode = mode
        self.decision = decision
        self.on_decision = on_decision

    def __call__(self, epoch: int, index: int, batch: Batch, responses: bool) -> DetectorOutput:
        """The output for a batch on the teacher's device; boxes and region responses follow from the rounded maps."""
        whole = responses or getattr(self.teacher, "responses", None) is None  # only a dense head can be left out
        if self.decision is None:
            self.decision = self._decide(epoch, index, batch, whole)
            if self.on_decision is not None:
                self.on_decision(self.decision)
        cached = self.decision.way == "cached"
        if cached and (output := self._read(epoch, index, batch, whole)) is not None:
            return output
        output = teacher_forward(self.teacher, batch, responses=whole)
        rounded = compact(output)
        if cached:
            self._write(epoch, index, batch, rounded, whole)
        return self._rebuild(rounded, batch) or output

    def _decide(self, epoch: int, index: int, batch: Batch, whole: bool) -> Decision:
        device = batch.images.device
        output, forward = _timed(lambda: teacher_forward(self.teacher, batch, responses=whole), device)
        rounded = compact(output)
        written, write = _timed(lambda: self._write(epoch, index, batch, rounded, whole), device)
        found, read = _timed(lambda: self._read(epoch, index, batch, whole), device)
        size = sum(tensor.nbytes for tensor in rounded.values())
        kept = min(self.batches, self.files.limit // max(1, size))
        cheaper = kept_cost(forward, write, read, self.populations) < self.populations * forward
        reason = ""
        if self._rebuild(rounded, batch) is None:
            reason = "its outputs cannot be restored from stored ones"
        elif not written:
            reason = self.files.fault or f"no room for one batch in {self.files.limit / 1e6:.3g} MB"
        elif found is None:
            reason = "what was written cannot be read"
        cached = not reason and (cheaper or self.mode == "cached")
        if not cached:
            self.files.remove(epoch, index)
        return Decision(
            way="cached" if cached else "shared" if self.shared else "live",
            reason=reason,
            forward=forward,
            write=write,
            read=read,
            batches=self.batches,
            kept=kept if cached else 0,
            batch_bytes=size,
            populations=self.populations,
        )

    def _write(self, epoch: int, index: int, batch: Batch, rounded: Mapping[str, Tensor], whole: bool) -> bool:
        if self.files.fault:
            return False
        tensors = {name: tensor.cpu() for name, tensor in rounded.items()}
        return self.files.write(epoch, index, batch, tensors, responses=whole)

    def _read(self, epoch: int, index: int, batch: Batch, whole: bool) -> DetectorOutput | None:
        found = self.files.read(epoch, index, batch, responses=whole)
        return None if found is None else self._rebuild(found, batch)

    def _rebuild(self, rounded: Mapping[str, Tensor], batch: Batch) -> DetectorOutput | None:
        """The output in float32 on the batch's device."""
        output = DetectorOutput({}, batch.image_sizes, self.teacher.info.layout)
        for name, tensor in rounded.items():
            field, _, level = name.partition("/")
            getattr(output, field)[level] = tensor.to(batch.images.device).float()
        return self.teacher.restore(output)


def compact(output: DetectorOutput) -> dict[str, Tensor]:
    """The maps and raw responses as ``{"features/p3": ...}``, contiguous and in half precision.

    What autocast gave in 16 bits stays as it is; a map with a number that half precision cannot hold stays in full.
    """
    return {
        f"{field}/{level}": _rounded(tensor) for field in _FIELDS for level, tensor in getattr(output, field).items()
    }


def _rounded(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    if tensor.element_size() <= 2 or not tensor.numel():
        return tensor
    low, high = torch.aminmax(tensor)
    return tensor.half() if bool((low >= -_HALF_MAX) & (high <= _HALF_MAX)) else tensor


def _timed(call: Callable[[], _T], device: torch.device) -> tuple[_T, float]:
    """What a call gives, and the seconds of the faster one of two."""

    def once() -> tuple[_T, float]:
        _wait(device)
        began = time.perf_counter()
        result = call()
        _wait(device)
        return result, time.perf_counter() - began

    return min(once(), once(), key=lambda timed: timed[1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
