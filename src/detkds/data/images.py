"""Reading image files as RGB, whatever they hold, without touching the stored orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detkds.errors import DataError


def read_image(path: Path, *, image_id: int, width: int, height: int) -> Tensor:
    """Read an image as ``(3, H, W)`` uint8 RGB.

    The pixels are taken as stored: an EXIF orientation is ignored, because COCO annotations describe stored pixels.
    Gray, palette and CMYK images are converted, transparency is dropped, 16-bit gray is scaled to 8 bits.

    Raises:
        DataError: the file cannot be decoded, or is not ``width`` x ``height`` as its annotations say.
    """
    where = f"{path}: image {image_id}"
    try:
        with Image.open(path) as image:
            array = _rgb_array(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: cannot be read ({error}); replace the file or remove the image") from error
    if array.shape[:2] != (height, width):
        raise DataError(
            f"{where}: annotations expect {width}x{height} pixels, the file has {array.shape[1]}x{array.shape[0]}; "
            "annotate the stored pixels (EXIF orientation is ignored) or fix width and height"
        )
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of the stored pixels, from the file's head alone."""
    with Image.open(path) as image:
        return image.size


def _rgb_array(image: Image.Image) -> np.ndarray:
    """``(H, W, 3)`` uint8."""
    if image.mode.startswith("I"):
        gray = np.array(image).astype(np.float64) / 257.0
        return np.repeat(np.clip(np.rint(gray), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("expected 8- or 16-bit pixels, got floating point")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
