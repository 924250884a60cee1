"""Another choice of rows for the distances that compare rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from detkds.arguments import check_arguments
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair


@TRANSFORMS.register("reshape")
@dataclass(frozen=True)
class Reshape:
    """One row per image (``N``), or one row of positions per image and channel (``C``).

    The elements and their weights stay the same, so that only distances over rows notice. A feature map becomes rows
    of raw scores: ``reshape(C)`` followed by ``kl`` is channel-wise distillation.

    Shapes:  N: (N, C, H, W) -> (N, C H W), (N, K, A, H, W) -> (N, K A H W), (R, K) -> (1, R K);
             C: (N, C, H, W) -> (N C, H W), (N, K, A, H, W) -> (N K A, H W), (R, K) -> (K, R)
    Source:  DetKDS, table 2; CWD (Shu et al., ICCV 2021), equation 4.
    """

    stage: ClassVar[Literal["response"]] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "logits", "logits": "logits"}

    axis: Literal["N", "C"]

    def __post_init__(self) -> None:
        check_arguments(self)

    def __call__(self, pair: Pair) -> Pair:
        shape = pair.student.shape
        weight = None if pair.weight is None else self._rows(pair.weight.expand(shape))
        return pair.map(self._rows, weight=weight, kind=self.kinds[pair.kind])

    def _rows(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 2:
            return tensor.reshape(1, -1) if self.axis == "N" else tensor.t()
        if self.axis == "N":
            return tensor.flatten(1)
        return tensor.flatten(max(2, tensor.ndim - 2)).flatten(0, -2)
