"""Crossed heads against the same convolutions written out, and against themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, group_norm

from detkds import Distiller, Policy, Term
from detkds.detectors import Detector, build_detector
from detkds.distiller import check_pair
from detkds.errors import PairError
from detkds.structures import Batch, DetectorInfo, DetectorOutput, FeatureSpec
from detkds.training.ask import ask

FAMILIES = ("retinanet", "fcos", "gfl")
BOTH = Policy([Term("crossed_logits(after=2)", [], "l2"), Term("crossed_localization(after=2)", ["decode"], "giou")])
Build = Callable[..., Detector]


@pytest.fixture
def build() -> Build:
    def make(name: str, seed: int = 0, classes: tuple[str, ...] = ("ant", "bee"), **options: Any) -> Detector:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = build_detector(
                name, classes, **{"backbone": "narrow8", "neck_channels": 8, "head_convs": 3, **options}
            )
            for parameter in found.model.head.parameters():
                torch.nn.init.normal_(parameter, std=0.3)  # the heads' own weights say next to nothing
        return found

    return make


@pytest.fixture
def batch() -> Batch:
    return Batch(
        torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([[64, 64], [40, 56]]), (0, 1)
    )


def distil(policy: Policy, student: Detector, teacher: Detector, batch: Batch) -> dict[str, Tensor]:
    return Distiller(policy, student=student, teacher=teacher)(student(batch), ask(teacher, batch))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("branch", ["classification", "regression"])
def test_both_halves_of_one_head_are_the_head(name: str, branch: Any, build: Build, batch: Batch) -> None:
    output = build(name)(batch)
    assert output.branches is not None
    for after in (1, 2, 3):
        maps = output.branches.before(branch, after)
        some = {level: maps[level] for level in ("p4", "p6")}
        for given in (maps, some):
            for field, levels in output.branches.finish(branch, after, given).items():
                assert list(levels) == list(given)
                for level, found in levels.items():
                    torch.testing.assert_close(found, getattr(output, field)[level])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_detector_loses_nothing_by_its_own_head(name: str, build: Build, batch: Batch) -> None:
    detector = build(name).eval()  # in training the body normalises over the batch
    for loss in distil(BOTH, detector, detector, batch).values():
        assert loss.item() == pytest.approx(0, abs=1e-4)


def written_out(student: Detector, teacher: Detector, features: tuple[Tensor, Tensor], after: int) -> Tensor:
    """The crossed class scores of one level of a RetinaNet, ``(N, A K, H, W)``."""
    heads = [one.model.head.classification_head for one in (student, teacher)]

    def normalised(x: Tensor, block: Any) -> Tensor:
        x = conv2d(x, block[0].weight, block[0].bias, padding=1)
        return group_norm(x, block[1].num_groups, block[1].weight, block[1].bias, block[1].eps)

    maps = []
    for head, x in zip(heads, features, strict=True):
        for block in head.conv[: after - 1] if after > 1 else []:
            x = normalised(x, block).clamp(min=0)
        maps.append(normalised(x, head.conv[after - 1]))
    ours, theirs = maps
    crossed = torch.zeros_like(ours)
    for channel in range(ours.shape[1]):
        mine, wanted = ours[:, channel], theirs[:, channel]
        crossed[:, channel] = (mine - mine.mean()) / (mine.std() + 1e-6) * wanted.std() + wanted.mean()
    x = crossed.clamp(min=0)
    for block in list(heads[1].conv)[after:]:
        x = normalised(x, block).clamp(min=0)
    return conv2d(x, heads[1].cls_logits.weight, heads[1].cls_logits.bias, padding=1)


def test_class_scores_are_those_written_out(build: Build, batch: Batch) -> None:
    student, teacher = build("retinanet", 0).train(), build("retinanet", 1)
    ours, theirs = student(batch), ask(teacher, batch)
    policy = Policy([Term("crossed_logits(after=2)", [], "l2", levels=("p3", "p4"))])
    (loss,) = Distiller(policy, student=student, teacher=teacher)(ours, theirs).values()
    expected = 0.0
    with torch.no_grad():
        for level, valid in {"p3": (5, 7), "p4": (3, 4)}.items():
            logits = written_out(student, teacher, (ours.features[level], theirs.features[level]), 2)
            logits = logits.unflatten(1, (-1, 2)).transpose(1, 2)  # (N, K, A, H, W)
            error = (logits - theirs.logits[level]).square()
            parts = [error[0].flatten(), error[1, ..., : valid[0], : valid[1]].flatten()]
            expected += torch.cat(parts).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_student_before_the_crossing_gets_a_gradient(name: str, build: Build, batch: Batch) -> None:
    student, teacher = build(name, 0).train(), build(name, 1)
    torch.stack(list(distil(BOTH, student, teacher, batch).values())).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    used = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(student.is_backbone(n) for n in used)
    for branch in ("classification", "regression"):
        blocks = student.tower(student.model.head, branch).blocks  # type: ignore[attr-defined]
        felt = [[p.grad is not None for layer in block for p in layer.parameters()] for block in blocks]
        assert all(all(one) for one in felt[:2]) and not any(any(one) for one in felt[2:])


def test_levels_and_classes_are_matched(build: Build, batch: Batch) -> None:
    """A teacher of more classes, asked for those of the student, in its order."""
    student, teacher = build("fcos", 0).train(), build("fcos", 1, ("bee", "cat", "ant"))
    ours, theirs = student(batch), ask(teacher, batch)
    policy = Policy([Term("crossed_logits(after=1)", [], "l2", levels=("p5",))])
    (loss,) = Distiller(policy, student=student, teacher=teacher)(ours, theirs).values()
    assert ours.branches is not None and theirs.branches is not None
    with torch.no_grad():
        mine, wanted = (one.branches.before("classification", 1)["p5"] for one in (ours, theirs))
        mean, deviation = (lambda x: x.mean((0, 2, 3), keepdim=True)), (lambda x: x.std((0, 2, 3), keepdim=True))
        mapped = (mine - mean(mine)) / (deviation(mine) + 1e-6) * deviation(wanted) + mean(wanted)
        crossed = theirs.branches.finish("classification", 1, {"p5": mapped})["logits"]["p5"][:, [2, 0]]
        error = (crossed - theirs.logits["p5"][:, [2, 0]]).square()
    valid = torch.ones(2, 1, 1, 2, 2)
    assert loss.item() == pytest.approx((error * valid).sum().item() / (2 * valid.sum().item()), rel=1e-4)


def test_a_stored_output_has_its_branches_again(build: Build, batch: Batch) -> None:
    teacher = build("gfl").eval()
    with torch.no_grad():
        live = teacher(batch)
        given = DetectorOutput(live.features, live.image_sizes, live.layout, live.logits, live.regression)
        restored = teacher.restore(given)
        assert restored is not None and restored.branches is not None and live.branches is not None
        for level, found in restored.branches.before("regression", 2).items():
            assert torch.equal(found, live.branches.before("regression", 2)[level])


def test_pairs_that_cannot_cross_are_told_why(build: Build) -> None:
    student = build("retinanet")
    cases = {
        "not equally wide: student 8, teacher 16": build("retinanet", neck_channels=16),
        "have not 2 convolutions: student 3, teacher 1": build("retinanet", head_convs=1),
        "two branches; not so the teacher's": DetectorInfo({"p3": FeatureSpec(8, 8)}, student.info.layout),
        "anchors differs": build("fcos"),
    }
    for reason, teacher in cases.items():
        with pytest.raises(PairError, match=reason):
            check_pair(BOTH, student, teacher)
