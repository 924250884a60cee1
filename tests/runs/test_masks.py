"""A pair that predicts masks, from its configuration to the summary."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from detkds.config import RunConfig
from detkds.config_file import parse_config
from detkds.errors import ConfigError
from detkds.runs.comparison import with_box_ap
from detkds.runs.evaluate import run_evaluate
from detkds.runs.plan import COMPARISON, make_plan
from detkds.runs.session import open_session
from detkds.runs.summary import comparable, summarize
from detkds.runs.train import run_train
from detkds.training.teacher import teacher_forward

FEW = {
    "neck_channels": 16,
    "representation": 16,
    "roi_resolution": 3,
    "roi_canonical_size": 32,
    "rpn_samples": 16,
    "roi_samples": 8,
    "rpn_pre_nms": 20,
    "rpn_post_nms": 10,
    "rpn_pre_nms_predict": 20,
    "rpn_post_nms_predict": 10,
}
MASKS = {"mask_resolution": 4, "mask_convs": 1, "mask_channels": 8}
BOX = {"detector": "faster_rcnn", "options": FEW}
MASK = {"detector": "mask_rcnn", "options": {**FEW, **MASKS}}


def _config(tiny_run: dict[str, Any], teacher: dict[str, Any], student: dict[str, Any]) -> RunConfig:
    tiny_run["teacher"] = {**tiny_run["teacher"], **teacher}
    tiny_run["student"] = {**tiny_run["student"], **student}
    return parse_config(tiny_run)


def _without_segmentations(config: dict[str, Any], folder: Path, part: str, ids: set[int]) -> None:
    """The same annotations in another file, some of them without a segmentation."""
    given = config["data"][part]
    content = json.loads(Path(given["annotations"]).read_text())
    for annotation in content["annotations"]:
        if annotation["id"] in ids:
            del annotation["segmentation"]
    path = folder / f"{part}.json"
    path.write_text(json.dumps(content))
    config["data"][part] = {**given, "annotations": str(path)}


@pytest.mark.parametrize(("teacher", "student"), [(BOX, BOX), (MASK, BOX), (BOX, MASK), (MASK, MASK)])
def test_targets_carry_masks_exactly_where_the_student_needs_them(
    tiny_run: dict[str, Any], teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    plan = make_plan(_config(tiny_run, teacher, student))
    batch = next(iter(plan.setups[COMPARISON].batches(0)(0)))
    assert batch.targets is not None
    assert [("masks" in target) for target in batch.targets] == [student is MASK] * len(batch.targets)
    losses = plan.build_student(0, True)(batch).losses
    assert ("loss_mask" in losses) == (student is MASK)
    assert not teacher_forward(plan.teacher, batch).losses
    assert plan.metric == ("mask AP" if student is MASK else "box AP")


def test_missing_segmentations_are_named_before_anything_is_trained(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    _without_segmentations(tiny_run, tmp_path, "train", {2, 3})
    _without_segmentations(tiny_run, tmp_path, "test", {1})
    for teacher, student in ((MASK, MASK), (MASK, BOX), (BOX, MASK)):
        with pytest.raises(ConfigError) as caught:
            make_plan(_config(tiny_run, teacher, student))
        first, second = caught.value.faults
        assert first.startswith("data.train: 2 annotations lack a mask, and this pair learns masks: annotation 2 of")
        assert "annotation 3 of" in first and second.startswith("data.test: 1 annotations lack a mask")
    assert make_plan(_config(tiny_run, BOX, BOX)).metric == "box AP"


def test_training_and_evaluation_report_masks_and_boxes(tiny_run: dict[str, Any], heard: Any) -> None:
    config = _config(tiny_run, MASK, MASK)
    done = run_train(config, "student", None, heard)
    assert done.metrics["kind"] == "mask" and done.metrics["boxes"]["kind"] == "box"
    assert 0 <= done.metrics["ap"] <= 1 and 0 <= done.metrics["boxes"]["ap"] <= 1
    assert "task/loss_mask" in json.loads(done.steps.read_text().splitlines()[0])["losses"]
    assert run_evaluate(config, done.weights, "student", "test") == done.metrics


@pytest.mark.parametrize(("teacher", "student"), [(MASK, BOX), (BOX, MASK)])
def test_a_teacher_stands_beside_the_students_by_what_both_have(
    tiny_run: dict[str, Any], heard: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    plan = make_plan(_config(tiny_run, teacher, student))
    with open_session(plan, heard) as session:
        metrics = session.prepare_teacher()
    assert metrics["kind"] == ("mask" if teacher is MASK else "box")
    confirmed: Any = [type("Confirmed", (), {"policy": plan.policies["pkd"], "ap": {}, "to_dict": dict})()]
    summary = summarize(plan, metrics, [], [], confirmed, {})
    [row] = summary["rows"]
    assert summary["metric"] == plan.metric
    if student is BOX:
        assert row["mean"] == 100 * metrics["boxes"]["ap"] and "box_ap" not in row["metrics"]
    else:
        assert row["mean"] is None and row["ap"] == {} and row["metrics"] == {"box_ap": 100 * metrics["ap"]}


def test_figures_by_hand() -> None:
    boxes = {"kind": "box", "ap": 0.5, "ap50": 0.7}
    masks = {"kind": "mask", "ap": 0.4, "ap50": 0.6, "boxes": boxes}
    assert with_box_ap(masks)["box_ap"] == 0.5 and with_box_ap(boxes) == boxes
    assert comparable(masks, masks=True)["ap"] == 0.4 and comparable(masks, masks=False) == boxes
    assert comparable(boxes, masks=True) == {"box_ap": 0.5}
    assert comparable({"ap": math.pi}, masks=False) == {"ap": math.pi}  # a record of an earlier version
