"""What goes into a model of the transformers library, and what comes out of it besides its responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from detkds.detectors.base import evaluating
from detkds.errors import ConfigError
from detkds.precision import full_precision
from detkds.structures import Target

_LOSS = re.compile(r"^(loss_[a-z]+?)(_aux_\d+|_\d+|_dn_\d+|_enc)?$")
_IDLE = re.compile(r"\.(denoising_class_embed\.weight|mask_token)$")
_GROUPS = {"_dn": "_denoising", "_en": "_encoder"}


def gather_losses(losses: Mapping[str, Tensor], weights: Mapping[str, float | str], config: Any) -> dict[str, Tensor]:
    """The library's losses, weighted as its total is, in groups; what it only logs is left out.

    Args:
        losses: by the library's names: ``loss_bbox`` of the last layer, ``loss_bbox_0`` or ``loss_bbox_aux_0`` of the
            one numbered so, ``loss_bbox_dn_0`` of its denoising queries, ``loss_bbox_enc`` of the encoder's choice.
        weights: a number or a field of the configuration for each loss; 1 where it is not named.
        config: the library's configuration.

    Returns:
        ``loss_bbox``, ``loss_bbox_auxiliary``, ``loss_bbox_denoising``, ``loss_bbox_encoder`` and so on, each the sum
        over its layers.
    """
    gathered: dict[str, Tensor] = {}
    for name, value in losses.items():
        if (match := _LOSS.match(name)) is None:
            continue
        weight = weights.get(match[1], 1.0)
        weighted = value * (getattr(config, weight) if isinstance(weight, str) else weight)
        group = match[1] + (_GROUPS.get(match[2][:3], "_auxiliary") if match[2] else "")
        gathered[group] = gathered[group] + weighted if group in gathered else weighted
    return gathered


def idle_parameters(model: nn.Module) -> Tensor:
    """0, with gradient to what a pass may leave out: training on several devices waits for every gradient.

    The embedding of denoising queries has no part in a batch without objects, the mask token in none.
    """
    idle = [parameter for name, parameter in model.named_parameters() if _IDLE.search(name) and parameter.requires_grad]
    return sum((0 * parameter.sum() for parameter in idle), torch.zeros((), device=next(model.parameters()).device))


def body_strides(model: Any) -> list[int]:
    """Pixels per cell of each map that the body of a model of the DETR line gives, measured on a blank image.

    No configuration says it of every body: some fields that ought to change it, such as ``dilation``, change nothing
    in some bodies.

    Raises:
        ConfigError: a map does not halve the image a whole number of times.
    """
    body, side = model.model.backbone, 128
    body = getattr(body, "conv_encoder", body)
    with evaluating(body), torch.no_grad():
        maps = body(torch.zeros(1, 3, side, side), valid_pixels(torch.tensor([[side, side]]), (side, side)))
    cells = [features.shape[-1] for features, _ in maps]
    if any(side % count for count in cells):
        raise ConfigError(
            f"config: expected a body whose strides are powers of 2; {side} pixels give it maps of "
            f"{', '.join(map(str, cells))} cells"
        )
    return [side // count for count in cells]


@contextmanager
def projected_maps(model: Any, features: str) -> Iterator[list[Tensor]]:
    """The maps that a projector gives while the model runs inside; the library does not return them everywhere."""
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        maps.extend(features for features, _ in (output if isinstance(output, list) else [output]))

    if features != "projector":
        yield maps
        return
    handle = model.model.backbone.register_forward_hook(keep)
    try:
        yield maps
    finally:
        handle.remove()


def valid_pixels(sizes: Tensor, padded: tuple[int, int]) -> Tensor:
    """``(N, H, W)``, 1 where the image is and 0 where the padding is."""
    rows, columns = (torch.arange(side, device=sizes.device) for side in padded)
    heights, widths = sizes[:, :1], sizes[:, 1:]
    return ((rows < heights)[:, :, None] & (columns < widths)[:, None, :]).long()


def library_target(target: Target, extent: Tensor) -> dict[str, Tensor]:
    """One image's objects as the library's losses want them; boxes without area are left out."""
    boxes = target["boxes"].float()
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    scale = extent.flip(0).repeat(2)
    return {"class_labels": target["labels"][kept], "boxes": box_convert(boxes[kept], "xyxy", "cxcywh") / scale}


def in_full_precision(loss: Callable[..., Any], logits: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The library's loss outside autocast: matching costs and logarithms need more than half precision."""

    def full(value: Any) -> Any:
        return full_precision(value) if isinstance(value, Tensor) else value

    with torch.autocast(logits.device.type, enabled=False):
        return loss(full(logits), *map(full, args), **{name: full(value) for name, value in kwargs.items()})
