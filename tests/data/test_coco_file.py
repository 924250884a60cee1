"""Faults of annotation files and folders: each is named, all at once."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkds.data.coco import CocoDataset, load_coco
from detkds.data.coco_file import MAX_FAULTS
from detkds.errors import DataError

Write = Callable[[dict[str, Any]], tuple[Path, Path]]
Change = Callable[[dict[str, Any]], Any]


def _put(kind: str, **values: Any) -> Change:
    """Change the first entry of a list."""
    return lambda content: content[kind][0].update(values)


def _drop(kind: str, key: str) -> Change:
    return lambda content: content[kind][0].pop(key)


FAULTS: dict[str, tuple[Change, str]] = {
    "no images list": (lambda c: c.pop("images"), "images: expected a list, got nothing"),
    "annotations no list": (lambda c: c.update(annotations={}), "annotations: expected a list, got dict"),
    "no categories": (lambda c: c.update(categories=[]), "categories: expected at least one"),
    "entry no object": (lambda c: c["annotations"].append(3), "annotations[3]: expected an object, got a int"),
    "image key missing": (_drop("images", "file_name"), "images[0]: missing file_name"),
    "annotation keys missing": (_drop("annotations", "bbox"), "annotations[0]: missing bbox"),
    "category key missing": (_drop("categories", "name"), "categories[0]: missing name"),
    "unknown category": (_put("annotations", category_id=4), "annotation 1: category_id 4 is no category"),
    "unknown image": (_put("annotations", image_id=99), "annotation 1: image_id 99 is no image"),
    "image id twice": (_put("images", id=3), "images[1]: id 3 is used twice"),
    "annotation id twice": (_put("annotations", id=2), "annotations[1]: id 2 is used twice"),
    "category id twice": (_put("categories", id=2), "categories[1]: id 2 is used twice"),
    "category name twice": (_put("categories", name="dog"), "categories[1]: name 'dog' is used twice"),
    "text id": (_put("images", id="7a"), "images[0]: id: expected a whole number, got '7a'"),
    "three numbers": (_put("annotations", bbox=[1, 2, 3]), "annotation 1: bbox: expected 4 finite numbers"),
    "infinite": (_put("annotations", bbox=[1, 2, 3, float("inf")]), "annotation 1: bbox: expected 4 finite numbers"),
    "text box": (_put("annotations", bbox=[1, 2, 3, "wide"]), "annotation 1: bbox: expected 4 finite numbers"),
    "no width": (_put("annotations", bbox=[1, 2, 0, 4]), "bbox [1, 2, 0, 4]: width and height must be > 0"),
    "negative height": (_put("annotations", bbox=[1, 2, 3, -4]), "width and height must be > 0"),
    "outside": (_put("annotations", bbox=[20, 2, 3, 4]), "lies outside its image of 20x20 pixels"),
    "huge number": (_put("annotations", bbox=[1, 2, 3, 10**400]), "annotation 1: bbox: expected 4 finite numbers"),
    "huge id": (_put("images", id=10**20), "images[0]: id: expected a whole number, got 10000"),
    "area": (_put("annotations", area="big"), "annotation 1: area: expected a finite number"),
    "iscrowd": (_put("annotations", iscrowd=2), "annotation 1: iscrowd: expected 0 or 1, got 2"),
    "zero width image": (_put("images", width=0), "image 7: width: expected a whole number of pixels > 0, got 0"),
    "missing file": (_put("images", file_name="c.png"), "image 7: file_name 'c.png': no such file"),
    "directory": (_put("images", file_name="sub"), "image 7: file_name 'sub': no such file"),
    "parent": (_put("images", file_name="../annotations.json"), "leaves the image folder; names must be relative"),
    "inner parent": (_put("images", file_name="sub/../../x.png"), "leaves the image folder; names must be relative"),
    "absolute": (_put("images", file_name="/etc/hostname"), "leaves the image folder; names must be relative"),
    "drive": (_put("images", file_name="C:\\x.png"), "leaves the image folder; names must be relative"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault: str, write: Write, content: dict[str, Any]) -> None:
    annotations, images = write(content)
    change, expected = FAULTS[fault]
    broken = copy.deepcopy(content)
    change(broken)
    annotations.write_text(json.dumps(broken))
    with pytest.raises(DataError) as caught:
        load_coco(annotations, images)
    assert any(expected in line for line in caught.value.faults), caught.value.faults
    assert all(str(annotations) in line for line in caught.value.faults)


def test_the_unbroken_content_loads(write: Write, content: dict[str, Any]) -> None:
    assert len(load_coco(*write(content))) == 2


def test_all_faults_come_in_one_error(write: Write, content: dict[str, Any]) -> None:
    annotations, images = write(content)
    _put("annotations", category_id=4, bbox=[1, 2])(content)
    _put("images", width=0, file_name="gone.png")(content)
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        load_coco(annotations, images)
    text = "\n".join(caught.value.faults)
    for expected in ("category_id 4", "bbox: expected 4", "image 7: width", "gone.png"):
        assert expected in text


def test_many_faults_are_counted(write: Write, content: dict[str, Any]) -> None:
    annotations, images = write(content)
    content["annotations"] = [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}] * 50
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        load_coco(annotations, images)
    assert len(caught.value.faults) == MAX_FAULTS + 1
    assert caught.value.faults[-1].endswith("and 30 more faults")


def test_missing_file_and_folder_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_coco(tmp_path / "no.json", tmp_path / "no")
    assert "image folder" in caught.value.faults[0]
    assert "cannot be read" in caught.value.faults[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "expected JSON"), ("[1]", "got a list"), ("\xff", "JSON"), ("[" * 10**5, "JSON")],
    ids=["open", "list", "latin", "deep"],
)
def test_a_file_that_is_no_coco_json(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=expected):
        load_coco(path, tmp_path)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(write: Write, content: dict[str, Any]) -> None:
    annotations, images = write(content)
    (images / "a.png").rename(images / "real.png")
    (images / "a.png").symlink_to("real.png")
    assert len(load_coco(annotations, images)) == 2
    (images / "real.png").rename(images.parent / "elsewhere.png")
    (images / "a.png").unlink()
    (images / "a.png").symlink_to(images.parent / "elsewhere.png")
    with pytest.raises(DataError, match="through a link"):
        load_coco(annotations, images)


def test_a_linked_sub_folder_is_refused_and_a_linked_image_folder_is_not(write: Write, content: dict[str, Any]) -> None:
    annotations, images = write(content)
    link = images.parent / "link"
    link.symlink_to(images)
    assert len(load_coco(annotations, link)) == 2
    (images / "sub").rename(images.parent / "outside")
    (images / "sub").symlink_to(images.parent / "outside")
    with pytest.raises(DataError, match="through a link"):
        load_coco(annotations, images)


Paths = tuple[Path, Path]


def _loaded(content: dict[str, Any], paths: Paths, change: Change) -> CocoDataset:
    changed = copy.deepcopy(content)
    change(changed)
    paths[0].write_text(json.dumps(changed))
    return load_coco(*paths)


@pytest.mark.parametrize(
    "change",
    [
        _put("images", width=40.0, height="30"),
        _put("images", id="7"),
        _put("images", width=None),
        _drop("images", "height"),
        _put("annotations", id="1", image_id=3.0, category_id="9"),
        _put("annotations", bbox=["1", 2.0, "3.0", 4], area="9"),
        _put("annotations", iscrowd=None),
        _put("annotations", iscrowd=False),
        _drop("annotations", "iscrowd"),
        _put("categories", id="9"),
    ],
)
def test_forms_of_one_meaning_are_read_as_that(change: Change, write: Write, content: dict[str, Any]) -> None:
    paths = write(content)
    expected = load_coco(*paths).ground_truth()
    assert _loaded(content, paths, change).ground_truth() == expected


def test_a_byte_order_mark_is_no_fault(write: Write, content: dict[str, Any]) -> None:
    annotations, images = write(content)
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    assert len(load_coco(annotations, images)) == 2


@pytest.mark.parametrize(
    ("name", "note"),
    {
        "sub\\b.png": "read with / for",
        "images/sub/b.png": "without the folder images",
        "images\\sub\\b.png": "without the folder images",
    }.items(),
)
def test_other_spellings_of_a_file_name_are_read_and_said(
    name: str, note: str, write: Write, content: dict[str, Any]
) -> None:
    paths = write(content)
    with pytest.warns(RuntimeWarning, match=note):
        dataset = _loaded(content, paths, lambda c: c["images"][1].update(file_name=name))
    assert dataset.records[3].file_name == "sub/b.png" and dataset.image(3).shape == (3, 20, 20)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_another_unicode_form_of_a_file_name_is_read(
    forms: tuple[str, str], write: Write, content: dict[str, Any]
) -> None:
    annotations, images = write(content)
    written, stored = (unicodedata.normalize(form, "café.png") for form in forms)
    (images / "a.png").rename(images / stored)
    with pytest.warns(RuntimeWarning, match="another Unicode form"):
        dataset = _loaded(content, (annotations, images), _put("images", file_name=written))
    assert dataset.records[7].file_name == stored


def test_a_file_of_another_case_is_hinted_at(write: Write, content: dict[str, Any]) -> None:
    annotations, images = write(content)
    (images / "a.png").rename(images / "A.PNG")
    with pytest.raises(DataError, match=r"no such file in .*; did you mean 'A.PNG'\?"):
        load_coco(annotations, images)


def test_annotations_of_a_faulty_image_say_nothing_more(write: Write, content: dict[str, Any]) -> None:
    paths = write(content)
    with pytest.raises(DataError) as caught:
        _loaded(content, paths, _put("images", width=-1))
    assert len(caught.value.faults) == 1


def test_boxes_left_out_are_counted(write: Write, content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = [1, 2, -1, 4]
    with pytest.warns(RuntimeWarning, match="1 boxes without area inside their image are left out of training"):
        dataset = load_coco(*write(content), degenerate="skip")
    assert len(dataset.target(3)["boxes"]) == 0


def test_a_category_that_only_groups_the_others_is_left_out(write: Write, content: dict[str, Any]) -> None:
    content["categories"] = [{**category, "supercategory": "pets"} for category in content["categories"]]
    content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
    paths = write(content)
    with pytest.warns(RuntimeWarning, match="category 'pets' groups the others and has no object; it is left out"):
        assert load_coco(*paths).class_names == ("dog", "cat")
    own = _loaded(content, paths, lambda c: c["annotations"][0].update(category_id=0))
    assert own.class_names == ("pets", "dog", "cat")  # it has an object
