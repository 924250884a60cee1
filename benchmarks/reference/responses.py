"""The authors' losses of class scores and boxes, on the inputs of :mod:`inputs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from features import adapted, fill, fill_normed, per_level
from inputs import BINS, CHANNELS, CLASSES, Inputs
from methods import cells, reference
from official import official
from torch import Tensor, nn

_LOSSES = ("mmdet.models.losses.utils", "mmdet.models.losses.kd_loss", "mmdet.models.losses.iou_loss")


def rows(tensor: Tensor) -> Tensor:
    """``(N, K, A, H, W)`` to ``(N, H W A, K)``, mmdetection's order of anchors."""
    return tensor.permute(0, 3, 4, 2, 1).flatten(1, 3)


def positives(inputs: Inputs) -> Tensor:
    """What the authors divide by: the positives of the batch, of which an image counts one at least."""
    counts = torch.stack([main.flatten(1).sum(1) for main in inputs.regions["main"].values()]).sum(0)
    return counts.clamp_min(1).sum()


def labels(inputs: Inputs, level: str) -> Tensor:
    """Labels ``(N, H W A)``: 0 of positives, and the number of classes elsewhere."""
    return torch.where(rows(inputs.regions["main"][level])[..., 0] > 0, 0, CLASSES)


@reference("kd", "DeFeat.pytorch")
def kd(inputs: Inputs, clone: Path) -> Tensor:
    """Over all proposals, at the weight of the VOC configuration."""
    with official(clone, "mmdet.apis.train") as [module]:
        return 2 * module.KLDivergenceLoss(inputs.student.rows, inputs.teacher.rows, T=1)


@reference("kd-sigmoid", "LD")
def kd_sigmoid(inputs: Inputs, clone: Path) -> Tensor:
    """The classification loss beside localization distillation."""
    return _ld(inputs, clone)["loss_kd"]


@reference("ld", "LD")
def ld(inputs: Inputs, clone: Path) -> Tensor:
    """The three losses of the head; the imitation of features is not among them."""
    return torch.stack(list(_ld(inputs, clone).values())).sum()


def _ld(inputs: Inputs, clone: Path) -> dict[str, Tensor]:
    totals = {name: torch.zeros((), dtype=torch.float64) for name in ("loss_ld", "loss_ld_vlr", "loss_kd")}
    with official(clone, *_LOSSES[:2], "mmdet.models.dense_heads.ld_head") as [_, kd_loss, head]:
        divergence = kd_loss.KnowledgeDistillationKLDivLoss
        this = _head_of(head, BINS - 1)
        this.loss_ld = this.loss_ld_vlr = divergence(loss_weight=0.25, T=10)
        this.loss_kd = divergence(loss_weight=10, T=2)
        for level in inputs.strides:
            students, teachers = ((side.distributions[level], side.logits[level]) for side in _sides(inputs))
            found = _loss_single(head, this, inputs, level, students, teachers)
            for name, loss in zip(totals, found[3:6], strict=True):
                totals[name] = totals[name] + loss
    return totals


@reference("bckd", "BCKD")
def bckd(inputs: Inputs, clone: Path) -> Tensor:
    """Both losses with the weights of the configuration for GFL, on decoded boxes."""
    total = torch.zeros((), dtype=torch.float64)
    boxes_module = "mmdet.core.bbox.iou_calculators.iou2d_calculator"
    names = (*_LOSSES, boxes_module, "mmdet.models.dense_heads.ld_head")
    with official(clone, *names) as [_, kd_loss, iou_loss, boxes, head]:
        iou_loss.bbox_overlaps = boxes.bbox_overlaps
        this = _head_of(head, 0)
        this.loss_ld = this.loss_ld_vlr = _nothing
        this.loss_kd, this.loss_kd_vlr = kd_loss.NovelKDLoss(loss_weight=1.0), _nothing
        this.loss_score_kd, this.loss_score_kd_vlr = iou_loss.GIoULoss(loss_weight=4.0), _nothing
        for level in inputs.strides:
            students, teachers = ((side.boxes[level][:, :, None], side.logits[level]) for side in _sides(inputs))
            found = _loss_single(head, this, inputs, level, students, teachers)
            total = total + found[5] + found[8]
    return total


def _sides(inputs: Inputs) -> tuple[Any, Any]:
    return inputs.student, inputs.teacher


def _nothing(*arguments: Any, **options: Any) -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def _head_of(module: Any, reg_max: int) -> SimpleNamespace:
    """A head that has the losses of distillation alone."""
    module.bbox_overlaps = lambda boxes, others, **options: boxes.new_zeros(len(boxes))
    module.distance2bbox = module.bbox2distance = lambda centres, sides, *options: sides
    return SimpleNamespace(
        cls_out_channels=CLASSES,
        num_classes=CLASSES,
        reg_max=reg_max,
        imitation_method="finegrained",
        anchor_center=lambda anchors: anchors[:, :2],
        integral=lambda sides: sides.reshape(-1, 4, reg_max + 1).mean(-1),
        bbox_coder=SimpleNamespace(decode=lambda centres, sides: sides, encode=lambda centres, sides, *options: sides),
        loss_im=_nothing,
        loss_bbox=_nothing,
        loss_dfl=_nothing,
        loss_cls=_nothing,
    )


def _sides_of_cells(sides: Tensor) -> Tensor:
    """``(N, 4, bins, A, H, W)`` as mmdetection's heads give it: ``(N, A 4 bins, H, W)``."""
    return sides.permute(0, 3, 1, 2, 4, 5).flatten(1, 3)


def _loss_single(module: Any, this: Any, inputs: Inputs, level: str, student: Any, teacher: Any) -> Any:
    (sides, scores), (soft_sides, soft_scores) = student, teacher
    images, count = len(inputs.case.sizes), labels(inputs, level).shape[1]
    weights = rows(inputs.valid[level].expand(-1, 1, inputs.case.anchors, -1, -1))
    nothing = torch.zeros(images, 256, *scores.shape[-2:], dtype=torch.float64)
    return module.LDHead.loss_single(
        this,
        torch.zeros(images, count, 4, dtype=torch.float64),
        cells(scores),
        _sides_of_cells(sides),
        labels(inputs, level),
        weights,
        torch.zeros(images, count, 4, dtype=torch.float64),
        (1, 1),
        _sides_of_cells(soft_sides),
        cells(soft_scores),
        nothing,
        nothing,
        rows(inputs.regions["vlr"][level]),
        torch.zeros(images, count),
        positives(inputs),
    )


@reference("dist", "MasKD")
def dist(inputs: Inputs, clone: Path) -> Tensor:
    """Of proposals, with a softmax."""
    with official(clone / "mmrazor", "mmrazor.models.losses.dist_kd") as [module]:
        return module.DIST(beta=1, gamma=1)(inputs.student.rows, inputs.teacher.rows)


@reference("dist-sigmoid", "MasKD")
def dist_sigmoid(inputs: Inputs, clone: Path) -> Tensor:
    """Of the score maps of every level, as the distiller there hands them over."""
    with official(clone / "mmrazor", "mmrazor.models.losses.dist_kd") as [module]:
        loss = module.DIST(beta=1, gamma=1, use_sigmoid=True)
        levels = zip(inputs.student.logits.values(), inputs.teacher.logits.values(), strict=True)
        return sum(loss(cells(s), cells(t)) for s, t in levels)  # type: ignore[return-value]


@reference("maskd", "MasKD", constant=True)
def maskd(inputs: Inputs, clone: Path) -> Tensor:
    """Before the masks of the student come in, with the configuration for RetinaNet with ResNet bodies."""
    adapters = adapted(inputs, 1)
    with official(clone / "mmrazor", "mmrazor.models.losses.maskd") as [module]:
        options = {"num_tokens": 6, "custom_mask": False, "loss_weight": 7}
        loss = module.MasKDLoss([CHANNELS] * len(inputs.strides), **options)
        for level, tokens in zip(inputs.strides, loss.mask_modules, strict=True):
            fill([tokens], f"learned {level}")
        maps = list(per_level(inputs))
        masked = loss([adapters[level](s) for level, s, _ in maps], [t for *_, t in maps])
    levels = zip(inputs.student.regression.values(), inputs.teacher.regression.values(), strict=True)
    return masked + sum((s - t).abs().mean() for s, t in levels)


@reference("cofd", "overhaul-distillation")
def cofd(inputs: Inputs, clone: Path) -> Tensor:
    """The distance at the weight for segmentation, with margins from the batch and no divisor of finer stages."""
    total = torch.zeros((), dtype=torch.float64)
    with official(clone / "Segmentation", "distiller") as [module]:
        for level, student, teacher in per_level(inputs):
            connect = module.build_feature_connector(CHANNELS, CHANNELS)
            fill_normed(*connect, f"adapter {level}")
            total = total + module.distillation_loss(connect(student), teacher, _margin(teacher))
    return 1e-5 * total / len(inputs.case.sizes)


def _margin(teacher: Tensor) -> Tensor:
    return torch.stack([channel[channel < 0].mean() for channel in teacher.transpose(0, 1)])[None, :, None, None]


@reference("crosskd", "CrossKD")
def crosskd(inputs: Inputs, clone: Path) -> Tensor:
    """For RetinaNet; the anchors that the assigner leaves out weigh 0."""

    def loss(this: Any, detector: Any, level: str, crossed: list[Tensor], wanted: list[Tensor]) -> Tensor:
        assigned = inputs.regions["main"][level] + inputs.regions["background"][level] > 0
        weights = rows(assigned * inputs.valid[level])
        found = detector.pred_mimicking_loss_single(
            this, *wanted, *crossed, anchor_rows(inputs, level), weights, positives(inputs)
        )
        return torch.stack(found).sum()

    return _crosskd(inputs, clone, "CrossKDRetinaNet", "crosskd_retinanet", 4, loss)


@reference("crosskd-gfl", "CrossKD")
def crosskd_gfl(inputs: Inputs, clone: Path) -> Tensor:
    """For GFL; the sides' divergence is divided by the weights of all levels together."""
    classes, sides, weight = [], [], []

    def loss(this: Any, detector: Any, level: str, crossed: list[Tensor], wanted: list[Tensor]) -> Tensor:
        weights = rows(inputs.valid[level].expand(-1, 1, inputs.case.anchors, -1, -1))
        found = detector.pred_mimicking_loss_single(this, *wanted, *crossed, weights, positives(inputs))
        for part, one in zip((classes, sides, weight), found, strict=True):
            part.append(one)
        return found[0] * 0

    zero = _crosskd(inputs, clone, "CrossKDGFL", "crosskd_gfl", 4 * BINS, loss)
    return zero + torch.stack(classes).sum() + torch.stack(sides).sum() / torch.stack(weight).sum()


@reference("crosskd-fcos", "CrossKD")
def crosskd_fcos(inputs: Inputs, clone: Path) -> Tensor:
    """For FCOS; every point counts, and both losses are divided by the sum of the centerness of positives."""
    outputs: dict[str, list[list[Tensor]]] = {"crossed": [], "wanted": []}

    def collect(this: Any, detector: Any, level: str, crossed: list[Tensor], wanted: list[Tensor]) -> Tensor:
        outputs["crossed"].append(crossed)
        outputs["wanted"].append(wanted)
        return crossed[0].sum() * 0

    def finish(this: Any, detector: Any) -> Tensor:
        centres = [rows(one) for one in inputs.regions["centerness"].values()]
        this.bbox_head.prior_generator = SimpleNamespace(
            grid_priors=lambda *a, **k: [anchor_rows(inputs, level)[0] for level in inputs.strides]
        )
        this.bbox_head.get_targets = lambda *a: (
            [labels(inputs, level).flatten() for level in inputs.strides],
            [centre.flatten(0, 1).expand(-1, 4) for centre in centres],
        )
        this.bbox_head.centerness_target = lambda targets: targets[:, 0]
        crossed, wanted = (list(zip(*outputs[name], strict=True)) for name in ("crossed", "wanted"))
        none = [scores[:, : inputs.case.anchors] for scores in wanted[0]]
        losses = detector.loss_by_feat(this, *wanted, none, none, *wanted, none, none, *crossed, none, None, None, None)
        return losses["loss_cls_kd"] + losses["loss_reg_kd"]

    return _crosskd(inputs, clone, "CrossKDFCOS", "crosskd_fcos", 4, collect, finish)


def anchor_rows(inputs: Inputs, level: str) -> Tensor:
    """``(N, H W A, 4)``: the boxes that predictions are added to, the same in every image."""
    return rows(inputs.teacher.boxes[level][:1].expand(len(inputs.case.sizes), -1, -1, -1, -1))


def head_outputs(anchors: int, level: str, sides: int) -> list[nn.Conv2d]:
    """What ends the branches of the teacher's head: 1x1 convolutions to scores and to numbers of the sides."""
    ends = [nn.Conv2d(CHANNELS, anchors * count, 1) for count in (CLASSES, sides)]
    fill(ends, "head")
    return ends


def _crosskd(
    inputs: Inputs,
    clone: Path,
    name: str,
    file: str,
    sides: int,
    level_loss: Callable[..., Tensor],
    finish: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Cross the heads of every level by the authors' code, and sum what ``level_loss`` makes of it."""
    boxes_module = "mmdet.structures.bbox.bbox_overlaps"
    names = (*_LOSSES, boxes_module, f"mmdet.models.detectors.{file}")
    with official(clone, *names) as [_, kd_loss, iou_loss, boxes, module]:
        iou_loss.bbox_overlaps = boxes.bbox_overlaps
        module.reduce_mean = lambda value: value
        detector = getattr(module, name)
        weight = 0.4 if name == "CrossKDFCOS" else 1.0
        divergence = kd_loss.KnowledgeDistillationKLDivLoss(class_reduction="sum", T=1, loss_weight=4.0)
        kinds = {"CrossKDRetinaNet": iou_loss.GIoULoss(loss_weight=1.0), "CrossKDGFL": divergence}
        head = SimpleNamespace(
            stacked_convs=3,
            cls_convs=[],
            reg_convs=[],
            cls_out_channels=CLASSES,
            num_classes=CLASSES,
            reg_max=BINS - 1,
            bbox_coder=SimpleNamespace(encode_size=4, decode=lambda anchors, numbers: anchors + numbers),
            scales=[lambda tensor: tensor] * len(inputs.strides),
            loss_cls=_nothing,
            loss_bbox=_nothing,
            loss_centerness=_nothing,
        )
        this = SimpleNamespace(
            teacher=SimpleNamespace(bbox_head=head),
            bbox_head=head,
            reused_teacher_head_idx=3,
            with_feat_distill=False,
            loss_cls_kd=kd_loss.KDQualityFocalLoss(beta=1, loss_weight=weight),
            loss_reg_kd=kinds.get(name) or iou_loss.IoULoss(loss_weight=0.75),
        )
        this.align_scale = lambda *maps: detector.align_scale(this, *maps)
        total = torch.zeros((), dtype=torch.float64)
        for level, student, teacher in per_level(inputs):
            ends = head_outputs(inputs.case.anchors, level, sides)
            crossed, wanted = (
                [end(torch.relu(one)) for end, one in zip(ends, maps, strict=True)]
                for maps in ([this.align_scale(student, teacher)] * 2, [teacher] * 2)
            )
            total = total + level_loss(this, detector, level, crossed, wanted)
        return total if finish is None else total + finish(this, detector)
