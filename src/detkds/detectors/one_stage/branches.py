"""The branches of dense heads, split after one of their convolutions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detkds.precision import full_precision
from detkds.structures import Branch


@dataclass(frozen=True)
class Tower:
    """One branch of a head in parts.

    Attributes:
        blocks: convolution, normalization where there is one, and activation, in turn.
        predict: the head's rows from the last maps of some levels, given with their positions among all levels.
    """

    blocks: Sequence[Iterable[nn.Module]]
    predict: Callable[[list[Tensor], list[int]], dict[str, Tensor]]


class HeadBranches:
    """:class:`detkds.structures.Branches` of a :class:`DenseDetector` over the features of one pass."""

    def __init__(self, detector: Any, features: Mapping[str, Tensor]) -> None:
        self.detector = detector
        self.features = features

    def before(self, branch: Branch, after: int) -> dict[str, Tensor]:
        """See :meth:`detkds.structures.Branches.before`."""
        layers = [list(block) for block in self.detector.tower(self.detector.model.head, branch).blocks[:after]]
        layers[-1].pop()  # the activation
        whole = nn.Sequential(*(layer for block in layers for layer in block))
        return {level: whole(full_precision(feature)) for level, feature in self.features.items()}

    def finish(self, branch: Branch, after: int, maps: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """See :meth:`detkds.structures.Branches.finish`."""
        tower = self.detector.tower(frozen(self.detector.model.head), branch)
        rest = nn.Sequential(*(layer for block in tower.blocks[after:] for layer in block))
        levels = list(self.features)
        places = [levels.index(level) for level in maps]
        rows = tower.predict([rest(torch.relu(level)) for level in maps.values()], places)
        anchors = self.detector.grid(list(self.features.values()))
        return self.detector.responses_of(
            {name: full_precision(value) for name, value in rows.items()}, [anchors[place] for place in places], maps
        )


def frozen(module: nn.Module) -> nn.Module:
    """A module of the same weights, through which no gradient flows into them."""
    return copy.deepcopy(module, {id(tensor): tensor.detach() for tensor in (*module.parameters(), *module.buffers())})


def without_convs(part: nn.Module) -> nn.Module:
    """torchvision's classification or regression head over maps that its ``conv`` has been through already."""
    bare = copy.copy(part)
    bare._modules = {**part._modules, "conv": nn.Sequential()}
    return bare
