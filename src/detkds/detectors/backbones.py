"""Backbone bodies: any timm model that gives a feature map per stride, and narrow ones for a CPU."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from detkds.detectors.checkpoints import read_weights, without_prefix
from detkds.detectors.narrow import NarrowNet
from detkds.errors import UserError, WeightsError

ALIASES: Mapping[str, str] = {
    "resnext101": "resnext101_64x4d",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
}
"""Short names for timm models."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_NARROW = re.compile(r"^narrow([1-9]\d*)$")


@dataclass(frozen=True)
class Backbone:
    """A body and what must be known to use it.

    Attributes:
        network: images ``(N, 3, H, W)`` to a list of maps.
        positions: ``{stride: index in that list}``, for each stride wanted.
        channels: ``{stride: channels}``, for each stride wanted, shallow first.
        channels_last: whether the maps come as ``(N, H, W, C)``.
        mean, std: the input normalization that the body's weights were trained with.
    """

    network: nn.Module
    positions: Mapping[int, int]
    channels: Mapping[int, int]
    channels_last: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def build_backbone(
    name: str,
    strides: Sequence[int],
    *,
    weights: str | None = None,
    frozen_norm: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a body that gives a map at each of ``strides``.

    Args:
        name: ``narrow<W>`` (``narrow16``, ``narrow32``, ...), a timm model or one of :data:`ALIASES`.
        strides: pixels per cell of the maps wanted, such as ``(8, 16, 32)``.
        weights: None (random), ``"pretrained"`` (timm's own) or a file or URL of a classifier's weights.
        frozen_norm: replace batch normalization by fixed statistics and scales.
        options: further arguments of the timm model, such as ``{"drop_path_rate": 0.2}``.

    Raises:
        UserError: the name is unknown, the model has no map at a wanted stride, or an option is refused.
        WeightsError: the weights cannot be had or do not belong to the model.
    """
    narrow = _NARROW.match(name) if isinstance(name, str) else None
    if narrow:
        backbone = _build_narrow(name, int(narrow[1]), strides, weights, options or {})
    else:
        backbone = _build_timm(name, strides, weights, dict(options or {}))
    if frozen_norm:
        freeze_batch_norm_2d(backbone.network)
    return backbone


def set_norm_eps(network: nn.Module, eps: float) -> None:
    """What batch normalization, trained or fixed, adds to variances."""
    for module in network.modules():
        if "BatchNorm" in type(module).__name__:
            module.eps = eps  # type: ignore[assignment]


def backbone_names() -> list[str]:
    """Names to choose from: the narrow presets, the aliases and timm's models."""
    return ["narrow16", "narrow32", *ALIASES, *timm.list_models()]


def _build_narrow(
    name: str, width: int, strides: Sequence[int], weights: str | None, options: Mapping[str, Any]
) -> Backbone:
    if options:
        raise UserError(f"backbone {name}: takes no options, got {', '.join(options)}")
    if weights == "pretrained":
        raise WeightsError(f"backbone {name}: there are no pretrained weights for it; leave backbone_weights out")
    network = NarrowNet(width)
    if weights is not None:
        state = without_prefix(read_weights(weights), network.state_dict(), weights)
        _require_names(name, weights, network.state_dict(), state)
        network.load_state_dict(state, strict=False)
    channels: dict[int, int] = dict(zip((4, 8, 16, 32), network.widths, strict=True))
    return _select(name, network, channels, list(channels), strides)


def _build_timm(name: str, strides: Sequence[int], weights: str | None, options: dict[str, Any]) -> Backbone:
    model = ALIASES.get(name, name)
    if not isinstance(model, str) or not timm.is_model(model.partition(".")[0]):
        near = difflib.get_close_matches(str(name), backbone_names(), n=5, cutoff=0.4)
        raise UserError(
            f"backbone: expected 'narrow<W>' or the name of a timm model, got {name!r}; "
            f"near: {', '.join(near) or 'none'}"
        )
    pretrained: dict[str, Any] = {"pretrained": weights == "pretrained"}
    if weights not in (None, "pretrained"):
        with torch.device("meta"):
            expected = timm.create_model(model, num_classes=0, **options).state_dict()
        state = without_prefix(read_weights(weights), expected, weights)
        _require_names(name, weights, expected, state)
        pretrained = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    try:
        network = _create(model, {**options, **pretrained})
    except TypeError as error:
        raise UserError(f"backbone {name}: {error}") from None
    except OSError as error:
        raise WeightsError(f"backbone {name}: its pretrained weights could not be fetched: {error}") from error
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"backbone {name}: timm cannot give its feature maps: {error}") from error
    info: Any = network.feature_info
    channels: dict[int, int] = dict(zip(info.reduction(), info.channels(), strict=True))
    return _select(name, network, channels, info.reduction(), strides)


def _create(model: str, options: dict[str, Any]) -> nn.Module:
    """Build with ``features_only``; a model of fixed input size is first asked to take any."""
    fixed = bool(getattr(get_pretrained_cfg(model), "fixed_input_size", False))
    builders: list[Callable[[], nn.Module]] = [
        lambda flags=flags: timm.create_model(model, features_only=True, **{**flags, **options})
        for flags in (({"strict_img_size": False}, {"dynamic_img_size": True}) if fixed else ())
    ]
    for build in builders:
        try:
            return build()
        except TypeError:
            continue
    return timm.create_model(model, features_only=True, **options)


def _select(
    name: str, network: nn.Module, channels: Mapping[int, int], reductions: Sequence[int], strides: Sequence[int]
) -> Backbone:
    missing = [stride for stride in strides if stride not in channels]
    if missing:
        raise UserError(
            f"backbone {name}: expected feature maps at strides {', '.join(map(str, strides))}; "
            f"it has {', '.join(map(str, reductions))}"
        )
    positions = {stride: max(i for i, r in enumerate(reductions) if r == stride) for stride in strides}
    card: Any = getattr(network, "pretrained_cfg", None) or {}
    return Backbone(
        network=network,
        positions=positions,
        channels={stride: channels[stride] for stride in strides},
        channels_last=str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC"),
        mean=tuple(card.get("mean", IMAGENET_MEAN)),
        std=tuple(card.get("std", IMAGENET_STD)),
    )


def _require_names(name: str, source: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or wrong:
        shown = ", ".join((missing + wrong)[:10])
        raise WeightsError(
            f"backbone {name}: {source} lacks {len(missing)} of its {len(expected)} tensors and {len(wrong)} have "
            f"another shape: {shown}{' ...' if len(missing) + len(wrong) > 10 else ''}"
        )
