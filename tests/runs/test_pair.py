"""What `detkds pair` says, without a training."""

from __future__ import annotations

import pytest

from detkds.errors import ConfigError
from detkds.runs.pair import describe_pair, detectors_of
from detkds.structures import DetectorInfo, FeatureSpec, Layout

NARROW = "backbone=narrow8, neck_channels=32"


def test_equal_families_offer_everything() -> None:
    teacher, student = detectors_of(
        "retinanet(backbone=narrow8, neck_channels=64)", f"retinanet({NARROW})", ["ant", "bee"]
    )
    data = describe_pair(student.info, teacher.info)
    assert {"fgbg", "global", "instance", "localization", "logits"} <= set(data["offered"])
    crossed = {"crossed_logits", "crossed_localization"}  # the heads differ in width
    assert set(data["refused"]) == crossed | {"object_logits", "object_localization"}  # of detectors with queries
    assert all(level["adapter"] and not level["resized"] for level in data["levels"])


def test_families_that_differ_offer_features_and_say_why_no_more() -> None:
    teacher, student = detectors_of(f"faster_rcnn({NARROW})", f"retinanet({NARROW})", ["ant", "bee"])
    data = describe_pair(student.info, teacher.info)
    assert {"fgbg", "global", "instance"} <= set(data["offered"]) and {"localization", "logits"} <= set(data["refused"])
    assert data["refused"]["logits"] == "kind differs: student dense, teacher region"
    assert [level["teacher_level"] for level in data["levels"]] == ["p3", "p4", "p5", "p6", None]


def test_nothing_in_common_is_said_of_every_kind() -> None:
    student = DetectorInfo({"p1": FeatureSpec(8, 2)}, Layout())
    data = describe_pair(student, DetectorInfo({"p5": FeatureSpec(8, 32)}, Layout()))
    assert not data["offered"] and set(data["refused"].values()) == {"no levels of equal or similar stride"}


def test_all_faults_of_both_sides_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        detectors_of("retinanot", "fcos(backbone=narrow8, necks=3)", ["ant"])
    assert len(caught.value.faults) == 2
    assert caught.value.faults[0].startswith("teacher: ") and "retinanet" in caught.value.faults[0]
    assert caught.value.faults[1].startswith("student: ") and "necks" in caught.value.faults[1]
