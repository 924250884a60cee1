"""Files of weights: what training scripts save is read, nothing in a file is run, and what is wrong is said."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detkds.detectors.checkpoints import AVERAGES, read_weights
from detkds.detectors.origins import origin_of
from detkds.errors import WeightsError


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("kind", ["absent", "garbage.safetensors", "garbage.pth", "list.pth", "numbers.pth", "folder"])
def test_unreadable_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind.startswith("garbage"):
        path.write_bytes(b"no tensors here" * 9)
    elif kind == "list.pth":
        torch.save([torch.zeros(1)], path)
    elif kind == "numbers.pth":
        torch.save({"epoch": 3}, path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(WeightsError, match=kind):
        read_weights(path)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Payload()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Payload(), protocol=2))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(WeightsError, match=name):
            read_weights(name)
    assert not (tmp_path / "executed").exists()


def test_download_checks_the_hash_in_the_name_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked: list[tuple[str, str | None]] = []

    def fetch(url: str, target: str, prefix: str | None = None, progress: bool = True) -> None:
        asked.append((url, prefix))
        torch.save({"a": torch.ones(2)}, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    address = "https://example.org/models/net-258fb6c6.pth?download=1"
    for _ in range(2):
        assert read_weights(address)["a"].tolist() == [1, 1]
    read_weights("https://example.org/other.pth")
    assert asked == [(address, "258fb6c6"), ("https://example.org/other.pth", None)]


def test_failed_download_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError, match=r"example.org.*invalid hash"):
        read_weights("https://example.org/net-258fb6c6.pth")
    with pytest.raises(WeightsError, match="file name"):
        read_weights("https://example.org")


@pytest.mark.parametrize("key", AVERAGES)
def test_of_a_model_and_its_average_the_average_is_read_and_said(key: str, tmp_path: Path) -> None:
    average = {"module": {"a": torch.ones(1)}, "updates": 9}
    torch.save({"model": {"a": torch.zeros(1)}, key: average, "epoch": 3}, tmp_path / "both.pth")
    with pytest.warns(RuntimeWarning, match=f"holds a model .* and its moving average \\('{key}'\\)"):
        assert read_weights(tmp_path / "both.pth")["a"].tolist() == [1]


def test_an_empty_average_is_none(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "ema": None}, tmp_path / "one.pth")
    assert read_weights(tmp_path / "one.pth")["a"].tolist() == [0]


def test_whole_modules_need_trust(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 1).half(), "epoch": 3}, tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"torch.nn.modules.linear.Linear.* run any code; set trust: true"):
        read_weights(tmp_path / "module.pt")
    tensors = read_weights(tmp_path / "module.pt", trust=True)
    assert list(tensors) == ["weight", "bias"] and tensors["weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "roi_head.mask_head.convs.0.conv.weight": r"mmdetection \(Mask R-CNN\)",
        "bbox_head.retina_cls.weight": r"mmdetection \(RetinaNet\)",
        "roi_heads.box_head.fc1.weight": r"detectron2 \(Faster R-CNN\)",
        "model.22.cv2.0.0.conv.weight": "Ultralytics",
        "refpoint_embed.weight": "RF-DETR",
        "transformer.decoder.layers.0.linear1.weight": "facebookresearch/detr",
        "model.decoder.layers.0.fc1.weight": "transformers",
        "rpn.head.cls_logits.weight": "torchvision",
        "layer1.0.conv1.weight": "a classifier: give it as backbone_weights",
    }.items(),
)
def test_origins_are_told_by_names(name: str, expected: str) -> None:
    line = origin_of(["other.weight", name])
    assert line is not None and re.search(f"^this looks like {expected}", line)
    assert origin_of(["other.weight"]) is None
