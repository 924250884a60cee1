"""What one-stage detectors share: one pass over anchors on a pyramid, responses per level, predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from detkds.detectors.backbones import Backbone
from detkds.detectors.base import Detector
from detkds.detectors.matching import BACKGROUND, Objects, of_one_class
from detkds.detectors.one_stage.branches import HeadBranches, Tower
from detkds.detectors.one_stage.suppression import Suppression
from detkds.detectors.options import BodyOptions, Count, CountOrNone, Fraction
from detkds.detectors.pyramid import AnchorGrid, Pyramid
from detkds.errors import ConfigError
from detkds.precision import full_precision
from detkds.structures import (
    Batch,
    Branch,
    BranchSpec,
    Detections,
    DetectorInfo,
    DetectorOutput,
    FeatureSpec,
    Layout,
    Regions,
    Target,
)


class DenseOptions(BodyOptions):
    """Options of every one-stage detector."""

    nms_threshold: Fraction = 0.6
    """IoU above which the lower of two boxes of a class is dropped."""
    topk_candidates: Count = 1000
    """Pairs of box and class that each level may enter into suppression."""
    p6_from: Literal["p5", "c5"] = "p5"
    """What the level p6 is made from: ``p5``, or the body's last map."""
    head_convs: CountOrNone = 4
    """3 x 3 convolutions in each branch of the head."""


class MatchingOptions(DenseOptions):
    """Options of those whose boxes are matched to objects by IoU."""

    nms_threshold: Fraction = 0.5
    """IoU above which the lower of two boxes of a class is dropped."""
    foreground_iou: Fraction = 0.5
    """IoU from which a box takes an object."""
    background_iou: Annotated[Fraction, Field(validate_default=True)] = 0.4
    """IoU below which a box is background."""

    @field_validator("background_iou")
    @classmethod
    def _not_above_foreground(cls, value: float, info: ValidationInfo) -> float:
        if value > info.data.get("foreground_iou", value):
            raise ConfigError(f"background_iou: expected <= {info.data['foreground_iou']}, got {value}")
        return value


class DenseModel(nn.Module):
    """A pyramid and the head over its levels, for what torchvision has no model of."""

    def __init__(self, backbone: Pyramid, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class DenseDetector(Detector):
    """A one-stage detector: rows of numbers, one for each anchor on each cell of a pyramid.

    ``model`` is torchvision's model of the same name or a :class:`DenseModel`. Two of its parts are used, and the names
    of all its parameters: ``backbone``, a :class:`Pyramid`, and ``head``, which maps the list of levels to rows
    ``(N, M, ...)`` of all levels in turn, cell by cell and anchor by anchor, ``cls_logits (N, M, K)`` and
    ``bbox_regression (N, M, 4)`` among them and, where sides are predicted as distributions, their logits
    ``bbox_distribution (N, M, 4 bins)``. Images are normalized and resized elsewhere.

    Attributes:
        regions: the names of the regions that an output can mark.
        responses: whether a pass in evaluation mode runs the head. Set it to False on a frozen teacher whose
            features alone are imitated: the head is most of the cost of a pass. ``predict`` is not affected.
    """

    regions: ClassVar[tuple[str, ...]] = ("main", "background")

    def __init__(
        self,
        options: DenseOptions,
        body: Backbone,
        model: nn.Module,
        grid: AnchorGrid,
        *,
        regression: Literal["deltas", "sides"],
        bins: str = "",
    ) -> None:
        super().__init__(options.class_names, options.mean or body.mean, options.std or body.std)
        self.model: Any = model
        self.grid = grid
        self.responses = True
        self.suppress = Suppression(
            options.score_threshold, options.nms_threshold, options.topk_candidates, options.max_detections
        )
        key = grid.key if regression == "deltas" else grid.points_key
        names = options.class_names
        layout = Layout("dense", "sigmoid", len(names), grid.per_cell, regression, key, names, bins)
        strides: dict[str, int] = self.model.backbone.strides
        self.info = DetectorInfo(
            {level: FeatureSpec(self.model.backbone.out_channels, stride) for level, stride in strides.items()},
            layout,
            regions=self.regions,
            branches=self._branch_spec(),
        )

    @abstractmethod
    def losses(self, heads: dict[str, Tensor], anchors: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The detector's own losses; ``heads`` hold ``(N, M, ...)`` rows, ``anchors`` ``(H W A, 4)`` per level."""

    @abstractmethod
    def match(self, heads: dict[str, Tensor], anchors: list[Tensor], objects: Objects) -> Tensor:
        """The object of each anchor, ``(N, M)`` indices as in :mod:`detkds.detectors.matching`."""

    def region(self, name: str, heads: dict[str, Tensor], anchors: list[Tensor], objects: Objects) -> Tensor:
        """The weights ``(N, M)`` of one of :attr:`regions`; see :class:`~detkds.structures.Regions`."""
        matched = self.match(heads, anchors, objects)
        return (matched == BACKGROUND if name == "background" else matched >= 0).to(objects.boxes.dtype)

    @abstractmethod
    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """Boxes ``(N, M, 4)`` in pixels from the head's numbers ``(N, M, 4)`` at ``anchors (M, 4)``."""

    def select(self, heads: dict[str, Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """Detections of each image, whose valid area has this height and width; see :class:`Suppression`."""
        boxes = self.decode(heads["bbox_regression"], torch.cat(anchors))
        return self.suppress(heads["cls_logits"].sigmoid(), boxes, [len(level) for level in anchors], sizes)

    def tower(self, head: nn.Module, branch: Branch) -> Tower | None:
        """One branch of a head like this detector's own, in parts; None where it has no two branches."""
        return None

    def forward(self, batch: Batch) -> DetectorOutput:
        """One pass; see :meth:`Detector.forward`. Losses are given in training mode, where there are targets."""
        features: dict[str, Tensor] = self.model.backbone(self.normalize(batch))
        output = DetectorOutput(features, batch.image_sizes, self.info.layout)
        if not (self.training or self.responses):
            return output
        heads, anchors = self._heads(features)
        output = replace(output, **self.responses_of(heads, anchors, features), branches=self._branches(features))
        if self.training and batch.targets is not None:
            output.losses = self.losses(heads, anchors, batch)
            output.region = self._regions(heads, anchors, batch.targets, features)
        return output

    def responses_of(
        self, heads: dict[str, Tensor], anchors: list[Tensor], maps: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        """The fields of an output that rows of these levels make, boxes decoded; ``maps`` are of the levels' sizes."""
        fields: dict[str, dict[str, Tensor]] = {}
        if "cls_logits" in heads:
            fields["logits"] = self._per_level(heads["cls_logits"], maps)
        if "bbox_regression" in heads:
            fields["regression"] = self._per_level(heads["bbox_regression"], maps)
            fields["boxes"] = self._per_level(self.decode(heads["bbox_regression"], torch.cat(anchors)), maps)
        if "bbox_distribution" in heads:
            sides = self._per_level(heads["bbox_distribution"], maps)
            fields["box_distribution"] = {level: bins.unflatten(1, (4, -1)) for level, bins in sides.items()}
        return fields

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image; see :meth:`Detector.predict`."""
        heads, anchors = self._heads(self.model.backbone(self.normalize(batch)))
        return self.select(heads, anchors, [(height, width) for height, width in batch.image_sizes.tolist()])

    def restore(self, output: DetectorOutput) -> DetectorOutput:
        """Boxes are decoded from the regression, and branches read the features; see :meth:`Detector.restore`."""
        if not output.regression:
            return output
        rows = torch.cat([level.permute(0, 3, 4, 2, 1).flatten(1, 3) for level in output.regression.values()], dim=1)
        anchors = self.grid(list(output.features.values()))
        boxes = self._per_level(self.decode(rows, torch.cat(anchors)), output.features)
        return replace(output, boxes=boxes, branches=self._branches(output.features))

    def home_state_dict(self) -> dict[str, Tensor]:
        """The live weights under the model's own names, which are torchvision's where it has the model."""
        return self.model.state_dict()

    @staticmethod
    def is_backbone(name: str) -> bool:
        """Whether a state-dict name belongs to the timm body."""
        return name.startswith("model.backbone.body.")

    def _heads(self, features: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        levels = list(features.values())
        heads: dict[str, Tensor] = self.model.head(levels)
        return {name: full_precision(rows) for name, rows in heads.items()}, self.grid(levels)

    def _regions(
        self,
        heads: dict[str, Tensor],
        anchors: list[Tensor],
        targets: Sequence[Target],
        features: dict[str, Tensor],
    ) -> Regions:
        """What marks the regions of this pass; those of the targets are worked out once, where somebody asks."""

        @torch.no_grad()
        def marked(name: str, objects: Objects) -> Mapping[str, Tensor]:
            rows = self.region(name, heads, anchors, objects)
            return self._per_level(rows[..., None], features)

        known = cache(lambda name: marked(name, Objects.collect(targets)))

        def region(name: str, boxes: Sequence[Tensor] | None = None) -> Mapping[str, Tensor]:
            return known(name) if boxes is None else marked(name, Objects.collect(of_one_class(boxes)))

        return region

    def _branches(self, features: dict[str, Tensor]) -> HeadBranches | None:
        return None if self.info.branches is None else HeadBranches(self, features)

    def _branch_spec(self) -> BranchSpec | None:
        tower = self.tower(self.model.head, "classification")
        return None if tower is None else BranchSpec(self.model.backbone.out_channels, len(tower.blocks))

    def _per_level(self, rows: Tensor, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows ``(N, sum of H W A, C)`` as views ``{level: (N, C, A, H, W)}``."""
        anchors = self.grid.per_cell
        shapes = [level.shape[-2:] for level in features.values()]
        parts = rows.split([height * width * anchors for height, width in shapes], dim=1)
        return {
            level: part.unflatten(1, (height, width, anchors)).permute(0, 4, 3, 1, 2)
            for level, part, (height, width) in zip(features, parts, shapes, strict=True)
        }


def head_norm(channels: int) -> nn.GroupNorm:
    """Group normalization with the most groups, up to 32, of two channels at least (Wu and He 2018).

    A group of one channel would be a single number on a map of one cell, with nothing to normalize by.
    """
    return nn.GroupNorm(max((n for n in range(1, 33) if channels % n == 0 and n < channels), default=1), channels)


def select_as_torchvision(
    model: Any, heads: dict[str, Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]
) -> list[Detections]:
    """:meth:`DenseDetector.select` by torchvision's own post-processing."""
    lengths = [len(level) for level in anchors]
    split = {name: list(rows.split(lengths, dim=1)) for name, rows in heads.items()}
    detections = model.postprocess_detections(split, [anchors] * len(sizes), sizes)
    return [Detections(image["boxes"], image["scores"], image["labels"]) for image in detections]
