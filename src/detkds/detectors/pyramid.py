"""A backbone body with a feature pyramid on top, and the anchors that lie on its cells."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from detkds.detectors.backbones import Backbone

ONE_STAGE_STRIDES: Mapping[str, int] = {f"p{k}": 2**k for k in range(3, 8)}
TWO_STAGE_STRIDES: Mapping[str, int] = {f"p{k}": 2**k for k in range(2, 7)}


class Pyramid(nn.Module):
    """Images ``(N, 3, H, W)`` to ``{level: (N, channels, ceil(H / stride), ceil(W / stride))}``.

    Sides that are no multiple of 32 are padded with zeros at the right and bottom, so that a cell of a level always
    covers exactly ``stride`` pixels. The parameter names are those of torchvision's ``BackboneWithFPN``.

    Args:
        backbone: the body.
        strides: ``{level: stride}`` of all levels; those that the body does not give are made by ``extra``.
        channels: channels of every level.
        extra: makes the coarser levels.
        norm: normalization of the levels.
    """

    def __init__(
        self,
        backbone: Backbone,
        strides: Mapping[str, int],
        channels: int,
        extra: ExtraFPNBlock,
        norm: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.body = backbone.network
        self.fpn = FeaturePyramidNetwork(list(backbone.channels.values()), channels, extra, norm)
        self.out_channels = channels
        self.strides = dict(strides)
        self._channels_last = backbone.channels_last
        names = {stride: level for level, stride in strides.items()}
        self._picks = [(names[stride], position) for stride, position in backbone.positions.items()]
        self._multiple = max(backbone.channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels from fine to coarse."""
        height, width = images.shape[-2:]
        padding = (0, -width % self._multiple, 0, -height % self._multiple)
        maps = self.body(F.pad(images, padding) if any(padding) else images)
        picked = OrderedDict((name, self._channels_first(maps[position])) for name, position in self._picks)
        return OrderedDict(zip(self.strides, self.fpn(picked).values(), strict=True))

    def _channels_first(self, features: Tensor) -> Tensor:
        return features.permute(0, 3, 1, 2).contiguous() if self._channels_last else features


def one_stage_pyramid(backbone: Backbone, channels: int, p6_from: str = "p5") -> Pyramid:
    """Levels p3 to p7; p6 and p7 are strided convolutions over p5 or over the body's last map (``c5``)."""
    inputs = channels if p6_from == "p5" else backbone.channels[32]
    extra = LastLevelP6P7(inputs, channels)
    extra.use_P5 = p6_from == "p5"
    return Pyramid(backbone, ONE_STAGE_STRIDES, channels, extra)


def two_stage_pyramid(backbone: Backbone, channels: int, norm: Callable[..., nn.Module] | None = None) -> Pyramid:
    """Levels p2 to p6; p6 is p5 subsampled (Lin et al. 2017, Feature Pyramid Networks, section 4.1)."""
    return Pyramid(backbone, TWO_STAGE_STRIDES, channels, LastLevelMaxPool(), norm)


class AnchorGrid:
    """The anchors of a pyramid's levels, kept for each grid size met.

    torchvision infers a level's stride from the sizes of image and map, which is off where they do not divide;
    here the true strides are used. As in torchvision, cell ``(i, j)`` is centerd at ``(i, j) * stride``.

    Args:
        sizes, ratios: of each level: side lengths in pixels (square root of the area) and heights over widths.
        strides: of each level, in pixels.

    Attributes:
        key: the same for grids of the same anchors.
        points_key: the same for grids of the same points, for responses that are relative to points and strides alone.
    """

    def __init__(
        self, sizes: Sequence[tuple[float, ...]], ratios: Sequence[tuple[float, ...]], strides: Sequence[int]
    ) -> None:
        self.generator = AnchorGenerator(tuple(sizes), tuple(ratios))
        self.strides = tuple(strides)
        self.points_key = f"cell-corner strides={list(strides)}"
        self.key = f"{self.points_key} sizes={list(sizes)} ratios={list(ratios)}"
        self._kept: OrderedDict[tuple[object, ...], list[Tensor]] = OrderedDict()

    @classmethod
    def scaled(cls, scales: Sequence[float], ratios: Sequence[float], strides: Sequence[int]) -> AnchorGrid:
        """Anchors whose sides are ``scales`` times the stride on every level, cut to whole pixels as in torchvision."""
        sizes = [tuple(max(1, int(scale * stride)) for scale in scales) for stride in strides]
        return cls(sizes, [tuple(map(float, ratios))] * len(strides), strides)

    @property
    def per_cell(self) -> int:
        """Anchors per cell."""
        return self.generator.num_anchors_per_location()[0]

    def __call__(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors ``(H W A, 4)`` of each level in float32, for maps ``(N, C, H, W)``; not to be written to."""
        grids = [tuple(level.shape[-2:]) for level in features]
        device = features[0].device
        key = (*grids, device)
        if key not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                self.generator.set_cell_anchors(torch.float32, device)
                steps = [[stride, stride] for stride in self.strides]
                self._kept[key] = self.generator.grid_anchors(grids, steps)  # type: ignore[arg-type]
            if len(self._kept) > 32:
                self._kept.popitem(last=False)
        return self._kept[key]
