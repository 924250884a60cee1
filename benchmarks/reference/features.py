"""The authors' losses of feature maps, on the inputs of :mod:`inputs`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from inputs import BINS, CHANNELS, HEIGHT, STEP, WIDTH, Inputs, draw
from methods import cells, reference
from official import official
from torch import Tensor, nn
from torchvision.ops import box_iou


def fill(modules: Iterable[nn.Module], role: str) -> None:
    """Give the parameters of these modules, in order, numbers that depend on the role alone."""
    with torch.no_grad():
        for index, parameter in enumerate(chain.from_iterable(module.parameters() for module in modules)):
            parameter.data = 0.3 * draw(f"{role} {index}", parameter.numel()).view(parameter.shape)


def fill_normed(conv: nn.Module, norm: nn.Module, role: str) -> None:
    """The same of a convolution without bias and the normalization after it, of which the bias would have number 1."""
    for index, parameter in zip((0, 2, 3), (*conv.parameters(), *norm.parameters()), strict=True):
        parameter.data = 0.3 * draw(f"{role} {index}", parameter.numel()).view(parameter.shape)


def per_level(inputs: Inputs) -> Iterable[tuple[str, Tensor, Tensor]]:
    """Level, student's and teacher's map."""
    for level in inputs.strides:
        yield level, inputs.student.features[level], inputs.teacher.features[level]


def image_metas(inputs: Inputs) -> list[dict[str, Any]]:
    """What mmdetection knows of the images."""
    return [{"img_shape": (*size, 3), "pad_shape": (*size, 3)} for size in inputs.case.sizes]


def adapted(inputs: Inputs, size: int, *, relu: bool = False) -> dict[str, nn.Module]:
    """A convolution for every level with an activation or without."""
    adapters = {}
    for level in inputs.strides:
        layer = nn.Conv2d(CHANNELS, CHANNELS, size, padding=size // 2)
        adapters[level] = nn.Sequential(layer, nn.ReLU()) if relu else layer
        fill([layer], f"adapter {level}")
    return adapters


@reference("cwd", "mmrazor")
def cwd(inputs: Inputs, clone: Path) -> Tensor:
    """Weight of the configuration for RetinaNet."""
    with official(clone, "mmrazor.models.losses.cwd") as [module]:
        loss = module.ChannelWiseDivergence(tau=1, loss_weight=5)
        return sum(loss(s, t) for _, s, t in per_level(inputs))  # type: ignore[return-value]


@reference("cwd-logits", "mmrazor")
def cwd_logits(inputs: Inputs, clone: Path) -> Tensor:
    """On the score maps of the head."""
    with official(clone, "mmrazor.models.losses.cwd") as [module]:
        loss = module.ChannelWiseDivergence(tau=1, loss_weight=5)
        return sum(loss(cells(inputs.student.logits[k]), cells(inputs.teacher.logits[k])) for k in inputs.strides)  # type: ignore[return-value]


@reference("pkd", "mmrazor")
def pkd(inputs: Inputs, clone: Path) -> Tensor:
    """Weight of the configuration for RetinaNet."""
    with official(clone, "mmrazor.models.losses.pkd_loss") as [module]:
        loss = module.PKDLoss(loss_weight=10)
        return sum(loss(s, t) for _, s, t in per_level(inputs))  # type: ignore[return-value]


@reference("fgd", "FGD")
def fgd(inputs: Inputs, clone: Path) -> Tensor:
    """Weights of the configuration for RetinaNet."""
    total = torch.zeros((), dtype=torch.float64)
    with official(clone, "mmdet.distillation.losses.fgd") as [module]:
        for level, student, teacher in per_level(inputs):
            weights = {"alpha_fgd": 1e-3, "beta_fgd": 5e-4, "gamma_fgd": 5e-4, "lambda_fgd": 5e-6}
            loss = module.FeatureLoss(CHANNELS, CHANNELS, level, temp=0.5, **weights)
            blocks = [loss.conv_mask_s, loss.channel_add_conv_s, loss.conv_mask_t, loss.channel_add_conv_t]
            fill(blocks, f"learned {level}")
            total = total + loss(student, teacher, inputs.boxes, image_metas(inputs))
    return total


@reference("mgd", "MGD")
def mgd(inputs: Inputs, clone: Path) -> Tensor:
    """Weight and ratio of the configuration for RetinaNet; the masks of all levels come from one generator."""
    total, generator = torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(STEP)
    with official(clone / "det", "mmdet.distillation.losses.mgd") as [module]:
        for level, student, teacher in per_level(inputs):
            loss = module.FeatureLoss(CHANNELS, CHANNELS, level, alpha_mgd=2e-5, lambda_mgd=0.65)
            fill([loss.generation], f"adapter {level}")
            keep = 1 - torch.rand(len(student), 1, *student.shape[2:], generator=generator, dtype=torch.float32)
            with patch.object(torch, "rand", lambda shape, keep=keep: keep):
                total = total + loss(student, teacher)
    return total


@reference("at", "attention-transfer")
def at(inputs: Inputs, clone: Path) -> Tensor:
    """Beta 1000 as in the README's command."""
    with official(clone, "utils") as [module]:
        return 1e3 * sum(module.at_loss(s, t) for _, s, t in per_level(inputs))  # type: ignore[return-value]


@reference("sp", "RepDistiller")
def sp(inputs: Inputs, clone: Path) -> Tensor:
    """Weight 3000 as in the README's command."""
    with official(clone, "distiller_zoo.SP") as [module]:
        maps = [list(side.features.values()) for side in (inputs.student, inputs.teacher)]
        return 3000 * sum(module.Similarity()(*maps)).squeeze()


@reference("ickd", "ICKD")
def ickd(inputs: Inputs, clone: Path) -> Tensor:
    """The loss for CIFAR-100, weight 2.5."""
    total = torch.zeros((), dtype=torch.float64)
    with official(clone / "Cifar100", "distiller_zoo.ICKD") as [module]:
        for level, student, teacher in per_level(inputs):
            loss = module.ICKDLoss(SimpleNamespace(s_dim=CHANNELS, feat_dim=CHANNELS))
            fill_normed(loss.embed_s.conv2d, loss.embed_s.l2norm, f"adapter {level}")
            total = total + 2.5 * loss([student], [teacher])[0]
    return total


@reference("frs", "FRS", constant=True)
def frs(inputs: Inputs, clone: Path) -> Tensor:
    """Weights of the configuration for RetinaNet, after the warm-up."""
    maps = [[cells(logits) for logits in side.logits.values()] for side in (inputs.student, inputs.teacher)]
    students, teachers = (list(side.features.values()) for side in (inputs.student, inputs.teacher))
    adapters = adapted(inputs, 3).values()

    class Head:
        def __init__(self, scores: list[Tensor]) -> None:
            self.scores = scores

        def __call__(self, features: Any) -> tuple[list[Tensor]]:
            return (self.scores,)

        def forward_train(self, *arguments: Any) -> dict[str, Tensor]:
            return {}

    this = SimpleNamespace(
        extract_feat=lambda image: students,
        bbox_head=Head(maps[0]),
        teacher=SimpleNamespace(extract_feat=lambda image: teachers, bbox_head=Head(maps[1])),
        stu_feature_adap=lambda features: [adapt(one) for adapt, one in zip(adapters, features, strict=True)],
        distill_feat_weight=0.005,
        distill_cls_weight=0.02,
        distill_warm_step=0,
        iter=1,
        debug=False,
    )
    [file] = [path.stem for path in (clone / "detectors").glob("*.py") if "FRS_Single" in path.read_text()]
    with official(clone.parent, f"{clone.name}.detectors.{file}") as [module]:
        losses = module.Distilling_FRS_Single.forward_train(this, None, None, None, None)
    return losses["distill_feat_loss"] + losses["distill_cls_loss"]


@reference("defeat", "DeFeat.pytorch", finest=4, levels=5)
def defeat(inputs: Inputs, clone: Path) -> Tensor:
    """Weights of the VOC configuration."""
    kinds = "neck-adapt,neck-decouple,mask-neck-gt,pixel-wise,head-cls,KL-decouple,SampleSTU"
    return _defeat(inputs, clone, kinds, adapted(inputs, 3))


@reference("defeat-features", "DeFeat.pytorch", finest=4, levels=5)
def defeat_features(inputs: Inputs, clone: Path) -> Tensor:
    """The same without the classes of proposals."""
    kinds = "neck-adapt,neck-decouple,mask-neck-gt,pixel-wise,SampleSTU"
    return _defeat(inputs, clone, kinds, adapted(inputs, 3))


@reference("fgfi", "DeFeat.pytorch")
def fgfi(inputs: Inputs, clone: Path) -> Tensor:
    """The masks of the port in DeFeat's repository, of each level by itself, at the strength of FGFI's own script.

    The port averages over the levels and divides by the channels too.
    """
    return _defeat(inputs, clone, "neck-adapt,mask-neck-roi,pixel-wise,SampleSTU", adapted(inputs, 3, relu=True))


def _defeat(inputs: Inputs, clone: Path, kinds: str, adapters: dict[str, nn.Module]) -> Tensor:
    sides = {"student": inputs.student, "teacher": inputs.teacher}
    with official(clone, "mmdet.apis.train", "mmdet.models.dense_heads.anchor_head") as [train, head]:
        masks = _masks(inputs, head.AnchorHead, "roi" in kinds)
        labels = torch.where(inputs.positive[:, 0] > 0, 0, BINS)

        class Model:
            module = SimpleNamespace(neck_adapt=list(adapters.values()))

            def __init__(self, name: str) -> None:
                self.side = sides[name]

            def __call__(self, **arguments: Any) -> Any:
                said = {"neck": list(self.side.features.values()), "cls_score": self.side.rows, "backbone": None}
                said |= {"bbox_pred": None, "bbox_targets": [labels], "sampling": None}
                return {}, said, {"neck_mask_batch": masks, "bb_mask_batch": None}, None, None

        class Settings(SimpleNamespace):
            def get(self, name: str, default: Any) -> Any:
                return default

        weights = {"hint_neck_w": 3, "hint_neck_back_w": 12, "head_cls_w": 2, "head_cls_back_w": 2, "head_cls_T": 1}
        if "roi" in kinds:
            weights["hint_neck_w"] = 0.01 * len(inputs.strides) * CHANNELS
        settings = Settings(type=kinds, **weights)
        collected: dict[str, Tensor] = {}
        train.parse_losses = lambda losses: (collected.update(losses), {})
        data = {"img": SimpleNamespace(data=[])}
        train.batch_processor_kd(Model("student"), Model("teacher"), data, True, kd_cfg=settings)
        return torch.stack([loss.squeeze() for name, loss in collected.items() if "kd" in name]).sum()


def _masks(inputs: Inputs, head: Any, anchored: bool) -> list[Tensor]:
    """One mask per level, by the ground truth on its own level or by anchors."""
    shapes = [torch.zeros(1, 1, HEIGHT // stride, WIDTH // stride) for stride in inputs.strides.values()]
    boxes = inputs.boxes
    if not anchored:
        this = SimpleNamespace(anchor_generator=SimpleNamespace(strides=list(inputs.strides.values())))
        this._map_roi_levels = lambda *arguments: head._map_roi_levels(this, *arguments)
        return head.get_gt_mask(this, shapes, None, boxes)
    masks = []
    for shape, stride in zip(shapes, inputs.strides.values(), strict=True):
        rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) * stride for n in shape.shape[2:])
        ratios = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).sqrt()
        half = torch.stack([4 * stride / ratios, 4 * stride * ratios], 1)  # (3, 2): width and height
        centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[:, :, None]  # (H, W, 1, 2)
        anchors = torch.cat([centres - half, centres + half], -1).reshape(-1, 4)
        this = SimpleNamespace(get_anchors=lambda *a, one=anchors: ([[one]] * len(boxes), None), num_anchors=3)
        this._map_roi_levels = lambda rois, count: torch.zeros(len(rois), dtype=torch.int64)
        sys.modules["mmdet.core"].bbox_overlaps = box_iou  # type: ignore[attr-defined]
        masks += head.get_roi_mask(this, [shape], None, boxes)
    return masks


@reference("wkd-f", "WKD")
def wkd_f(inputs: Inputs, clone: Path) -> Tensor:
    """Weights of the configuration for ImageNet, without the convolution that the student's map goes through there."""
    with official(clone, "mdistiller.distillers.WKD") as [module]:
        losses = [module.wkd_feature_loss(s, t, 1e-5, grid=1) for _, s, t in per_level(inputs)]
        return 0.005 * sum(2.0 * mean + deviation for mean, deviation in losses)  # type: ignore[return-value]


@reference("srd", "Simple-Recipe-Distillation")
def srd(inputs: Inputs, clone: Path) -> Tensor:
    """Between all positions of the maps; the authors compare the means over them."""
    total = torch.zeros((), dtype=torch.float64)
    with official(clone / "imagenet", "torchdistill.losses.single") as [module]:
        for level, adapt in adapted(inputs, 1).items():
            norms = [nn.BatchNorm1d(CHANNELS, eps=1e-4, affine=False) for _ in range(2)]
            this = SimpleNamespace(embed=lambda tensor: tensor, bn_s=norms[0], bn_t=norms[1])
            sides = (adapt(inputs.student.features[level]), inputs.teacher.features[level])
            positions = [side.movedim(1, -1).flatten(0, -2) for side in sides]
            total = total + module.OurDistillationLoss.forward_loss(this, *positions)
    return total


@reference("token-relations", "lightly-train")
def token_relations(inputs: Inputs, clone: Path) -> Tensor:
    """The local loss with its own temperature, summed over the levels."""
    total = torch.zeros((), dtype=torch.float64)
    with official(clone / "src", "lightly_train._methods.distillationv3.distillationv3_loss") as [module]:
        loss = module.DistillationV3Loss(temperature_global=0.07, temperature_local=0.07)
        for _, student, teacher in per_level(inputs):
            tokens = [nn.functional.normalize(side.flatten(2), dim=1).transpose(1, 2) for side in (teacher, student)]
            means = [one.mean(1) for one in tokens]
            total = total + loss(means[0], tokens[0], means[1], tokens[1], means[0])[1]
    return total


def _detkds(inputs: Inputs, clone: Path, weight: float, parts: dict[str, str] | None = None) -> Tensor:
    """The global term, and the foreground and background where ``parts`` says how they are transformed."""
    options = {"global_trans1": "catt", "global_trans2": "scale_r2", "global_trans3": "norm_N", "global_dis": "l1"}
    options |= {f"fbg_trans{index}": name for index, name in (parts or {}).items()}
    total = torch.zeros((), dtype=torch.float64)
    folder = "mmdet.distillation.losses"
    with official(clone, f"{folder}.operations", f"{folder}.auto_detkd") as [_, module]:
        for level, student, teacher in per_level(inputs):
            weights = {"gamma_global": weight, "gamma_fbg": 2}
            enabled = {"gb_enable": True, "fbg_enable": parts is not None}
            loss = module.FeatureLoss(CHANNELS, CHANNELS, level, **options, **enabled, **weights)
            found = loss(student, teacher, img_metas=image_metas(inputs), gt_bboxes=inputs.boxes)
            total = total + found[0] + (sum(found[1]) if parts is not None else 0)
    return total


@reference("detkds/released-global", "DetKDS")
def detkds_global(inputs: Inputs, clone: Path) -> Tensor:
    """Weight of the configurations for GFL and RepPoints."""
    return _detkds(inputs, clone, 10)


@reference("detkds/released-two-stage", "DetKDS")
def detkds_two_stage(inputs: Inputs, clone: Path) -> Tensor:
    """Weight of the configuration for Faster R-CNN."""
    return _detkds(inputs, clone, 2)


@reference("detkds/released-one-stage", "DetKDS")
def detkds_one_stage(inputs: Inputs, clone: Path) -> Tensor:
    """The configuration for RetinaNet."""
    return _detkds(inputs, clone, 6, {"1": "no", "2": "local_s4", "3": "norm_HW"})
