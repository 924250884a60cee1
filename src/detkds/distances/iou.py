"""Distances of boxes: the intersection-over-union family."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from detkds.arguments import piece
from detkds.distances.reduction import BOX_KINDS, row_distance
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair

_EPS, _LEAST_IOU = 1e-7, 1e-6


class _Overlap(NamedTuple):
    """Two boxes per row, measured in units of the longer side of the smallest box that encloses both.

    The sizes and ``enclosing`` hold widths, then heights, at dimension 0.
    """

    iou: Tensor
    union: Tensor
    student_size: Tensor
    teacher_size: Tensor
    enclosing: Tensor
    squared_offset: Tensor

    @property
    def offset_share(self) -> Tensor:
        """Squared distance of the centres as a share of the enclosing box's squared diagonal."""
        return self.squared_offset / self.enclosing.square().sum(0).clamp_min(_EPS)


@DISTANCES.register("iou")
@piece
class IoU(Distance):
    """One minus intersection over union, or minus its logarithm.

    Four sides (e1, e2, e3, e4) are read as the box (-e1, -e2, e3, e4) around an origin that both share. All members
    of the family are free of scale; boxes without area have IoU 0, or 1 where both are the same.

    ``log`` gives -log IoU, of an IoU of at least 1e-6, below which there is no gradient.

    Shapes:  (N, 4, ...) -> (), the four numbers at dimension 1
    Range:   [0, 1], with ``log`` [0, 13.9], no unit; averaged over the rows by weight.
    Source:  UnitBox (Yu et al., 2016), section 3.2, which has the logarithm.
    """

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS

    log: bool = False

    def __call__(self, pair: Pair) -> Tensor:
        def distance(student: Tensor, teacher: Tensor) -> Tensor:
            overlap = _overlap(student, teacher).iou
            return -overlap.clamp_min(_LEAST_IOU).log() if self.log else 1 - overlap

        return row_distance(_as_boxes(pair), distance)


@DISTANCES.register("giou")
@piece
class GIoU(Distance):
    """One minus IoU, plus the share of the enclosing box that neither box covers.

    Shapes:  (N, 4, ...) -> (), the four numbers at dimension 1
    Range:   [0, 2], no unit; averaged over the rows by weight.
    Source:  Rezatofighi et al. (CVPR 2019), algorithm 1.
    """

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS

    def __call__(self, pair: Pair) -> Tensor:
        def distance(student: Tensor, teacher: Tensor) -> Tensor:
            both = _overlap(student, teacher)
            enclosing = both.enclosing[0] * both.enclosing[1]
            return 1 - both.iou + (enclosing - both.union) / enclosing.clamp_min(_EPS)

        return row_distance(_as_boxes(pair), distance)


@DISTANCES.register("diou")
@piece
class DIoU(Distance):
    """One minus IoU, plus the squared distance of the centres over the enclosing box's squared diagonal.

    Shapes:  (N, 4, ...) -> (), the four numbers at dimension 1
    Range:   [0, 2], no unit; averaged over the rows by weight.
    Source:  Zheng et al. (AAAI 2020), equation 7.
    """

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS

    def __call__(self, pair: Pair) -> Tensor:
        def distance(student: Tensor, teacher: Tensor) -> Tensor:
            both = _overlap(student, teacher)
            return 1 - both.iou + both.offset_share

        return row_distance(_as_boxes(pair), distance)


@DISTANCES.register("ciou")
@piece
class CIoU(Distance):
    """The DIoU distance plus alpha v, which compares aspect ratios.

    v = 4 / pi^2 (atan(w_t / h_t) - atan(w_s / h_s))^2, alpha = v / (1 - IoU + v) without gradient.

    Shapes:  (N, 4, ...) -> (), the four numbers at dimension 1
    Range:   [0, 3], no unit; averaged over the rows by weight.
    Source:  Zheng et al. (AAAI 2020), equations 8 to 11.
    """

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS

    def __call__(self, pair: Pair) -> Tensor:
        def distance(student: Tensor, teacher: Tensor) -> Tensor:
            both = _overlap(student, teacher)
            aspect = 4 / math.pi**2 * (_angle(both.teacher_size) - _angle(both.student_size)).square()
            alpha = (aspect / (1 - both.iou + aspect).clamp_min(_EPS)).detach()
            return 1 - both.iou + both.offset_share + alpha * aspect

        return row_distance(_as_boxes(pair), distance)


@DISTANCES.register("eiou")
@piece
class EIoU(Distance):
    """The DIoU distance plus the squared differences of width and height over those of the enclosing box.

    Shapes:  (N, 4, ...) -> (), the four numbers at dimension 1
    Range:   [0, 4], no unit; averaged over the rows by weight.
    Source:  Efficient IoU, Zhang et al. (Neurocomputing 2022), equation 7.
    Differs: DetKDS prints an unpublished "exclusive" IoU under this name.
    """

    kinds: ClassVar[frozenset[Kind]] = BOX_KINDS

    def __call__(self, pair: Pair) -> Tensor:
        def distance(student: Tensor, teacher: Tensor) -> Tensor:
            both = _overlap(student, teacher)
            gap = (both.student_size - both.teacher_size) / both.enclosing.clamp_min(_EPS)
            return 1 - both.iou + both.offset_share + gap.square().sum(0)

        return row_distance(_as_boxes(pair), distance)


def _as_boxes(pair: Pair) -> Pair:
    """Sides around a common origin become xyxy boxes; boxes stay."""
    if pair.student.shape[1] != 4:
        raise ValueError(f"expected four numbers at dimension 1, got shape {tuple(pair.student.shape)}")
    if pair.kind != "sides":
        return pair
    sign = pair.student.new_tensor([-1.0, -1.0, 1.0, 1.0]).view(1, 4, *[1] * (pair.student.ndim - 2))
    return pair.map(lambda sides: sides * sign, kind="boxes")


def _overlap(student: Tensor, teacher: Tensor) -> _Overlap:
    student, teacher = student.movedim(1, 0), teacher.movedim(1, 0)  # whole columns, which are fast to compute with
    same = (student == teacher).all(0)
    with torch.no_grad():
        # The smallest box around all corners also encloses a box whose corners are swapped.
        bottom = torch.minimum(torch.minimum(student[:2], student[2:]), torch.minimum(teacher[:2], teacher[2:]))
        top = torch.maximum(torch.maximum(student[:2], student[2:]), torch.maximum(teacher[:2], teacher[2:]))
        longer = (top - bottom).amax(0)
        unit = torch.where(longer > 0, longer, 1.0)
    low, high = (student / unit).split(2)
    teacher_low, teacher_high = (teacher / unit).split(2)

    student_size, teacher_size = (high - low).clamp_min(0), (teacher_high - teacher_low).clamp_min(0)
    shared = (torch.minimum(high, teacher_high) - torch.maximum(low, teacher_low)).clamp_min(0)
    intersection = shared[0] * shared[1]
    union = student_size[0] * student_size[1] + teacher_size[0] * teacher_size[1] - intersection
    offset = (low + high - (teacher_low + teacher_high)) / 2
    highest = torch.maximum(torch.maximum(low, high), torch.maximum(teacher_low, teacher_high))
    lowest = torch.minimum(torch.minimum(low, high), torch.minimum(teacher_low, teacher_high))
    return _Overlap(
        iou=torch.where(union > _EPS, intersection / union.clamp_min(_EPS), same.to(union.dtype)),
        union=union,
        student_size=student_size,
        teacher_size=teacher_size,
        enclosing=highest - lowest,
        squared_offset=offset.square().sum(0),
    )


def _angle(size: Tensor) -> Tensor:
    """atan(width / height); 0 with a finite gradient where a box has neither."""
    width, height = size
    return torch.atan2(width, torch.where(width + height > 0, height, 1.0))
