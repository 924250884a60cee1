"""Reading the COCO layout: labels, clipping, crowds, subsets, the evaluator's dict, real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkds.data.coco import CocoDataset, load_coco
from detkds.errors import DataError

Write = Callable[[dict[str, Any]], tuple[Path, Path]]


def test_labels_are_contiguous_by_ascending_category_id(write: Write, content: dict[str, Any]) -> None:
    dataset = load_coco(*write(content))
    assert dataset.category_ids == (2, 9)
    assert dataset.class_names == ("dog", "cat")
    assert dataset.image_ids == (7, 3)
    assert dataset.target(3)["labels"].tolist() == [1]
    assert dataset.target(7)["labels"].tolist() == [0]


def test_boxes_are_xyxy_and_clipped_and_crowds_are_apart(write: Write, content: dict[str, Any]) -> None:
    """[-5, 10, 20, 30] in 40 x 30 pixels spans x -5..15 and y 10..40, of which 0..15 and 10..30 are inside."""
    dataset = load_coco(*write(content))
    assert dataset.target(3)["boxes"].tolist() == [[1, 2, 4, 6]]
    assert dataset.target(7)["boxes"].tolist() == [[0, 10, 15, 30]]
    assert dataset.target(7)["crowd_boxes"].tolist() == [[0, 0, 40, 5]]
    assert dataset.target(3)["crowd_boxes"].shape == (0, 4)


def test_ground_truth_keeps_the_file_s_boxes_and_areas(write: Write, content: dict[str, Any]) -> None:
    truth = load_coco(*write(content)).ground_truth()
    found = [(a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"]) for a in truth["annotations"]]
    assert found == [
        (7, 2, [-5, 10, 20, 30], 600.0, 0),
        (7, 9, [0, 0, 40, 5], 200.0, 1),
        (3, 9, [1, 2, 3, 4], 9.0, 0),
    ]
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3]
    assert truth["categories"] == [{"id": 2, "name": "dog"}, {"id": 9, "name": "cat"}]


def test_an_image_without_annotations_has_an_empty_target(write: Write, content: dict[str, Any]) -> None:
    content["annotations"] = []
    target = load_coco(*write(content)).target(7, masks=True)
    assert {key: tuple(value.shape) for key, value in target.items()} == {  # type: ignore[attr-defined]
        "boxes": (0, 4),
        "labels": (0,),
        "crowd_boxes": (0, 4),
        "masks": (0, 30, 40),
    }


def test_subset_keeps_order_and_classes_and_shares_annotations(dataset: CocoDataset) -> None:
    part = dataset.subset([8, 3])
    assert part.image_ids == (3, 8)
    assert part.class_names == dataset.class_names
    assert part.table is dataset.table
    assert {a["image_id"] for a in part.ground_truth()["annotations"]} == {3, 8}
    with pytest.raises(DataError, match="the first is 99"):
        dataset.subset([3, 99])


def test_object_table_agrees_with_a_loop_over_targets(dataset: CocoDataset) -> None:
    part = dataset.subset([2, 5, 7, 11])
    positions, labels, areas = part.object_table()
    expected = [
        (position, int(label), float((box[2] - box[0]) * (box[3] - box[1])))
        for position, image_id in enumerate(part.image_ids)
        for box, label in zip(part.target(image_id)["boxes"], part.target(image_id)["labels"], strict=True)
    ]
    assert list(zip(positions.tolist(), labels.tolist(), areas.tolist(), strict=True)) == expected


def test_masks_fill_their_rectangles(dataset: CocoDataset) -> None:
    target = dataset.target(1, masks=True)
    for box, mask in zip(target["boxes"].long().tolist(), target["masks"], strict=True):
        expected = torch.zeros_like(mask)
        expected[box[1] : box[3], box[0] : box[2]] = True
        assert torch.equal(mask, expected)


def test_masks_of_an_annotation_without_segmentation_are_an_error(write: Write, content: dict[str, Any]) -> None:
    dataset = load_coco(*write(content))
    with pytest.raises(DataError, match=r"3 annotations lack a mask, and why: .*annotation 1 of image 3"):
        dataset.require_masks("why")
    with pytest.raises(DataError, match="annotation 1 of image 3: masks were asked for"):
        dataset.target(3, masks=True)


def test_degenerate_boxes_can_be_left_out_of_training_but_stay_in_the_truth(
    write: Write, content: dict[str, Any]
) -> None:
    content["annotations"].append({"id": 8, "image_id": 3, "category_id": 2, "bbox": [5, 5, 3, 0]})
    paths = write(content)
    with pytest.raises(DataError, match=r"data\.degenerate: skip"):
        load_coco(*paths)
    with pytest.warns(RuntimeWarning, match="left out of training"):
        dataset = load_coco(*paths, degenerate="skip")
    assert len(dataset.target(3)["boxes"]) == 1
    assert len(dataset.ground_truth()["annotations"]) == 4


def test_a_real_file_agrees_with_its_json(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("cocomini")
    dataset = load_coco(folder / "train.json", folder / "train")
    raw = json.loads((folder / "train.json").read_text())
    crowds = sum(a["iscrowd"] for a in raw["annotations"])
    assert (len(dataset), dataset.num_classes, crowds) == (132, 12, 11)
    targets = [dataset.target(image_id) for image_id in dataset.image_ids]
    assert sum(len(t["boxes"]) for t in targets) == len(raw["annotations"]) - crowds
    assert sum(len(t["crowd_boxes"]) for t in targets) == crowds
    names = {c["id"]: c["name"] for c in raw["categories"]}
    first = next(a for a in raw["annotations"] if not a["iscrowd"])
    target = dataset.target(first["image_id"])
    x, y, w, h = first["bbox"]
    index = int((target["boxes"] - torch.tensor([x, y, x + w, y + h])).abs().sum(1).argmin())
    assert dataset.class_names[int(target["labels"][index])] == names[first["category_id"]]
    assert dataset.image(first["image_id"]).shape[0] == 3


def test_real_masks_lie_in_their_boxes(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("nuclei")
    dataset = load_coco(folder / "val.json", folder / "val")
    target = dataset.target(dataset.image_ids[0], masks=True)
    for box, mask in zip(target["boxes"].numpy(), target["masks"].numpy(), strict=True):
        rows, columns = np.nonzero(mask)
        extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(extent - box).max() <= 2
