"""Divergence of distributions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from detkds.arguments import Positive, piece
from detkds.distances.reduction import ROW_KINDS, row_distance
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair

_EPS = 1e-8


@DISTANCES.register("kl")
@piece
class KullbackLeibler(Distance):
    """Divergence of the student's rows from the teacher's, tau^2 KL(T || S), averaged over the rows.

    Scores become distributions by softmax(row / tau) over dimension 1. Numbers that are probabilities already are
    taken as they are, as sum p log(p / q) - p + q with 1e-8 added to both: for rows that sum to one that is the
    divergence, and for others (a sigmoid per class) it is still 0 at equality and positive elsewhere.

    ``mean`` divides by the length of the rows, as the codes of LD (Zheng et al., CVPR 2022) and KD-DETR do.

    Shapes:  (N, C, ...) -> ()
    Range:   [0, inf), nats.
    Source:  Hinton et al. (2015), section 2.
    Differs: the code of DetKDS hands over probabilities where logarithms belong, and gives no divergence.
    """

    kinds: ClassVar[frozenset[Kind]] = ROW_KINDS

    tau: Positive = 1.0
    mean: bool = False

    def __call__(self, pair: Pair) -> Tensor:
        between = _measures if pair.kind == "probability" else self._scores
        scale = self.tau**2 / (max(1, pair.student.shape[1]) if self.mean else 1)
        return scale * row_distance(pair, between)

    def _scores(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_q = torch.log_softmax(student / self.tau, 1)
        log_p = torch.log_softmax(teacher / self.tau, 1)
        return -(log_p.exp() * (log_q - log_p)).sum(1)  # this way round the gradient takes one pass less


def _measures(student: Tensor, teacher: Tensor) -> Tensor:
    q, p = student + _EPS, teacher + _EPS
    return (p * (p.log() - q.log()) - p + q).sum(1)
