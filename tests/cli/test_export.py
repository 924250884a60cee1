"""``detkds export``: folders and files that are written, and those that are not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from detkds.config_file import load_config
from detkds.detectors.weights import save_weights
from detkds.runs.plan import make_detector

LOW = "student.options.score_threshold=0.001"


@pytest.fixture
def weights(config_file: Path, tmp_path: Path) -> Path:
    """Weights of a student that was never trained: no score passes the default threshold."""
    path = tmp_path / "untrained.safetensors"
    save_weights(make_detector(load_config(config_file).student, ("zero", "one"), 0), path)
    return path


def test_a_folder_for_torchvision(config_file: Path, weights: Path, invoke: Any, tmp_path: Path) -> None:
    result = invoke("export", config_file, "--to", tmp_path / "home", "--weights", weights)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "home").iterdir()} == {
        "load.py",
        "model.json",
        "model.safetensors",
        "narrow.py",
    }
    assert json.loads((tmp_path / "home" / "model.json").read_text())["options"]["anchor_scales"] == [2.0]


def test_an_onnx_file_is_checked_on_the_test_images(
    config_file: Path, weights: Path, invoke: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    target = tmp_path / "deep" / "model.onnx"
    command = ("export", config_file, "--to", target, "--format", "onnx", "--weights", weights)
    refused = invoke(*command)
    assert refused.exit_code == 2
    assert "no detections in 8 images, so there is nothing to compare; nothing was written" in refused.stderr
    assert list(target.parent.iterdir()) == []

    done = json.loads(invoke(*command, LOW, "--json").stdout)
    assert done["path"] == str(target) and target.exists()
    assert done["parity"]["images"] == 8 and done["parity"]["agreed"] > 0
    assert "detections in 8 images agree" in invoke(*command, LOW).stdout
    assert invoke(*command, "--no-check").exit_code == 0
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]


def test_what_is_missing_is_said(
    config_file: Path, invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke("export", config_file, "--to", tmp_path / "x")
    assert result.exit_code == 2
    assert "runs/tiny/student.safetensors, found nothing; name a file with --weights" in result.stderr
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else found(name, *rest))
    result = invoke("export", config_file, "--to", tmp_path / "x.onnx", "--format", "onnx")
    assert result.exit_code == 2
    assert "pip install 'detkds[onnx]'" in result.stderr
