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
from detkds.training.member import seeded

LOSS_LIMIT = 100.0
"""DetKDS section 3.3: a distiller whose loss exceeds this, or is not a number, is rejected."""


@dataclass(frozen=True)
class TermProbe:
    """A term of weight 1, measured on the calibration batches.

    Attributes:
        loss: the largest absolute value; nan where any was not finite.
        gradient: root mean square over batches of the gradient's norm on the student's features.
        task_gradient: the same of the task's loss.
    """

    loss: float
    gradient: float
    task_gradient: float

    def absolute_weight(self, term: Term) -> float:
        """The term's weight, with a ratio turned into the factor that gives this ratio of gradient norms."""
        if term.weighting == "absolute" or not self.gradient > 0:
            return term.weight
        return term.weight * self.task_gradient / self.gradient

    def refusal(self, term: Term) -> str | None:
        """Why the term is no use, or None: not finite, too large, or without any gradient."""
        value = self.absolute_weight(term) * self.loss
        if not math.isfinite(value) or not math.isfinite(self.gradient):
            return f"term '{term}': its loss is not finite on the calibration batches"
        if value > LOSS_LIMIT:
            return f"term '{term}': its loss reaches {value:.4g} on the calibration batches, over the limit of {LOSS_LIMIT:g}"
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
    units = list(dict.fromkeys(unit(term) for term in terms))
    device = next(student.parameters()).device
    distillers = {t: Distiller(Policy([t]), student=student, teacher=teacher, seed=seed).to(device) for t in units}
    loss = dict.fromkeys(units, 0.0)
    squares: dict[Term, list[float]] = {t: [] for t in units}
    task: list[float] = []
    student.train()
    teacher.eval()
    for index, batch in enumerate(batches):
        with seeded(seed * 1_000_003 + index, device):
            output = student(batch)
        with torch.no_grad():
            teacher_output = teacher(batch)
        task.append(_squared_gradient(torch.stack(list(output.losses.values())).sum(), output))
        for term, distiller in distillers.items():
            value = sum(distiller(output, teacher_output, batch.targets).values(), torch.zeros((), device=device))
            magnitude = abs(value.item())
            loss[term] = max(loss[term], magnitude) if math.isfinite(magnitude) else math.nan
            squares[term].append(_squared_gradient(value, output))
    mean = {t: math.sqrt(sum(values) / len(values)) for t, values in squares.items()}
    task_gradient = math.sqrt(sum(task) / len(task))
    return {t: TermProbe(loss[t], mean[t], task_gradient) for t in units}


def calibrate(policy: Policy, probes: dict[Term, TermProbe]) -> Policy:
    """The same policy with absolute weights only; terms that are absolute already need no probe."""
    terms = [
        t
        if t.weighting == "absolute"
        else replace(t, weight=probes[unit(t)].absolute_weight(t), weighting="absolute")
        for t in policy
    ]
    return replace(policy, terms=terms)


def unit(term: Term) -> Term:
    """The term with weight 1, absolute: what a probe is keyed by."""
    return replace(term, weight=1.0, weighting="absolute")


def _squared_gradient(loss: Tensor, output: DetectorOutput) -> float:
    if not loss.requires_grad:
        return 0.0
    features = list(output.features.values())
    gradients = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
    return sum(float(g.float().square().sum()) for g in gradients if g is not None)
