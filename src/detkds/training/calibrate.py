"""What is known of a term before any training: is its loss usable, and how strong is it beside the task's?

One student forward and one teacher forward per batch serve all terms asked about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detkds.detectors.base import Detector
from detkds.distiller import Distiller
from detkds.policy import Policy, Term
from detkds.structures import Batch, DetectorOutput
from detkds.training.student import seeded

LOSS_LIMIT = 100.0
"""DetKDS section 3.3: a distiller whose loss exceeds this, or is not a number, is rejected."""


@dataclass(frozen=True)
class TermProbe:
    """A term of weight 1, measured on the calibration batches.

    Attributes:
        loss: the largest absolute value; nan where any was not finite.
        gradient: root mean square over batches of the gradient's norm on the student's features.
        task_gradient: the same of the task's loss.
        failure: why the term could not be measured at all, or empty.
    """

    loss: float
    gradient: float
    task_gradient: float
    failure: str = ""

    def absolute_weight(self, term: Term) -> float:
        """The term's weight, with a ratio turned into the factor that gives this ratio of gradient norms."""
        if term.weighting == "absolute" or not self.gradient > 0:
            return term.weight
        return term.weight * self.task_gradient / self.gradient

    def refusal(self, term: Term) -> str | None:
        """Why the term is no use, or None: not finite, too large, or without any gradient."""
        if self.failure:
            return f"term '{term}': {self.failure}"
        value = self.absolute_weight(term) * self.loss
        if not math.isfinite(value) or not math.isfinite(self.gradient):
            return f"term '{term}': its loss or its gradient is not finite on the calibration batches"
        if value > LOSS_LIMIT:
            return f"term '{term}': its loss reaches {value:.4g} on the calibration batches, over {LOSS_LIMIT:g}"
        if self.gradient == 0 and term.weight > 0:
            return f"term '{term}': its loss has no gradient on the student's features"
        return None


def probe_terms(
    terms: Iterable[Term], student: Detector, teacher: Detector, batches: Sequence[Batch], *, seed: int
) -> dict[Term, TermProbe]:
    """Measure each distinct term on the same batches, from the same student weights.

    ``student`` must be a scratch copy: it is put in training mode, so its running statistics change.
    The result is keyed by the term with weight 1 and absolute weighting (:func:`unit`).
    """
    if not batches:
        raise ValueError("expected at least one calibration batch, got none")
    device = next(student.parameters()).device
    gauges = {t: _Gauge() for t in (unit(term) for term in terms)}
    distillers: dict[Term, Distiller] = {}
    for term, gauge in gauges.items():
        with gauge:
            distillers[term] = Distiller(Policy([term]), student=student, teacher=teacher, seed=seed).to(device)
    task = _Gauge()
    student.train()
    teacher.eval()
    for index, batch in enumerate(batches):
        with seeded(seed * 1_000_003 + index, device):
            output = student(batch)
        with torch.no_grad():
            answer = teacher(batch)
        task.read(torch.stack(list(output.losses.values())).sum(), output)
        for term, gauge in gauges.items():
            if not gauge.failure:
                with gauge:
                    [loss] = distillers[term](output, answer, batch.targets).values()
                    gauge.read(loss, output)
    return {t: TermProbe(gauge.loss, gauge.gradient, task.gradient, gauge.failure) for t, gauge in gauges.items()}


def calibrate(policy: Policy, probes: dict[Term, TermProbe]) -> Policy:
    """The same policy with absolute weights only; terms that are absolute already need no probe."""
    terms = [
        t if t.weighting == "absolute" else replace(t, weight=probes[unit(t)].absolute_weight(t), weighting="absolute")
        for t in policy
    ]
    return replace(policy, terms=terms)


def unit(term: Term) -> Term:
    """The term with a constant weight of 1, absolute: what a probe is keyed by."""
    return replace(term, weight=1.0, weighting="absolute", schedule="constant")


class _Gauge:
    """Collects what batches show of one loss; as a context it records an exception as the reason of a failure."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.squares: list[float] = []
        self.failure = ""

    @property
    def gradient(self) -> float:
        return math.sqrt(sum(self.squares) / max(1, len(self.squares)))

    def read(self, loss: Tensor, output: DetectorOutput) -> None:
        magnitude = abs(loss.item())
        self.loss = max(self.loss, magnitude) if math.isfinite(magnitude) else math.nan
        self.squares.append(_squared_gradient(loss, output))

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failure = f"{type(error).__name__}: {error}"
        return True


def _squared_gradient(loss: Tensor, output: DetectorOutput) -> float:
    if not loss.requires_grad:
        return 0.0
    features = list(output.features.values())
    gradients = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
    return sum(float(g.float().square().sum()) for g in gradients if g is not None)
