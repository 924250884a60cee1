"""Another choice of rows for the distances that compare rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from detkds.arguments import piece
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair


@TRANSFORMS.register("reshape")
@piece
class Reshape(Transform):
    """One row per image (``N``), per image and channel (``C``), per class alone (``K``), or per cell (``cell``).

    The elements and their weights stay the same, so that only distances over rows notice. A feature map becomes rows
    of raw scores: ``reshape(C)`` followed by ``kl`` is channel-wise distillation. With ``K`` a row holds the positions
    of the whole batch, without those of weight 0.

    Shapes:  N: (N, C, H, W) -> (N, C H W), (N, K, A, H, W) -> (N, K A H W), (R, K) -> (1, R K);
             C: (N, C, H, W) -> (N C, H W), (N, K, A, H, W) -> (N K A, H W), (R, K) -> (K, R);
             K: (N, C, H, W) -> (C, M), (N, K, A, H, W) -> (K, M), (R, K) -> (K, M), M the positions that count;
             cell: (N, K, A, H, W) -> (N, K A, H, W), the classes of all anchors in one row; others stay as they are
    Source:  DetKDS, table 2; CWD (Shu et al., ICCV 2021), equation 4; the relations of DIST (Huang et al., NeurIPS
             2022) run along rows of cells, and of K.
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "logits", "logits": "logits", "probability": "probability"}

    axis: Literal["N", "C", "K", "cell"]

    def __call__(self, pair: Pair) -> Pair:
        shape = pair.student.shape
        weight = None if pair.weight is None else self._rows(pair.weight.expand(shape))
        rows = pair.map(self._rows, weight=weight, kind=self.kinds[pair.kind])
        return rows if weight is None or self.axis != "K" else _without_weightless(rows, weight)

    def _rows(self, tensor: Tensor) -> Tensor:
        if self.axis == "cell":
            return tensor.flatten(1, 2) if tensor.ndim == 5 else tensor
        if self.axis == "K":
            return tensor.transpose(0, 1).flatten(1)
        if tensor.ndim == 2:
            return tensor.reshape(1, -1) if self.axis == "N" else tensor.t()
        if self.axis == "N":
            return tensor.flatten(1)
        return tensor.flatten(max(2, tensor.ndim - 2)).flatten(0, -2)


def _without_weightless(pair: Pair, weight: Tensor) -> Pair:
    """The pair without the columns of which nothing counts."""
    counts = (weight > 0).any(0)
    return pair.map(lambda tensor: tensor[:, counts], weight=weight[:, counts])
