"""Data sets of other layouts, and several at once, read as one COCO data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from detkds.config import SplitConfig
from detkds.data.sources import load_split
from detkds.errors import DataError, UserError


def _picture(path: Path, width: int = 40, height: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Two training images, one of them without objects, and one for validation."""
    root = tmp_path / "yolo"
    for name in ("images/train/a.png", "images/train/b.png", "images/val/c.png"):
        _picture(root / name)
    for name, lines in {"train/a": "1 0.5 0.5 0.25 0.5\n\n0 0 0 0.5 0 0.5 1\n", "val/c": "0 0.25 0.5 0.5 1"}.items():
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(lines)
    described = {"path": ".", "train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}}
    (root / "data.yaml").write_text(yaml.safe_dump(described))
    return root / "data.yaml"


def test_a_yolo_data_set_by_hand(yolo: Path) -> None:
    """Fractions of 40 x 20 pixels; a line of six numbers is a polygon, whose box is around it."""
    train = load_split(SplitConfig(annotations=yolo), "train")
    assert train.class_names == ("cat", "dog") and len(train) == 2
    assert [record.file_name for record in train.images] == ["a.png", "b.png"]
    target = train.target(1)
    assert target["boxes"].tolist() == [[15, 5, 25, 15], [0, 0, 20, 20]] and target["labels"].tolist() == [1, 0]
    assert len(train.target(2)["boxes"]) == 0
    segmentations = [annotation["segmentation"] for annotation in train.ground_truth(masks=True)["annotations"]]
    assert segmentations == [None, [[0, 0, 20, 0, 20, 20]]]
    test = load_split(SplitConfig(annotations=yolo), "test")
    assert [record.file_name for record in test.images] == ["c.png"]
    chosen = load_split(SplitConfig(annotations=yolo, split="train"), "test")
    assert len(chosen) == 2


def test_a_yolo_data_set_may_list_its_images_and_lead_out_of_its_folder(yolo: Path) -> None:
    root = yolo.parent
    (root / "list.txt").write_text("images/train/b.png\nimages/val/c.png\n")
    yolo.write_text(yaml.safe_dump({"train": ["list.txt"], "val": "../images/val", "names": ["cat", "dog"]}))
    listed = load_split(SplitConfig(annotations=yolo), "train")
    assert [record.file_name for record in listed.images] == ["train/b.png", "val/c.png"]
    assert len(load_split(SplitConfig(annotations=yolo), "test")) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train": "nowhere"}, "found nothing at"),
        ({"train": None}, "unknown split 'train'"),
        ({"names": []}, "names: expected a list of names"),
        ({"names": {0: "cat", 2: "dog"}}, "names: expected a list of names"),
        ({"names": ["cat"]}, "a.txt:1: expected a class from 0 to 0, got 1"),
    ],
)
def test_faults_of_a_yolo_data_set_are_named(change: dict[str, Any], expected: str, yolo: Path) -> None:
    yolo.write_text(yaml.safe_dump({**yaml.safe_load(yolo.read_text()), **change}))
    with pytest.raises(DataError) as caught:
        load_split(SplitConfig(annotations=yolo), "train")
    assert any(expected in line for line in caught.value.faults), caught.value.faults


@pytest.mark.parametrize("line", ["0 0.5 0.5 0.1", "cat 0.5 0.5 0.1 0.1", "0 nan 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1"])
def test_a_broken_line_is_named(line: str, yolo: Path) -> None:
    (yolo.parent / "labels/train/a.txt").write_text(f"1 0.5 0.5 0.25 0.5\n{line}\n")
    with pytest.raises(DataError, match=r"a\.txt:2: expected a class and 4 numbers"):
        load_split(SplitConfig(annotations=yolo), "train")


OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images, of which two are listed for training."""
    root = tmp_path / "voc"
    objects = {
        "a": [("dog", 0, 1, 1, 10, 20), ("cat", 1, 5, 5, 40, 20)],
        "b": [],
        "c": [("bee", 0, 2, 3, 4, 5)],
    }
    for name, rows in objects.items():
        _picture(root / "JPEGImages" / f"{name}.png")
        text = "".join(OBJECT.format(*row) for row in rows)
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        size = "<size><width>40</width><height>20</height></size>"
        path.write_text(f"<annotation><filename>{name}.png</filename>{size}{text}</annotation>")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c -1\n")
    return root


def test_a_voc_folder_by_hand(voc: Path) -> None:
    """Pixels count from 1 and the last is included; difficult objects are regions to ignore."""
    train = load_split(SplitConfig(annotations=voc), "train")
    assert train.class_names == ("bee", "cat", "dog") and [record.file_name for record in train.images] == [
        "a.png",
        "b.png",
    ]
    target = train.target(1)
    assert target["boxes"].tolist() == [[0, 0, 10, 20]] and target["labels"].tolist() == [2]
    assert target["crowd_boxes"].tolist() == [[4, 4, 40, 20]]
    assert train.image(2).shape == (3, 20, 40)
    test = load_split(SplitConfig(annotations=voc / "Annotations", images=voc / "JPEGImages"), "test")
    assert [record.file_name for record in test.images] == ["c.png"]


def test_faults_of_a_voc_folder_are_named(voc: Path) -> None:
    (voc / "Annotations" / "b.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    (voc / "Annotations" / "c.xml").write_text("<annotation><object><name>x</name></object></annotation>")
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text("a\nz\n")
    with pytest.raises(DataError) as caught:
        load_split(SplitConfig(annotations=voc), "train")
    text = "\n".join(caught.value.faults)
    assert "b.xml: cannot be read as XML: entities are not read" in text
    assert "1 of its images have no XML file, the first is z" in text
    with pytest.raises(DataError, match=r"c\.xml: object 0: expected a bndbox"):
        load_split(SplitConfig(annotations=voc), "test")
    with pytest.raises(DataError, match="expected XML files"):
        load_split(SplitConfig(annotations=voc / "JPEGImages"), "test")


def test_several_sets_are_one_with_the_classes_of_the_first(yolo: Path, voc: Path) -> None:
    named = yaml.safe_load(yolo.read_text())
    yolo.write_text(yaml.safe_dump({**named, "names": ["dog", "bee"]}))
    both = load_split([SplitConfig(annotations=voc), SplitConfig(annotations=yolo)], "train")
    assert both.class_names == ("bee", "cat", "dog") and both.image_ids == (1, 2, 3, 4)
    assert [record.file_name for record in both.images] == [
        *(f"voc/JPEGImages/{name}.png" for name in "ab"),
        *(f"yolo/images/train/{name}.png" for name in "ab"),
    ]
    assert both.target(3)["labels"].tolist() == [0, 2] and both.target(1)["labels"].tolist() == [2]
    assert both.image(4).shape == (3, 20, 40)
    with pytest.raises(DataError, match="expected the classes dog, bee, got cat besides"):
        load_split([SplitConfig(annotations=yolo), SplitConfig(annotations=voc)], "train")


def test_classes_that_are_known_go_before_those_of_a_set(yolo: Path) -> None:
    test = load_split(SplitConfig(annotations=yolo), "test", class_names=("bee", "dog", "cat"))
    assert test.class_names == ("bee", "dog", "cat") and test.target(1)["labels"].tolist() == [2]


def test_a_coco_file_needs_its_folder(write: Callable[[dict[str, Any]], Any], content: dict[str, Any]) -> None:
    annotations, images = write(content)
    dataset = load_split(SplitConfig(annotations=annotations, images=images), "train")
    assert torch.equal(dataset.target(3)["boxes"], torch.tensor([[1.0, 2, 4, 6]]))
    with pytest.raises(UserError, match="images: expected the folder"):
        load_split(SplitConfig(annotations=annotations), "train")
