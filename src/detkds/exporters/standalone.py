"""The detector in this folder, built from torchvision and timm alone.

    from load import load
    model = load()
    [detections] = model([image])

``image`` is ``(3, H, W)`` RGB in [0, 1]; ``detections`` has boxes in its pixels, scores and labels, as usual in
torchvision. What it is built from stands in ``model.json``; ``classes`` there are in the order of the labels. It
resizes images as torchvision does, their longer side to ``size``; where your own resizing is to be kept, give images of
that size.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation
from torchvision.ops.poolers import initLevelMapper

Settings = Mapping[str, Any]


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The detector with its weights, in evaluation mode."""
    settings = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    model = build(settings)
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()


def build(settings: Settings) -> nn.Module:
    """The detector with random weights, from the content of ``model.json``."""
    options, one_stage = settings["options"], settings["detector"] in ("retinanet", "fcos")
    strides = (8, 16, 32, 64, 128) if one_stage else (4, 8, 16, 32, 64)
    backbone = Backbone(settings, strides)
    common = {
        "min_size": settings["size"],
        "max_size": settings["size"],
        "image_mean": settings["mean"],
        "image_std": settings["std"],
    }
    if one_stage:
        common["score_thresh"] = options["score_threshold"]
        common["nms_thresh"] = options["nms_threshold"]
        common["topk_candidates"] = options["topk_candidates"]
        common["detections_per_img"] = options["max_detections"]
        return (_retinanet if settings["detector"] == "retinanet" else _fcos)(settings, backbone, common)
    return _rcnn(settings, backbone, common)


class Backbone(nn.Module):
    """A timm body and torchvision's feature pyramid."""

    def __init__(self, settings: Settings, strides: Sequence[int]) -> None:
        super().__init__()
        options, channels = settings["options"], settings["options"]["neck_channels"]
        self.body, reductions, widths, self.channels_last = _body(settings["body"])
        if options["frozen_norm"]:
            freeze_batch_norm_2d(self.body)
        for module in self.body.modules():
            if options["norm_eps"] is not None and "BatchNorm" in type(module).__name__:
                module.eps = options["norm_eps"]  # type: ignore[assignment]
        self.picks = [
            max(place for place, reduction in enumerate(reductions) if reduction == stride)
            for stride in strides
            if stride <= 32
        ]
        inputs = [widths[place] for place in self.picks]
        self.fpn = FeaturePyramidNetwork(inputs, channels, _extra_levels(options, inputs[-1]), _norm(options))
        self.levels = [f"p{stride.bit_length() - 1}" for stride in strides]
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels from fine to coarse."""
        maps = self.body(images)
        picked = [maps[place].permute(0, 3, 1, 2) if self.channels_last else maps[place] for place in self.picks]
        levels = self.fpn(OrderedDict((str(number), level) for number, level in enumerate(picked)))
        return OrderedDict(zip(self.levels, levels.values(), strict=True))


class Anchors(AnchorGenerator):
    """Anchors by the true strides; torchvision's are off where sizes do not divide by them."""

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> None:
        sizes = tuple(tuple(max(1, int(scale * stride)) for scale in scales) for stride in strides)
        super().__init__(sizes, (tuple(ratios),) * len(strides))  # type: ignore[arg-type]
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """All anchors of each image, ``(M, 4)``."""
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        steps = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(level.shape[-2:]) for level in feature_maps], steps))
        return [anchors] * len(image_list.image_sizes)


def _body(settings: Settings) -> tuple[nn.Module, list[int], list[int], bool]:
    """The body, the strides and channels of its maps, and whether channels come last."""
    if "narrow" in settings:
        from narrow import NarrowNet  # type: ignore[import-not-found] - the file beside this one

        narrow = NarrowNet(settings["narrow"])
        return narrow, [4, 8, 16, 32], list(narrow.widths), False
    for flags in ({"strict_img_size": False}, {"dynamic_img_size": True}) if settings["fixed_size"] else ():
        try:
            body = timm.create_model(settings["timm"], features_only=True, **{**flags, **settings["options"]})
            break
        except TypeError:
            continue
    else:
        body = timm.create_model(settings["timm"], features_only=True, **settings["options"])
    info: Any = body.feature_info
    last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
    return body, list(info.reduction()), list(info.channels()), last


def _extra_levels(options: Settings, coarsest: int) -> LastLevelP6P7 | LastLevelMaxPool:
    if "p6_from" not in options:
        return LastLevelMaxPool()
    on_p5 = options["p6_from"] == "p5"
    extra = LastLevelP6P7(options["neck_channels"] if on_p5 else coarsest, options["neck_channels"])
    extra.use_P5 = on_p5
    return extra


def _norm(options: Settings) -> Callable[..., nn.Module] | None:
    """The normalization of a two-stage detector's pyramid and convolutions over regions."""
    return nn.BatchNorm2d if options.get("norm") == "batch" else None


def _group_norm(channels: int) -> nn.GroupNorm:
    """The most groups, up to 32, of two channels at least."""
    return nn.GroupNorm(max((n for n in range(1, 33) if channels % n == 0 and n < channels), default=1), channels)


def _retinanet(settings: Settings, backbone: Backbone, common: dict[str, Any]) -> nn.Module:
    options, channels = settings["options"], settings["options"]["neck_channels"]
    anchors = Anchors((8, 16, 32, 64, 128), options["anchor_scales"], options["anchor_ratios"])
    norm: Callable[..., nn.Module] | None = _group_norm if options["head_norm"] == "group" else None
    classes = len(settings["classes"])
    head = RetinaNetHead(channels, anchors.num_anchors_per_location()[0], classes, norm_layer=norm)
    for branch in (head.classification_head, head.regression_head):
        convs = [Conv2dNormActivation(channels, channels, norm_layer=norm) for _ in range(options["head_convs"])]
        branch.conv = nn.Sequential(*convs)
    return detection.RetinaNet(backbone, classes, anchor_generator=anchors, head=head, **common)


def _fcos(settings: Settings, backbone: Backbone, common: dict[str, Any]) -> nn.Module:
    options, channels = settings["options"], settings["options"]["neck_channels"]
    classes, convs = len(settings["classes"]), options["head_convs"]
    anchors = Anchors((8, 16, 32, 64, 128), (1.0,), (1.0,))
    head = FCOSHead(channels, 1, classes, num_convs=0)
    head.classification_head = FCOSClassificationHead(channels, 1, classes, convs, norm_layer=_group_norm)
    head.regression_head = FCOSRegressionHead(channels, 1, convs, norm_layer=_group_norm)
    return detection.FCOS(backbone, classes, anchor_generator=anchors, head=head, **common)


def _rcnn(settings: Settings, backbone: Backbone, common: dict[str, Any]) -> nn.Module:
    """Faster or Mask R-CNN; its labels begin with the background, as ``classes`` do."""
    options, channels = settings["options"], settings["options"]["neck_channels"]
    classes, resolution = len(settings["classes"]), options["roi_resolution"]
    anchors = Anchors((4, 8, 16, 32, 64), options["anchor_scales"], options["anchor_ratios"])
    box_head: nn.Module = TwoMLPHead(channels * resolution**2, options["representation"])
    if options["box_convs"]:
        convs = [channels] * options["box_convs"]
        box_head = FastRCNNConvFCHead(
            (channels, resolution, resolution), convs, [options["representation"]], _norm(options)
        )
    parts: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=options["rpn_convs"]),
        "rpn_pre_nms_top_n_test": options["rpn_pre_nms_predict"],
        "rpn_post_nms_top_n_test": options["rpn_post_nms_predict"],
        "box_roi_pool": _region_pool(resolution, options["roi_canonical_size"]),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(options["representation"], classes),
        "box_score_thresh": options["score_threshold"],
        "box_nms_thresh": options["nms_threshold"],
        "box_detections_per_img": options["max_detections"],
    }
    if settings["detector"] == "faster_rcnn":
        return detection.FasterRCNN(backbone, **parts, **common)
    width, depth = options["mask_channels"], options["mask_convs"]
    parts["mask_roi_pool"] = _region_pool(options["mask_resolution"], options["roi_canonical_size"])
    parts["mask_head"] = MaskRCNNHeads(channels, [width] * depth, dilation=1, norm_layer=_norm(options))
    parts["mask_predictor"] = MaskRCNNPredictor(width if depth else channels, width, classes)
    return detection.MaskRCNN(backbone, **parts, **common)


def _region_pool(resolution: int, canonical_size: int) -> MultiScaleRoIAlign:
    """Pooling with the true strides; torchvision's are inferred from the first batch it sees."""
    levels = ["p2", "p3", "p4", "p5"]
    pool = MultiScaleRoIAlign(levels, output_size=resolution, sampling_ratio=2, canonical_scale=canonical_size)
    pool.scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]  # type: ignore[assignment]
    pool.map_levels = initLevelMapper(2, 5, canonical_scale=canonical_size)  # type: ignore[assignment]
    return pool
