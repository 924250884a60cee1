"""The authors' losses of GID, on the inputs of :mod:`inputs`.

The code runs on detectron2; of that the few functions that it calls here are torchvision's.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from inputs import HEIGHT, WIDTH, Inputs
from methods import reference
from official import official
from responses import rows
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, roi_align


class Boxes:
    """Boxes ``(R, 4)`` as detectron2 wraps them."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: Any) -> Boxes:
        return Boxes(self.tensor[index])

    def clip(self, size: tuple[int, int]) -> None:
        """Into an image of this height and width."""
        height, width = size
        limits = self.tensor.new_tensor([width, height, width, height])
        self.tensor = torch.minimum(self.tensor.clamp(min=0), limits)

    def nonempty(self, threshold: float) -> Tensor:
        """Whose sides are longer than this."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(1)


@reference("gid", "Distill_GID_detectron2")
def gid(inputs: Inputs, clone: Path) -> Tensor:
    """Weights of the configuration for RetinaNet; responses of the anchors that overlap an instance by over 0.2.

    Without the teacher's own entropy, which no student changes.
    """
    flat = [[torch.cat([rows(one) for one in maps.values()], 1) for maps in (side.logits, side.boxes, side.regression)]
            for side in (inputs.student, inputs.teacher)]  # fmt: skip
    (logits, boxes, numbers), (wanted, other, teacher_numbers) = flat
    names = ("gid.proposal_utils", "gid.loss", "gid.distill_gid")
    with official(clone / "GID", *names) as [proposals, loss, module]:
        proposals.cat = module.cat = torch.cat
        proposals.Boxes, proposals.Instances = Boxes, lambda size: SimpleNamespace()
        proposals.batched_nms, proposals._is_tracing = batched_nms, lambda: False
        loss.smooth_l1_loss = _smooth_l1
        network = module.DistillGID
        labels = torch.zeros(logits.shape[:2], dtype=torch.int64).unbind()
        found = network.gism_method(
            None,
            [other.detach().clone()],
            [wanted.detach().amax(2)],
            [boxes.detach().clone()],
            [logits.detach().amax(2)],
            list(labels),
            list(inputs.case.sizes),
            nms_thresh=0.3,
            pre_nms_topk=3000,
            post_nms_topk=10,
            min_box_side_len=10,
        )
        instances = [one.proposal_boxes.tensor for one in found]
        crops = [_pooled(inputs, side.features, instances) for side in (inputs.teacher, inputs.student)]
        total = 5e-4 * loss.distill_loss_feature(*crops, loss_mode="L2")
        total = total + 40 * loss.distill_loss_relation(*crops, loss_mode="IRKD", dist_mode="L2", smooth_l1_beta=1.0)
        marked = torch.cat([_overlapping(one, two) for one, two in zip(boxes.detach(), instances, strict=True)])
        scores = (wanted.flatten(0, 1), logits.flatten(0, 1), marked)
        entropy = loss.distill_loss_response(scores[0], scores[0], marked, loss_mode="BCE")
        total = total + 0.1 * (loss.distill_loss_response(*scores, loss_mode="BCE") - entropy)
        deltas = (teacher_numbers.flatten(0, 1), numbers.flatten(0, 1), marked)
        return total + loss.distill_loss_response(*deltas, loss_mode="L1", smooth_l1_beta=0.0)


def _overlapping(boxes: Tensor, instances: Tensor) -> Tensor:
    """Which boxes overlap an instance: the stand-in for the assignment of anchors, which is the detector's."""
    return (box_iou(boxes, instances) > 0.2).any(1)


def _pooled(inputs: Inputs, features: dict[str, Tensor], instances: list[Tensor]) -> Tensor:
    """Crops of 10 x 10 cells, each of the level that fits its size, as detectron2's pooler chooses it."""
    boxes = torch.cat(instances)
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    finest, coarsest = (int(level[1:]) for level in (min(features), max(features)))
    fitting = torch.floor(4 + torch.log2(size / 224 + 1e-8)).clamp(finest, coarsest)
    images = torch.cat([torch.full((len(one), 1), float(image)) for image, one in enumerate(instances)])
    crops = torch.zeros(len(boxes), next(iter(features.values())).shape[1], 10, 10)
    for level, feature in features.items():
        chosen = fitting == int(level[1:])
        regions = torch.cat([images, boxes], 1)[chosen]
        made = roi_align(feature, regions, 10, feature.shape[-1] / WIDTH, sampling_ratio=2, aligned=True)
        crops = crops.index_put((chosen.nonzero()[:, 0],), made)
    assert HEIGHT * feature.shape[-1] == WIDTH * feature.shape[-2]
    return crops


def _smooth_l1(input: Tensor, target: Tensor, beta: float, reduction: str) -> Tensor:
    if beta < 1e-5:
        return torch.nn.functional.l1_loss(input, target, reduction=reduction)
    return torch.nn.functional.smooth_l1_loss(input, target, beta=beta, reduction=reduction)
