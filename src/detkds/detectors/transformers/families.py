"""What differs between the detectors of the transformers library, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from detkds.detectors.backbones import IMAGENET_MEAN, IMAGENET_STD
from detkds.detectors.transformers.parts import body_strides
from detkds.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """One detector of the transformers library.

    Attributes:
        prefix: of the library's class names, such as ``RTDetr`` in ``RTDetrForObjectDetection``.
        strides: pixels per cell of the maps that are features, from the model.
        channels: of these maps, from the configuration.
        features: where they come from: ``memory``, tokens of the encoder; ``maps``, the encoder's list of maps;
            ``projector``, the maps that the module between body and decoder gives.
        queries: which of the model's queries count while it trains, from the configuration.
        masked: whether it is told which pixels are padding. Its boxes are then fractions of the valid image,
            otherwise of the whole batch.
        weights: of each loss, a number or a field of the configuration; empty where the library has applied them.
        defaults: changes to the library's default configuration, which is not a whole detector in every family.
        nano: changes to the default configuration that make it as small as it goes.
        body: the library's narrow residual body that fits, or None where the body cannot be exchanged.
        body_levels: how many maps of the body it reads, coarsest last.
        arguments: further ones of the model's pass.
        multiple: what the sides of a batch are padded to, from the configuration.
        two_stage: whether queries are chosen among the cells, of which there must be enough.
        activation: how class logits become probabilities.
        square: whether its windows are in order on square batches alone.
        distribution: whether boxes come with a distribution over the distance of each side.
        mean, std: input normalization, unless that of a pretrained model is stored beside it.
    """

    prefix: str
    strides: Callable[[Any], tuple[int, ...]]
    channels: Callable[[Any], int]
    features: Literal["memory", "maps", "projector"]
    queries: Callable[[Any], slice]
    masked: bool
    weights: Mapping[str, float | str]
    nano: Mapping[str, Any]
    body: str | None
    body_levels: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    multiple: Callable[[Any], int] = lambda config: 32
    two_stage: Callable[[Any], int] = lambda config: 0
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    square: bool = False
    distribution: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def padded(self, config: Any, strides: Sequence[int], height: int, width: int) -> tuple[int, int]:
        """The size a batch of this height and width is padded to before it enters a model with these strides."""
        step = self.multiple(config)
        height, width = (-(-side // step) * step for side in (height, width))
        if self.square:
            height = width = max(height, width)
        needed = self.two_stage(config)
        while sum(math.prod(shape) for shape in map_shapes(strides, height, width)) < needed:
            height, width = height + step, width + step
        return height, width


def map_shapes(strides: Sequence[int], height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of the feature maps with these strides of a batch of this size."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def narrow_body(kind: str, width: int, levels: int) -> dict[str, Any]:
    """The library's residual body with one basic block per stage and the widths ``(W, 2W, 4W, 8W)``.

    Where a single map of it is read, it ends at stride 16, with ``4W``: it is for small images, in which a map of
    stride 32 has a handful of cells.
    """
    stages = 3 if levels == 1 else 4
    return {
        "model_type": kind,
        "embedding_size": max(width, 8),
        "hidden_sizes": [width * 2**stage for stage in range(stages)],
        "depths": [1] * stages,
        "layer_type": "basic",
        "out_indices": list(range(stages + 1 - levels, stages + 1)),
    }


def _single_stride(model: Any) -> tuple[int, ...]:
    return (body_strides(model)[-1],)


def _deformable_strides(model: Any) -> tuple[int, ...]:
    strides, levels = body_strides(model), model.config.num_feature_levels
    if len(strides) > levels:
        raise ConfigError(
            f"config: num_feature_levels: expected at least {len(strides)}, the maps of the body, got {levels}"
        )
    while len(strides) < levels:
        strides.append(2 * strides[-1])
    return tuple(strides)


def _patch(config: Any) -> int:
    patch = config.backbone_config.patch_size
    return patch if isinstance(patch, int) else patch[0]


_DETR_LOSSES = {"loss_ce": 1.0, "loss_bbox": "bbox_loss_coefficient", "loss_giou": "giou_loss_coefficient"}
_LW_LOSSES = {**_DETR_LOSSES, "loss_ce": "class_loss_coefficient"}
_SMALL = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_queries": 50}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
_DETR_NANO = {**_SMALL, **_HEADS, "d_model": 64, "dropout": 0.0, "auxiliary_loss": True}
_HYBRID_NANO = {
    **_SMALL,
    **_HEADS,
    "d_model": 64,
    "encoder_hidden_dim": 64,
    "encoder_layers": 1,
    "hidden_expansion": 0.5,
    "encoder_in_channels": [32, 64, 128],
    "decoder_in_channels": [64, 64, 64],
}
_GROUPED_NANO = {
    "d_model": 64,
    "decoder_layers": 2,
    "decoder_ffn_dim": 128,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "num_queries": 40,
    "group_detr": 3,
    "c2f_num_blocks": 1,
    "dropout": 0.0,
}
_VIT_NANO = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 128,
    "patch_size": 16,
    "out_indices": [1, 3],
}


def _detr(prefix: str, **changes: Any) -> Family:
    """A detector whose encoder turns the body's last map into one map of tokens."""
    settings: dict[str, Any] = {
        "strides": _single_stride,
        "channels": lambda config: config.hidden_size,
        "features": "memory",
        "queries": lambda config: slice(None),
        "masked": True,
        "weights": _DETR_LOSSES,
        "nano": _DETR_NANO,
        "body": "resnet",
    }
    return Family(prefix, **{**settings, **changes})


def _hybrid(prefix: str, **changes: Any) -> Family:
    """A detector of the RT-DETR line: a pyramid of maps, and queries chosen among their cells."""
    settings: dict[str, Any] = {
        "strides": lambda model: tuple(model.config.feat_strides),
        "channels": lambda config: config.encoder_hidden_dim,
        "features": "maps",
        "queries": lambda config: slice(-config.num_queries, None),
        "masked": False,
        "weights": {},
        "nano": _HYBRID_NANO,
        "body": "rt_detr_resnet",
        "body_levels": 3,
        "multiple": lambda config: max(config.feat_strides),
        "two_stage": lambda config: config.num_queries,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    return Family(prefix, **{**settings, **changes})


def _grouped(prefix: str, **changes: Any) -> Family:
    """A detector of the LW-DETR line: a plain vision transformer, and groups of queries while training."""
    settings: dict[str, Any] = {
        "channels": lambda config: config.d_model,
        "features": "projector",
        "queries": lambda config: slice(config.num_queries),
        "masked": True,
        "weights": _LW_LOSSES,
        "body": None,
        "two_stage": lambda config: config.num_queries,
    }
    return Family(prefix, **{**settings, **changes})


FAMILIES: Mapping[str, Family] = {
    "detr": _detr("Detr", activation="softmax"),
    "conditional_detr": _detr("ConditionalDetr"),
    "dab_detr": _detr(
        "DabDetr",
        nano={**_SMALL, **_HEADS, "hidden_size": 64, "dropout": 0.0, "auxiliary_loss": True},
        arguments={"output_hidden_states": True},
    ),
    "deformable_detr": _detr(
        "DeformableDetr",
        strides=_deformable_strides,
        body_levels=3,
        two_stage=lambda config: config.two_stage_num_proposals if config.two_stage else 0,
        nano={**_DETR_NANO, "with_box_refine": True},
    ),
    "rt_detr": _hybrid("RTDetr"),
    "rt_detr_v2": _hybrid("RTDetrV2"),
    "d_fine": _hybrid("DFine", distribution=True, nano={**_HYBRID_NANO, "depth_mult": 0.34}),
    "deim_v2": _hybrid("Deimv2", distribution=True, nano={**_HYBRID_NANO, "depth_mult": 0.34}),
    "lw_detr": _grouped(
        "LwDetr",
        strides=lambda model: tuple(
            int(_patch(model.config) / scale) for scale in model.config.projector_scale_factors
        ),
        multiple=lambda config: (
            _patch(config)
            * config.backbone_config.num_windows_side
            * (2 if 0.5 in config.projector_scale_factors else 1)
        ),
        defaults={"projector_scale_factors": [1.0]},
        nano={
            **_GROUPED_NANO,
            "backbone_config": {
                "model_type": "lw_detr_vit",
                "pretrain_image_size": 128,
                "num_windows": 4,
                "window_block_indices": [0],
                **_VIT_NANO,
            },
        },
    ),
    "rf_detr": _grouped(
        "RfDetr",
        strides=lambda model: (_patch(model.config),),
        multiple=lambda config: _patch(config) * config.backbone_config.num_windows,
        square=True,
        nano={
            **_GROUPED_NANO,
            "backbone_config": {"model_type": "rf_detr_dinov2", "num_windows": 2, "use_mask_token": False, **_VIT_NANO},
        },
    ),
}
"""The detectors by their registered names."""
