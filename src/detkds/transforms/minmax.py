"""Values to the unit interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from detkds.arguments import piece
from detkds.precision import full_precision
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair

_EPS = 1e-6


@TRANSFORMS.register("minmax")
@piece
class MinMax(Transform):
    """Map the smallest value to 0 and the largest to 1: (x - min) / (max - min + 1e-6).

    ``scope`` says whose extremes: each ``sample``'s own, or those of the whole ``batch``.

    Shapes:     any (N, C, ...) -> the same
    Degenerate: constant values become 0.
    Source:     DetKDS, table 2; the paper leaves the scope open, the authors' code takes the batch.
    """

    stage: ClassVar[Stage] = "normalise"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature", "logits": "logits"}

    scope: Literal["sample", "batch"] = "sample"

    def __call__(self, pair: Pair) -> Pair:
        return pair.map(self._stretched) if pair.student.numel() else pair

    def _stretched(self, tensor: Tensor) -> Tensor:
        tensor = full_precision(tensor)
        dims = tuple(range(1 if self.scope == "sample" else 0, tensor.ndim))
        lowest = tensor.amin(dims, keepdim=True)
        return (tensor - lowest) / (tensor.amax(dims, keepdim=True) - lowest + _EPS)
