"""Crossed heads against the same convolutions written out, and against themselves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Sequential
from torch.nn.functional import conv2d, group_norm
from torchvision.ops import box_iou, generalized_box_iou

from detkds import Distiller, Policy, Term, load_policy
from detkds.detectors import Detector, build_detector
from detkds.distiller import check_pair
from detkds.errors import PairError
from detkds.structures import Batch, DetectorInfo, DetectorOutput, FeatureSpec, Target
from detkds.training.teacher import teacher_forward

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
    return Distiller(policy, student=student, teacher=teacher)(student(batch), teacher_forward(teacher, batch))


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
    policy = Policy([Term("crossed_logits(after=2)", [], "l2"), Term("crossed_localization(after=2)", [], "l2")])
    detector = build(name).eval()  # in training the body normalises over the batch
    for loss in distil(policy, detector, detector, batch).values():
        assert loss.item() == pytest.approx(0, abs=1e-4)


def written_out(heads: list[Any], features: tuple[Tensor, Tensor], after: int) -> Tensor:
    """The last map of a crossed branch of two heads, on one level."""

    def blocks(head: Any) -> list[Any]:
        """Convolution and normalisation of each block; torchvision's FCOS has all layers in one row."""
        layers = list(head.conv)
        return layers if isinstance(layers[0], Sequential) else [layers[k : k + 2] for k in range(0, len(layers), 3)]

    def normalised(x: Tensor, block: Any) -> Tensor:
        x = conv2d(x, block[0].weight, block[0].bias, padding=1)
        return group_norm(x, block[1].num_groups, block[1].weight, block[1].bias, block[1].eps)

    maps = []
    for head, x in zip(heads, features, strict=True):
        for block in blocks(head)[: after - 1]:
            x = normalised(x, block).clamp(min=0)
        maps.append(normalised(x, blocks(head)[after - 1]))
    ours, theirs = maps
    crossed = torch.zeros_like(ours)
    for channel in range(ours.shape[1]):
        mine, wanted = ours[:, channel], theirs[:, channel]
        crossed[:, channel] = (mine - mine.mean()) / (mine.std() + 1e-6) * wanted.std() + wanted.mean()
    x = crossed.clamp(min=0)
    for block in blocks(heads[1])[after:]:
        x = normalised(x, block).clamp(min=0)
    return x


def cells(level: str) -> list[tuple[int, int, int]]:
    """Image, row and column of all cells that begin inside the images."""
    stride = 2 ** int(level[1:])
    found = []
    for image, (height, width) in enumerate(((64, 64), (40, 56))):
        found += [(image, i, j) for i in range(-(-64 // stride)) for j in range(-(-64 // stride))
                  if i * stride < height and j * stride < width]  # fmt: skip
    return found


@torch.no_grad()
def test_crosskd_is_that_of_loops(build: Build, batch: Batch) -> None:
    student, teacher = build("retinanet", 0, head_convs=4).train(), build("retinanet", 1, head_convs=4)
    boxes = torch.tensor([[2.0, 2, 40, 38], [20, 20, 50, 60]])
    targets = [Target(boxes=boxes, labels=torch.tensor([0, 1])), Target(boxes=boxes[:0], labels=torch.zeros(0).long())]
    ours, theirs = student(replace(batch, targets=targets)), teacher_forward(teacher, batch)
    losses = Distiller(load_policy("crosskd"), student=student, teacher=teacher)(ours, theirs, targets)
    assert ours.region is not None
    positives = sum(max(1, sum(int(marks[image].sum()) for marks in ours.region("main").values())) for image in (0, 1))
    assert positives > 2
    assigned = {k: v + ours.region("background")[k] for k, v in ours.region("main").items()}
    assert any((marks == 0).any() for marks in assigned.values())
    heads = [one.model.head for one in (student, teacher)]
    anchors = dict(zip(ours.features, teacher.grid(list(ours.features.values())), strict=True))  # type: ignore
    classes = boxes_loss = 0.0
    for level in ours.features:
        maps = ours.features[level], theirs.features[level]
        scores, deltas = (
            conv2d(written_out([getattr(head, part) for head in heads], maps, 3), last.weight, last.bias, padding=1)
            for part, last in (
                ("classification_head", heads[1].classification_head.cls_logits),
                ("regression_head", heads[1].regression_head.bbox_reg),
            )
        )
        width = scores.shape[-1]
        for image, i, j in cells(level):
            for a in range(9):
                if assigned[level][image, 0, a, i, j] == 0:
                    continue
                wanted = theirs.logits[level][image, :, a, i, j].sigmoid()
                found = scores[image, 2 * a : 2 * a + 2, i, j]
                for z, p in zip(found.tolist(), wanted.tolist(), strict=True):
                    q = 1 / (1 + math.exp(-z))
                    classes += abs(p - q) * (math.log1p(math.exp(-abs(z))) + max(z, 0) - z * p)
                anchor = anchors[level][(i * width + j) * 9 + a][None]
                box = teacher.model.box_coder.decode_single(deltas[image, 4 * a : 4 * a + 4, i, j][None], anchor)
                overlap = generalized_box_iou(box, theirs.boxes[level][image, :, a, i, j][None]).item()
                boxes_loss += wanted.max().item() * (1 - overlap)
    assert losses["crossed_logits/bkd"].item() == pytest.approx(classes / positives, rel=1e-4)
    assert losses["crossed_localization/giou"].item() == pytest.approx(boxes_loss / positives, rel=1e-3)


@torch.no_grad()
def test_crosskd_of_distributions_is_that_of_loops(build: Build, batch: Batch) -> None:
    student, teacher = build("gfl", 0, head_convs=4).train(), build("gfl", 1, head_convs=4)
    nothing = [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long())] * 2
    ours, theirs = student(replace(batch, targets=nothing)), teacher_forward(teacher, batch)
    losses = Distiller(load_policy("crosskd-gfl"), student=student, teacher=teacher)(ours, theirs, nothing)
    heads = [one.model.head for one in (student, teacher)]
    last, total, weights = heads[1].bbox_distribution, 0.0, 0.0
    for index, level in enumerate(ours.features):
        towers = [type("Part", (), {"conv": head.regression}) for head in heads]
        x = written_out(towers, (ours.features[level], theirs.features[level]), 3)
        sides = heads[1].scales[index] * conv2d(x, last.weight, last.bias, padding=1)
        for image, i, j in cells(level):
            weight = theirs.logits[level][image, :, 0, i, j].sigmoid().max().item()
            for side in range(4):
                p = theirs.box_distribution[level][image, side, :, 0, i, j].softmax(0)
                q = sides[image, 17 * side : 17 * side + 17, i, j].softmax(0)
                total += weight * (p * (p / q).log()).sum().item()
                weights += weight
    assert losses["crossed_localization/kl"].item() == pytest.approx(4 * total / weights, rel=1e-3)
    assert losses["crossed_logits/bkd"].isfinite()


@torch.no_grad()
def test_crosskd_of_points_is_that_of_loops(build: Build, batch: Batch) -> None:
    student, teacher = build("fcos", 0).train(), build("fcos", 1)
    boxes = torch.tensor([[2.0, 2, 40, 38], [20, 20, 50, 60]])
    targets = [Target(boxes=boxes, labels=torch.tensor([0, 1])), Target(boxes=boxes[:0], labels=torch.zeros(0).long())]
    ours, theirs = student(replace(batch, targets=targets)), teacher_forward(teacher, batch)
    losses = Distiller(load_policy("crosskd-fcos"), student=student, teacher=teacher)(ours, theirs, targets)
    assert ours.region is not None
    divisor = sum(marks.sum().item() for marks in ours.region("centerness").values())
    heads = [one.model.head for one in (student, teacher)]
    classes = sides_loss = 0.0
    for level in ours.features:
        maps = ours.features[level], theirs.features[level]
        scores, sides = (
            conv2d(written_out([getattr(head, part) for head in heads], maps, 2), last.weight, last.bias, padding=1)
            for part, last in (
                ("classification_head", heads[1].classification_head.cls_logits),
                ("regression_head", heads[1].regression_head.bbox_reg),
            )
        )
        stride = 2 ** int(level[1:])
        for image, i, j in itertools.product(range(2), *map(range, scores.shape[-2:])):
            wanted = theirs.logits[level][image, :, 0, i, j].sigmoid()
            for z, p in zip(scores[image, :, i, j].tolist(), wanted.tolist(), strict=True):
                q = 1 / (1 + math.exp(-z))
                classes += abs(p - q) * (math.log1p(math.exp(-abs(z))) + max(z, 0) - z * p)
            left, top, right, bottom = (stride * max(side, 0) for side in sides[image, :, i, j].tolist())
            x, y = stride * j, stride * i
            box = torch.tensor([[x - left, y - top, x + right, y + bottom]])
            overlap = box_iou(box, theirs.boxes[level][image, :, 0, i, j][None]).nan_to_num(0).item()
            sides_loss -= wanted.max().item() * math.log(max(overlap, 1e-6))
    assert losses["crossed_logits/bkd"].item() == pytest.approx(0.4 * classes / divisor, rel=1e-4)
    assert losses["crossed_localization/iou"].item() == pytest.approx(0.75 * sides_loss / divisor, rel=1e-3)


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
    ours, theirs = student(batch), teacher_forward(teacher, batch)
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
