"""The embedded data set: repeatable, tight, disjoint parts, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detkds.data import digits
from detkds.data.coco import load_coco
from detkds.data.digits import CocoPaths, make_digits
from detkds.errors import DataError

Paths = tuple[CocoPaths, CocoPaths]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return make_digits(tmp_path_factory.mktemp("made") / "digits", train=40, val=12, size=96)


def test_it_loads_with_boxes_tight_around_masks(made: Paths) -> None:
    dataset = load_coco(*made[0])
    assert len(dataset) == 40 and dataset.num_classes == 10
    dataset.require_masks("digits have masks")
    for image_id in dataset.image_ids:
        target = dataset.target(image_id, masks=True)
        for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            extent = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            assert extent == box
        assert int(target["masks"].sum(0).max() if len(target["masks"]) else 0) <= 1
    areas = [a["area"] for a in dataset.ground_truth()["annotations"]]
    assert min(areas) > 10


def test_counts_vary_and_all_classes_occur(made: Paths) -> None:
    dataset = load_coco(*made[0])
    counts = {len(dataset.target(image_id)["labels"]) for image_id in dataset.image_ids}
    assert 0 in counts and len(counts) >= 4
    assert set(dataset.object_table()[1].tolist()) == set(range(10))


def test_digits_differ_from_what_lies_below(made: Paths) -> None:
    dataset = load_coco(*made[1])
    differences = []
    for image_id in dataset.image_ids:
        image, target = dataset.image(image_id).float().mean(0), dataset.target(image_id, masks=True)
        for (left, top, right, bottom), mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            inside, around = image[mask], image[top:bottom, left:right][~mask[top:bottom, left:right]]
            differences.append(float((inside.mean() - around.mean()).abs()))
    assert np.median(differences) > 40


def test_another_seed_gives_other_images(made: Paths, tmp_path: Path) -> None:
    other = make_digits(tmp_path / "other", train=2, val=1, size=96, seed=1)
    assert not torch.equal(load_coco(*other[0]).image(1), load_coco(*made[0]).image(1))


def test_fewer_classes(tmp_path: Path) -> None:
    train, _ = make_digits(tmp_path / "few", train=10, val=2, size=64, num_classes=3)
    dataset = load_coco(*train)
    assert dataset.class_names == ("zero", "one", "two")
    assert set(dataset.object_table()[1].tolist()) == {0, 1, 2}


def test_train_and_val_share_no_digit_and_no_background() -> None:
    train, val = (digits._samples(part)[0] for part in (True, False))
    assert len(train) + len(val) == 1797
    assert not {digit.tobytes() for digit in train} & {digit.tobytes() for digit in val}
    for left, right in zip(digits._photographs(True), digits._photographs(False), strict=True):
        assert left.shape[2] + right.shape[2] == 640


def test_a_made_folder_is_used_as_it_is_and_others_are_refused(made: Paths, tmp_path: Path) -> None:
    folder = made[0].images.parent
    before = made[0].annotations.stat().st_mtime_ns
    assert make_digits(folder, train=40, val=12, size=96) == made
    assert made[0].annotations.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="already holds something else"):
        make_digits(folder, train=41, val=12, size=96)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="already holds something else"):
        make_digits(tmp_path)
    (tmp_path / "empty").mkdir()
    make_digits(tmp_path / "empty", train=1, val=1)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(digits, "run_lengths", fail)
    with pytest.raises(OSError, match="disk full"):
        make_digits(tmp_path / "digits", train=20, val=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"train": 0}, {"val": 0}, {"size": 8}, {"num_classes": 11}])
def test_arguments_out_of_range_are_refused(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="digits: expected"):
        make_digits(tmp_path / "digits", **change)
