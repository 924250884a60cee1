"""The benchmark of the losses: the versions it compares with compute the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "loss_speed.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loss_speed", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_looped_masks_are_right_by_hand(bench: ModuleType) -> None:
    """A box of 2 x 1 cells at stride 8, an image whose last column of cells is padding."""
    target = {"boxes": torch.tensor([[8.0, 8.0, 24.0, 16.0]])}
    foreground, background = bench.looped_masks([target], torch.tensor([[24, 24]]), (24, 32))["p3"]
    assert foreground[0, 0].tolist() == [[0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0]]
    assert background[0, 0].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]]


def test_both_sides_agree_and_the_figures_are_written(bench: ModuleType, tmp_path: Path) -> None:
    sizes = ["--height", "96", "--width", "128", "--images", "3", "--boxes", "4", "--loss-images", "2"]
    bench.main([*sizes, "--channels", "3", "--repetitions", "1", "--out", str(tmp_path / "speed.json")])
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["masks", "fgbg l2", "cwd", "pkd", "ssim"]
    assert all(row["equal"] for row in found["rows"] if row["must_equal"])
    assert "--height 96" in found["command"] and found["machine"]["threads"] == 1
