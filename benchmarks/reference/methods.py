"""What has a reference value: a policy, the repository that it comes from and the call of its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inputs import Inputs
from torch import Tensor

Loss = Callable[[Inputs, Path], Tensor]


@dataclass(frozen=True)
class Method:
    """A policy and how its authors' code works its loss out.

    Attributes:
        repository: name of the folder of the clone.
        loss: from inputs and the path of the clone to a scalar.
        constant: whether the authors' loss has a part that does not depend on the student, which is taken off.
        finest, levels: pixels per cell of the finest level, and the number of the levels.
    """

    policy: str
    repository: str
    loss: Loss
    constant: bool
    finest: int
    levels: int


METHODS: dict[str, Method] = {}


def reference(
    policy: str, repository: str, *, constant: bool = False, finest: int = 8, levels: int = 3
) -> Callable[[Loss], Loss]:
    """Register a function as the reference of a policy."""

    def register(loss: Loss) -> Loss:
        METHODS[policy] = Method(policy, repository, loss, constant, finest, levels)
        return loss

    return register


def cells(tensor: Tensor) -> Tensor:
    """``(N, K, A, H, W)`` as mmdetection's heads give it: ``(N, A K, H, W)``."""
    return tensor.transpose(1, 2).flatten(1, 2)
