"""One step between two detectors: well where it is, and every fault it can find is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detkds.detectors import Detector, build_detector
from detkds.runs.pair_check import check_pair_step, random_batch
from detkds.structures import Batch, DetectorOutput


def _small(name: str, **options: Any) -> Detector:
    return build_detector(name, ["ant", "bee"], **{"backbone": "narrow8", "neck_channels": 16, **options})


@pytest.fixture
def teacher() -> Detector:
    return _small("retinanet", neck_channels=24).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_all_is_well_with_a_sound_pair(name: str, teacher: Detector) -> None:
    check = check_pair_step(_small(name), teacher, side=96)
    assert check.faults == ()
    kinds = {label.partition("/")[0] for label in check.losses}
    assert kinds >= {"task", "global", "fgbg", "instance"} and ("localization" in kinds) == (name == "retinanet")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda output: output.features.update({k: v.detach() for k, v in output.features.items()}), "no gradient"),
        (lambda output: output.features.update({k: v * torch.nan for k, v in output.features.items()}), "nan"),
    ],
)
def test_a_broken_student_is_noticed(
    change: Callable[[DetectorOutput], None], fault: str, teacher: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = _small("retinanet")
    real = student.forward

    def broken(batch: Batch) -> DetectorOutput:
        output = real(batch)
        change(output)
        return output

    monkeypatch.setattr(student, "forward", broken)
    faults = check_pair_step(student, teacher, side=96).faults
    assert faults and any(fault in one for one in faults)


def test_a_teacher_that_changes_or_gets_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = _small("retinanet")
    real = teacher.forward

    def moving(batch: Batch) -> DetectorOutput:
        norm: Tensor = next(buffer for name, buffer in teacher.named_buffers() if name.endswith("running_mean"))
        norm += 1.0
        return real(batch)

    monkeypatch.setattr(teacher, "forward", moving)
    assert check_pair_step(_small("retinanet"), teacher, side=96).faults == ("the teacher was changed",)


def test_masks_are_the_boxes() -> None:
    batch = random_batch(2, 64, 0)
    assert batch.targets is not None
    for target in batch.targets:
        areas = (target["boxes"].round()[:, 2:] - target["boxes"].round()[:, :2]).prod(1)
        assert target["masks"].flatten(1).sum(1).tolist() == areas.tolist()
    assert not batch.images[1, :, 48:].any() and batch.image_sizes.tolist() == [[64, 64], [48, 64]]
