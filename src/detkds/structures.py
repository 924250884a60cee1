"""The data that passes between the parts: images, targets, detector outputs and pairs of tensors.

Shape letters used throughout the package: N images, C channels, H and W map size, K classes, A anchors
per cell, R boxes or regions. **The channel axis is always dimension 1**: a feature map is ``(N, C, H, W)``,
a dense response ``(N, K, A, H, W)`` or ``(N, 4, A, H, W)``, a region response ``(R, K)`` or ``(R, 4)``.
Boxes are xyxy in pixels of the padded batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor

Kind = Literal["feature", "logits", "probability", "regression", "sides", "boxes"]
"""What the numbers of a pair mean; it decides which transforms and distances may follow."""


class Target(TypedDict, total=False):
    """The objects of one image: ``boxes (R, 4)`` xyxy pixels, ``labels (R,)`` contiguous from 0.

    ``crowd_boxes (Q, 4)`` are ignore regions and ``masks (R, H, W)`` bool instance masks, where known.
    """

    boxes: Tensor
    labels: Tensor
    crowd_boxes: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Batch:
    """Images of one step, padded at the right and bottom to a common size.

    Attributes:
        images: ``(N, 3, H, W)`` float in [0, 1], not normalised; padding is 0.
        image_sizes: ``(N, 2)`` int64, height and width of the valid area in pixels.
        image_ids: the COCO image id of each image.
        targets: one :class:`Target` per image, or None where there are no annotations.
        scales: ``(N, 2)`` network pixels per original pixel (y, x); predictions are divided by it.
    """

    images: Tensor
    image_sizes: Tensor
    image_ids: tuple[int, ...]
    targets: list[Target] | None = None
    scales: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        targets = None
        if self.targets is not None:
            targets = [
                Target(**{key: value.to(device, non_blocking=True) for key, value in target.items()})  # type: ignore
                for target in self.targets
            ]
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            image_sizes=self.image_sizes.to(device, non_blocking=True),
            targets=targets,
        )


@dataclass(frozen=True)
class FeatureSpec:
    """One level of a feature pyramid: its channels, and the pixels per cell, a fraction where images are rescaled."""

    channels: int
    stride: float


@dataclass(frozen=True)
class BranchSpec:
    """The two branches of a dense head: the channels and the number of the convolutions in each."""

    channels: int
    convs: int


@dataclass(frozen=True)
class Layout:
    """How a detector's responses are laid out, so that two detectors can be compared row by row.

    Attributes:
        kind: ``dense`` (one row per anchor and cell), ``region`` (one row per proposal), ``query`` (one row per object
            query, whose order means nothing) or ``none`` (features only).
        activation: how class logits become probabilities; ``softmax`` has one more column, the background, at index 0.
        num_classes: foreground classes.
        anchors: anchors per cell (dense only).
        regression: what the four regression numbers are: ``deltas`` to an anchor or proposal, ``sides`` (left, top,
            right, bottom distances in strides), ``centre`` (logits of centre, width and height as fractions of the
            image), or ``none``.
        anchor_key: equal for two dense detectors exactly when their anchors are the same boxes, or the same points and
            strides where the regression is ``sides``.
        class_names: in label order, so that classes are compared by name; empty where they have none.
        bins: equal for two detectors exactly when they predict the sides of boxes as distributions over the same
            distances; empty where they predict none.
    """

    kind: Literal["dense", "region", "query", "none"] = "none"
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    num_classes: int = 0
    anchors: int = 1
    regression: Literal["deltas", "sides", "centre", "none"] = "none"
    anchor_key: str = ""
    class_names: tuple[str, ...] = ()
    bins: str = ""

    def mismatch(self, teacher: Layout, *, boxes: bool = False) -> str | None:
        """Why responses cannot be compared with a teacher's row by row; None where they can.

        A teacher of more classes serves a student that knows some of them, where both name them.
        """
        if "none" in (self.kind, teacher.kind):
            return "one of the detectors offers no responses"
        for name in ("kind", "activation", "anchors") + (("regression", "anchor_key") if boxes else ()):
            own, wanted = getattr(self, name), getattr(teacher, name)
            if own != wanted:
                return f"{name.replace('_', ' ')} differs: student {own}, teacher {wanted}"
        if self.class_names and teacher.class_names:
            if unknown := [name for name in self.class_names if name not in teacher.class_names]:
                return f"the teacher does not know {', '.join(unknown)}; it knows {', '.join(teacher.class_names)}"
        elif self.num_classes != teacher.num_classes:
            return f"num classes differs: student {self.num_classes}, teacher {teacher.num_classes}"
        return None

    def bins_mismatch(self, teacher: Layout) -> str | None:
        """Why the distributions of the sides of boxes cannot be compared with a teacher's; None where they can."""
        if self.bins and self.bins == teacher.bins:
            return None
        bins = (layout.bins or "none" for layout in (self, teacher))
        return "the sides are not distributions over the same bins: student {}, teacher {}".format(*bins)

    def columns(self, teacher: Layout) -> list[int] | None:
        """The teacher's class columns in the student's order, the background's kept; None where they are the same."""
        if not (self.class_names and teacher.class_names) or self.class_names == teacher.class_names:
            return None
        first = int(self.activation == "softmax")
        return list(range(first)) + [first + teacher.class_names.index(name) for name in self.class_names]


@dataclass(frozen=True)
class DetectorInfo:
    """What a detector offers for distillation, known before the first forward pass.

    Attributes:
        features: its pyramid levels by name.
        layout: of its responses.
        masks: whether it predicts instance masks, and needs ``masks`` in its targets.
        regions: which regions its outputs can mark in training; see :attr:`DetectorOutput.region`.
        branches: of its head, where its outputs offer them.
    """

    features: Mapping[str, FeatureSpec]
    layout: Layout = Layout()
    masks: bool = False
    regions: tuple[str, ...] = ()
    branches: BranchSpec | None = None


@dataclass(frozen=True)
class RegionResponse:
    """What a region head says of given proposals: ``logits (R, K+1)``, ``regression`` and ``boxes (R, 4, K+1)``."""

    logits: Tensor
    regression: Tensor
    boxes: Tensor


Branch = Literal["classification", "regression"]
"""Which branch of a dense head."""


class Branches(Protocol):
    """The branches of a dense head over the features of one pass, each split after one of its convolutions.

    Another detector's maps can so go on where this one's stood. Both halves are worked out when they are asked for.
    """

    def before(self, branch: Branch, after: int) -> dict[str, Tensor]:
        """``{level: (N, C, H, W)}``: the map after so many convolutions, normalised and not yet activated."""
        ...

    def finish(self, branch: Branch, after: int, maps: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """What the rest of the branch makes of such maps, as fields of an output: ``{"logits": {level: ...}}``, or
        ``regression``, ``boxes`` and, where it predicts them, ``box_distribution``.

        The gradient goes to the maps, and never to the detector's own weights.
        """
        ...


class Regions(Protocol):
    """Which positions of a student's responses belong to a region, of one pass in training."""

    def __call__(self, name: str, boxes: Sequence[Tensor] | None = None) -> Mapping[str, Tensor]:
        """A weight for every anchor ``{level: (N, 1, A, H, W)}``, or every proposal ``{"roi": (R, 1)}``.

        Without gradient. ``main`` has 1 where the detector's own losses see an object, and ``background`` where they
        see none; some positions, which they leave out, are in neither. ``vlr`` has the IoU of the anchors that lie
        around an object, the valuable localization region of LD (Zheng et al. 2022). ``centerness`` has what an FCOS
        head should predict under that name at positives, and 0 elsewhere.

        Args:
            boxes: ``(R_i, 4)`` of each image, to be taken for the objects in place of the targets.
        """
        ...


@dataclass
class DetectorOutput:
    """Everything one forward pass of a detector gives.

    Attributes:
        features: ``{level: (N, C, H, W)}``.
        image_sizes: ``(N, 2)`` valid height and width in pixels of the padded batch.
        layout: how the responses are laid out.
        logits: raw class scores, ``{level: (N, K, A, H, W)}`` (dense), ``{"roi": (R, K+1)}`` (region) or
            ``{"query": (N, K, Q)}``, K+1 with softmax.
        regression: raw box numbers, ``{level: (N, 4, A, H, W)}``, ``{"roi": (R, 4, K+1)}`` or ``{"query": (N, 4, Q)}``.
        boxes: decoded boxes in pixels, shaped like ``regression``.
        box_distribution: logits ``{level: (N, 4, bins, A, H, W)}`` or ``{"query": (N, 4, bins, Q)}`` over the distance
            of each side (left, top, right, bottom), where the head predicts distributions.
        losses: the detector's own losses; empty where no targets were given.
        proposals: per image ``(R_i, 4)``, the regions that the region responses belong to (region only).
        respond_at: a function from proposals to :class:`RegionResponse` over this pass's features (region only), so
            that a teacher can be asked about the student's proposals without a second forward pass.
        region: tells the regions of the responses, where there were targets; see :class:`Regions`.
        branches: of the head over this pass's features (some dense heads only).
    """

    features: dict[str, Tensor]
    image_sizes: Tensor
    layout: Layout = Layout()
    logits: dict[str, Tensor] = field(default_factory=dict)
    regression: dict[str, Tensor] = field(default_factory=dict)
    boxes: dict[str, Tensor] = field(default_factory=dict)
    box_distribution: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    proposals: list[Tensor] | None = None
    respond_at: Callable[[list[Tensor]], RegionResponse] | None = None
    region: Regions | None = None
    branches: Branches | None = None


@dataclass(frozen=True)
class KnowledgeInput:
    """What a knowledge reads in one step.

    Attributes:
        student, teacher: outputs for the same batch, their features of equal size; their responses too are aligned
            where the knowledge reads them.
        targets: the objects of each image, where known.
        levels: the names of the levels to compare, with their stride in pixels.
        generator: of random numbers, for learned parts that draw.
    """

    student: DetectorOutput
    teacher: DetectorOutput
    targets: Sequence[Target] | None
    levels: Mapping[str, float]
    generator: torch.Generator | None = None

    def features(self) -> Iterator[tuple[str, float, Tensor, Tensor]]:
        """Name, stride, student's and teacher's map ``(N, C, H, W)`` of every level."""
        for level, stride in self.levels.items():
            yield level, stride, self.student.features[level], self.teacher.features[level]

    def boxes(self, knowledge: str) -> list[Tensor]:
        """The ground-truth boxes ``(R_i, 4)`` of every image.

        Raises:
            ValueError: there are no targets; ``knowledge`` is who needs them.
        """
        if self.targets is None:
            raise ValueError(f"knowledge {knowledge!r} needs the targets of the batch; pass them to the distiller")
        return [target["boxes"] for target in self.targets]


@dataclass(frozen=True)
class Detections:
    """Predictions for one image: ``boxes (R, 4)`` xyxy pixels, ``scores (R,)``, ``labels (R,)``; masks where given."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Pair:
    """A student tensor and the teacher tensor it should imitate, at one level.

    Attributes:
        student, teacher: same shape, channel axis at dimension 1.
        kind: what the numbers mean.
        weight: None (all positions count alike), or non-negative and broadcastable to the tensors: size 1 at
            dimension 1 for a weight per position, full size for a weight per element.
        divisor: what weighted sums are divided by, whatever the distance divides them by else.
        factor: what the level's loss is multiplied by (the background half of ``fgbg`` is 0.5).
        decoded: student and teacher boxes in pixels, shaped like the tensors; what ``decode`` puts in their place.
        distributions: logits ``(N, 4, bins, ...)`` of both over the distances of the four sides; what ``edges`` puts
            in their place.
        generator: where random transforms draw from, so that both sides and every candidate share the draw.
        teacher_learns: whether the teacher's side went through learned parts, so that it has a gradient too.
    """

    student: Tensor
    teacher: Tensor
    kind: Kind = "feature"
    weight: Tensor | None = None
    divisor: Tensor | float | None = None
    factor: float = 1.0
    decoded: tuple[Tensor, Tensor] | None = None
    distributions: tuple[Tensor, Tensor] | None = None
    generator: torch.Generator | None = None
    teacher_learns: bool = False

    def map(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Pair:
        """Apply one function to both sides."""
        return replace(self, student=function(self.student), teacher=function(self.teacher), **changes)

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean of ``values``, one per element: sum(w v) / sum(w); 0 where nothing carries weight.

        With a ``divisor``, sum(w v) / divisor.
        """
        return _weighted_mean(values, self.weight, self.divisor)

    def row_mean(self, values: Tensor) -> Tensor:
        """Weighted mean of ``values``, one per row (the tensors' shape without dimension 1)."""
        return _weighted_mean(values, None if self.weight is None else self.weight.amax(1), self.divisor)

    def masked(self) -> Pair:
        """Both sides with the elements of weight 0 set to 0, for distances that look at whole rows or windows."""
        if self.weight is None or self.weight.shape[1] == 1:
            return self
        keep = self.weight > 0
        return self.map(lambda tensor: tensor * keep)


def _weighted_mean(values: Tensor, weight: Tensor | None, divisor: Tensor | float | None) -> Tensor:
    if weight is None:
        return values.sum() / (max(values.numel(), 1) if divisor is None else divisor)
    repeats = values.numel() / max(weight.numel(), 1)
    if values.ndim == weight.ndim > 1 and weight.shape[1] == 1:
        values = values.sum(1, keepdim=True)  # a weight per position needs the sum over its channels only
    if divisor is None:
        divisor = repeats * weight.sum()
        divisor = divisor + (divisor == 0)  # a tiny number in its place would overflow on the way back
    return (weight * values).sum() / divisor
