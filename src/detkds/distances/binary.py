"""Cross-entropies of one score per class, each class on its own."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkds.arguments import piece
from detkds.distances.reduction import row_distance
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair


@DISTANCES.register("bce")
@piece
class BinaryCrossEntropy(Distance):
    """Cross-entropy of every class score with the teacher's probability, summed over the classes.

    With p = sigmoid(t) and q = sigmoid(s): sum_k [-p log q - (1 - p) log(1 - q)] less the teacher's own entropy, which
    does not depend on the student, so that the distance is 0 at equality; averaged over the rows.

    Shapes:  (N, K, ...) -> ()
    Range:   [0, inf), nats.
    Source:  FRS (Du et al., NeurIPS 2021), its classification loss.
    Differs: the paper keeps the entropy; the gradient is the same.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset(("logits",))

    def __call__(self, pair: Pair) -> Tensor:
        return row_distance(pair, lambda s, t: (_cross_entropy(s, t) - _cross_entropy(t, t)).sum(1))


@DISTANCES.register("bkd")
@piece
class BinaryDistillation(Distance):
    """Cross-entropy of every class score, counted by how far the two probabilities are apart.

    With p = sigmoid(t) and q = sigmoid(s): sum_k |p - q|^beta [-p log q - (1 - p) log(1 - q)], averaged over the rows.
    Where both agree, as on nearly all background, a class costs nothing. The first factor carries gradient too.

    Shapes:  (N, K, ...) -> ()
    Range:   [0, inf), nats.
    Source:  BCKD (Yang et al., ICCV 2023), section 3.2, with the gradient of the authors' code; CrossKD (Wang et
             al., CVPR 2024) takes the same with beta 1.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset(("logits",))

    beta: Annotated[float, Field(ge=1)] = 1.0  # below it equality has no gradient

    def __call__(self, pair: Pair) -> Tensor:
        return row_distance(pair, self._rows)

    def _rows(self, student: Tensor, teacher: Tensor) -> Tensor:
        apart = (torch.sigmoid(student) - torch.sigmoid(teacher)).abs()
        return (apart.pow(self.beta) * _cross_entropy(student, teacher)).sum(1)


def _cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher), reduction="none")
