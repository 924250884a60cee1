"""Decoding: every kind of file becomes RGB of the stored pixels, broken ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkds.data.images import read_image
from detkds.errors import DataError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def _read(path: Path, width: int = 4, height: int = 3) -> torch.Tensor:
    return read_image(path, image_id=5, width=width, height=height)


def test_rgb_is_channels_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(_read(tmp_path / "a.png").numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    source = Image.fromarray(GREY)
    expected = np.array(source.convert(mode).convert("RGB"))
    source.convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(_read(tmp_path / "a.png").numpy(), expected.transpose(2, 0, 1))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert _read(tmp_path / "a.tif")[:, 0, 0].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_not_saturated(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert np.array_equal(_read(tmp_path / "a.png").numpy(), np.stack([GREY] * 3))


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif)
    assert _read(tmp_path / "a.jpg").shape == (3, 3, 4)


def test_another_size_than_annotated_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: image 5: annotations expect 3x4 pixels, the file has 4x3"):
        _read(tmp_path / "a.png", width=3, height=4)


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "absent"])
def test_a_broken_file_is_named_with_its_image(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    if kind == "absent":
        path.unlink()
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"no image", "empty": b""}[kind])
    with pytest.raises(DataError, match=r"a\.jpg: image 5: cannot be read"):
        _read(path, width=90, height=90)
