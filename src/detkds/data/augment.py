"""Random flips, large-scale jitter and color jitter as plain numbers, applied with one resampling.

A :class:`Draw` is drawn from a generator that depends on (seed, epoch, image, occurrence) alone, so every candidate of
a search, every worker and every order of use sees the same pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as functional
from torch import Tensor

from detkds.config import AugmentationConfig
from detkds.structures import Target

MIN_AREA_LEFT = 0.25
"""Boxes of which a crop leaves less than this fraction are dropped."""
MIN_SIDE_PX = 2.0
"""Boxes with a side shorter than this many network pixels are dropped."""


NO_AUGMENTATION = AugmentationConfig(flip=0.0)
"""Training images as they are."""


@dataclass(frozen=True)
class Draw:
    """What happens to one image, as plain numbers (``dataclasses.asdict`` gives JSON); the default changes nothing.

    ``top`` and ``left`` place the window of a crop: 0 at the top or left edge, 1 at the bottom or right edge.
    """

    flip: bool = False
    scale: float = 1.0
    crop: bool = False
    top: float = 0.0
    left: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


def stable_seed(*parts: int | str) -> int:
    """A seed below 2^63 that depends on the parts alone: equal in every process, Python and machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def image_generator(seed: int, epoch: int, image_id: int, occurrence: int = 0) -> torch.Generator:
    """The generator of one image's draw; ``occurrence`` counts how often the epoch has shown the image before."""
    return torch.Generator().manual_seed(stable_seed("draw", seed, epoch, image_id, occurrence))


def draw(generator: torch.Generator, augmentation: AugmentationConfig) -> Draw:
    """Draw what happens to one image.

    All eight numbers are drawn whatever is switched on, so turning one amount off leaves the others as they were.
    """
    uniform: list[float] = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
    low, high = augmentation.scale

    def factor(amount: float, number: float) -> float:
        return 1.0 + amount * (2.0 * number - 1.0)

    return Draw(
        flip=uniform[0] < augmentation.flip,
        scale=low + (high - low) * uniform[1],
        crop=augmentation.crop,
        top=uniform[2],
        left=uniform[3],
        brightness=factor(augmentation.brightness, uniform[4]),
        contrast=factor(augmentation.contrast, uniform[5]),
        saturation=factor(augmentation.saturation, uniform[6]),
        hue=augmentation.hue * (2.0 * uniform[7] - 1.0),
    )


def apply(image: Tensor, target: Target, draw: Draw, out_size: tuple[int, int]) -> tuple[Tensor, Target]:
    """Resample, crop, flip and recolor an image together with its objects.

    Args:
        image: ``(3, H, W)`` uint8.
        target: boxes in pixels of ``image``; masks may have any resolution, they span the whole image.
        out_size: height and width in pixels at scale 1.

    Returns:
        The image as ``(3, h, w)`` float in [0, 1], and its target in pixels of that image. Boxes are clipped;
        those with less than a quarter of their area left or a side below 2 pixels are gone, labels and masks alike.
    """
    height, width = image.shape[-2:]
    if draw.crop and draw.scale > 1:
        rows, columns = max(1, round(height / draw.scale)), max(1, round(width / draw.scale))
        out_height, out_width = out_size
    else:
        rows, columns = height, width
        out_height, out_width = (max(1, round(side * draw.scale)) for side in out_size)
    top, left = round(draw.top * (height - rows)), round(draw.left * (width - columns))
    image = image[:, top : top + rows, left : left + columns]
    if (rows, columns) != (out_height, out_width):
        image = functional.resize(image, [out_height, out_width], antialias=True)
    image = _recolor(image.float().div_(255.0), draw)

    def place(boxes: Tensor) -> Tensor:
        moved = (boxes - boxes.new_tensor([left, top, left, top])) * boxes.new_tensor(
            [out_width / columns, out_height / rows] * 2
        )
        if draw.flip:
            moved = torch.stack([out_width - moved[:, 2], moved[:, 1], out_width - moved[:, 0], moved[:, 3]], dim=1)
        return moved

    boxes, crowds = place(target["boxes"]), _clip(place(target["crowd_boxes"]), out_height, out_width)
    clipped = _clip(boxes, out_height, out_width)
    sides = clipped[:, 2:] - clipped[:, :2]
    keep = (sides.prod(1) >= MIN_AREA_LEFT * (boxes[:, 2:] - boxes[:, :2]).prod(1)) & (sides.amin(1) >= MIN_SIDE_PX)
    placed = Target(
        boxes=clipped[keep],
        labels=target["labels"][keep],
        crowd_boxes=crowds[(crowds[:, 2:] > crowds[:, :2]).all(1)],
    )
    if "masks" in target:
        masks = target["masks"][keep]
        at_rows = _nearest(masks.shape[1], height, top, rows, out_height)
        at_columns = _nearest(masks.shape[2], width, left, columns, out_width)
        masks = masks[:, at_rows][:, :, at_columns]
        placed["masks"] = masks.flip(2) if draw.flip else masks
    return image.flip(2) if draw.flip else image, placed


def _clip(boxes: Tensor, height: int, width: int) -> Tensor:
    return torch.minimum(boxes.clamp_min(0), boxes.new_tensor([width, height, width, height]))


def _nearest(cells: int, size: int, start: int, length: int, out: int) -> Tensor:
    """For each of ``out`` pixels over ``[start, start + length)`` of ``size``, the nearest of ``cells`` mask cells."""
    centers = (torch.arange(out, dtype=torch.float64) + 0.5) * (length / out) + start
    return (centers * (cells / size)).long().clamp_(0, cells - 1)


def _recolor(image: Tensor, draw: Draw) -> Tensor:
    if draw.brightness != 1.0:
        image = functional.adjust_brightness(image, draw.brightness)
    if draw.contrast != 1.0:
        image = functional.adjust_contrast(image, draw.contrast)
    if draw.saturation != 1.0:
        image = functional.adjust_saturation(image, draw.saturation)
    if draw.hue != 0.0:
        image = functional.adjust_hue(image, draw.hue)
    return image
