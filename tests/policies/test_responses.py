"""Shipped policies of responses alone: each against loops over its published formula, and what each refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from detkds import Distiller, load_policy
from detkds.distiller import check_pair
from detkds.errors import PairError
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, Layout, RegionResponse

STRIDES = {"p3": 8, "p4": 16}
SIZES = {"p3": (4, 4), "p4": (2, 2)}
FEATURES = {level: FeatureSpec(4, stride) for level, stride in STRIDES.items()}
GFL = DetectorInfo(FEATURES, Layout("dense", "sigmoid", 3, 1, "sides", "a", bins="0 to 4"), regions=("main", "vlr"))
FCOS = DetectorInfo(FEATURES, Layout("dense", "sigmoid", 3, 1, "sides", "a"), regions=("main",))
REGIONS = DetectorInfo(FEATURES, Layout("region", "softmax", 3, 1, "deltas"), regions=("main", "background"))
QUERIES = DetectorInfo(FEATURES, Layout("query", "sigmoid", 3, 1, "centre"))
POSITIVE = torch.tensor([[1.0], [0.0], [0.0], [1.0], [0.0], [0.0]])
SEARCHED = {"kd": REGIONS, "dist": REGIONS}
POLICIES = ["kd", "kd-sigmoid", "dist", "dist-sigmoid", "cwd-logits", "bckd", "ld"]


def draw(seed: int, *leading: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {level: 2 * torch.randn(2, *leading, *size, generator=generator) for level, size in SIZES.items()}


def dense(seed: int) -> DetectorOutput:
    """Two images of 32 x 32, the second with 16 valid rows; of the regions some anchors, and of one level none."""
    corners = {level: tensor.abs() for level, tensor in draw(seed + 1, 4, 1).items()}
    boxes = {level: torch.cat((one[:, :2], one[:, :2] + one[:, 2:]), 1) for level, one in corners.items()}
    marks = {name: {k: v.remainder(1) * (v > 1) for k, v in draw(9 + n, 1, 1).items()} for n, name in enumerate("mv")}
    marks["m"] = {"p3": (marks["m"]["p3"] > 0).float(), "p4": torch.zeros(2, 1, 1, 2, 2)}
    marks["m"]["p3"][1] = 0
    regions = {"main": marks["m"], "vlr": marks["v"]}
    return DetectorOutput(
        draw(seed, 4),
        torch.tensor([[32, 32], [16, 32]]),
        logits={level: tensor.requires_grad_() for level, tensor in draw(seed + 2, 3, 1).items()},
        regression={level: tensor.requires_grad_() for level, tensor in draw(seed + 3, 4, 1).items()},
        boxes=boxes,
        box_distribution=draw(seed + 4, 4, 5, 1),
        region=lambda name, boxes=None: regions[name],
    )


def regional(seed: int) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)
    logits, numbers = torch.randn(6, 4, generator=generator), torch.randn(6, 4, 4, generator=generator)
    return DetectorOutput(
        draw(seed, 4),
        torch.tensor([[32, 32], [16, 32]]),
        logits={"roi": logits.requires_grad_()},
        regression={"roi": numbers},
        boxes={"roi": numbers},
        proposals=[numbers[:3, :, 0], numbers[3:, :, 0]],
        respond_at=lambda proposals: RegionResponse(logits, numbers, numbers),
        region=lambda name, boxes=None: {"roi": POSITIVE if name == "main" else 1 - POSITIVE},
    )


def outputs(name: str) -> tuple[DetectorInfo, DetectorOutput, DetectorOutput]:
    make = regional if name in SEARCHED else dense
    return SEARCHED.get(name, GFL), make(0), make(20)


def positions(level: str, *, padding: bool = False) -> Iterator[tuple[int, int, int]]:
    """Image, row and column of every cell whose corner lies inside its image."""
    for image, height in ((0, 32), (1, 32 if padding else 16)):
        for i, j in itertools.product(*map(range, SIZES[level])):
            if i * STRIDES[level] < height:
                yield image, i, j


def sigmoid(values: Tensor) -> list[float]:
    return [1 / (1 + math.exp(-value)) for value in values.tolist()]


def softmax(values: Tensor, tau: float = 1.0) -> list[float]:
    mass = [math.exp(value / tau) for value in values.tolist()]
    return [one / sum(mass) for one in mass]


def divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> float:
    p, q = softmax(teacher, tau), softmax(student, tau)
    return tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def correlation(one: list[float], other: list[float]) -> float:
    return torch.corrcoef(torch.tensor([one, other], dtype=torch.float64))[0, 1].item()


def dist_of(scores: list[list[float]], wanted: list[list[float]]) -> tuple[float, float]:
    """``1 - r`` averaged over the rows, and over the columns."""
    inter = [1 - correlation(s, t) for s, t in zip(scores, wanted, strict=True)]
    intra = [
        1 - correlation(s, t) for s, t in zip(*(torch.tensor(x).t().tolist() for x in (scores, wanted)), strict=True)
    ]
    return sum(inter) / len(inter), sum(intra) / len(intra)


def kd(student: DetectorOutput, teacher: DetectorOutput) -> list[float]:
    rows = zip(student.logits["roi"], teacher.logits["roi"], strict=True)
    return [2 / 6 * sum(divergence(s, t) for s, t in rows)]


def dist(student: DetectorOutput, teacher: DetectorOutput) -> list[float]:
    return list(dist_of(*([softmax(row) for row in side.logits["roi"]] for side in (student, teacher))))


def dist_sigmoid(student: DetectorOutput, teacher: DetectorOutput) -> list[float]:
    levels = [
        dist_of(
            *(
                [sigmoid(side.logits[level][n, :, 0, i, j]) for n, i, j in positions(level, padding=True)]
                for side in (student, teacher)
            )
        )
        for level in STRIDES
    ]
    return [sum(values) for values in zip(*levels, strict=True)]


def kd_sigmoid(student: DetectorOutput, teacher: DetectorOutput) -> list[float]:
    """Of positives alone; LD's code averages over the classes, and over the positives of each level."""
    assert student.region is not None
    loss = 0.0
    for level, marked in student.region("main").items():
        found = [
            divergence(*(side.logits[level][n, :, 0, i, j] for side in (student, teacher)), tau=2) / 3
            for n, i, j in positions(level, padding=True)
            if marked[n, 0, 0, i, j] > 0
        ]
        loss += 10 * sum(found) / max(len(found), 1)
    return [loss]


def cwd_logits(student: DetectorOutput, teacher: DetectorOutput) -> list[float]:
    loss = 0.0
    for level, n, k in itertools.product(STRIDES, range(2), range(3)):
        loss += 5 / 6 * divergence(*(side.logits[level][n, k].flatten() for side in (student, teacher)))
    return [loss]


def bckd(student: DetectorOutput, teacher: DetectorOutput) -> list[float]:
    """Over the positives of the batch, of which an image counts one at least, on the levels that have one."""
    assert student.region is not None
    counts = [sum(marked[n].sum().item() for marked in student.region("main").values()) for n in range(2)]
    total = sum(max(count, 1) for count in counts)
    assert counts[0] > 1 and counts[1] == 0
    classification = localization = 0.0
    for level in (level for level, marked in student.region("main").items() if marked.any()):
        for n, i, j in positions(level):
            at = (n, slice(None), 0, i, j)
            q, p = sigmoid(student.logits[level][at]), sigmoid(teacher.logits[level][at])
            for ours, theirs in zip(q, p, strict=True):
                entropy = -theirs * math.log(ours) - (1 - theirs) * math.log(1 - ours)
                classification += abs(theirs - ours) * entropy / total
            apart = max(abs(a - b) for a, b in zip(q, p, strict=True))
            overlap = generalized_box_iou_loss(student.boxes[level][at], teacher.boxes[level][at]).item()
            localization += 4 * apart * overlap / total
    return [classification, localization]


def ld(student: DetectorOutput, teacher: DetectorOutput) -> list[float]:
    """As LD's code counts: 0.25 times the sum over anchors and sides, over 4 in one region and over 16 in the other."""
    assert student.region is not None
    main = around = 0.0
    for level in STRIDES:
        for n, i, j in positions(level):
            sides = [
                divergence(*(out.box_distribution[level][n, side, :, 0, i, j] for out in (student, teacher)), tau=10)
                for side in range(4)
            ]
            positive, near = (student.region(name)[level][n, 0, 0, i, j].item() for name in ("main", "vlr"))
            main += 0.25 * positive * max(sigmoid(student.logits[level][n, :, 0, i, j])) * sum(sides) / 5 / 4
            around += 0.25 * near * sum(sides) / 5 / 16
    return [main, around, *kd_sigmoid(student, teacher)]


REFERENCES: dict[str, Callable[[DetectorOutput, DetectorOutput], list[float]]] = {
    "kd": kd,
    "kd-sigmoid": kd_sigmoid,
    "dist": dist,
    "dist-sigmoid": dist_sigmoid,
    "cwd-logits": cwd_logits,
    "bckd": bckd,
    "ld": ld,
}


@pytest.mark.parametrize("name", POLICIES)
def test_against_the_published_formula(name: str) -> None:
    info, student, teacher = outputs(name)
    losses = Distiller(load_policy(name), student=info, teacher=info)(student, teacher)
    expected = REFERENCES[name](student, teacher)
    assert all(value > 0.01 for value in expected)
    assert [loss.item() for loss in losses.values()] == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_equal_outputs_lose_nothing_and_the_teacher_learns_nothing(name: str) -> None:
    info, student, teacher = outputs(name)
    distiller = Distiller(load_policy(name), student=info, teacher=info)
    assert all(abs(loss.item()) < 1e-5 for loss in distiller(student, student).values())
    torch.stack(list(distiller(student, teacher).values())).sum().backward()
    key = next(iter(student.logits))
    assert student.logits[key].grad is not None and student.logits[key].grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in teacher.logits.values())


@pytest.mark.parametrize(
    ("name", "student", "teacher", "reason"),
    [
        ("kd", GFL, GFL, "scores=softmax is for heads of such scores, not for sigmoid"),
        ("dist", QUERIES, QUERIES, "scores=softmax is for heads of such scores"),
        ("kd-sigmoid", REGIONS, REGIONS, "scores=sigmoid is for heads of such scores, not for softmax"),
        ("dist-sigmoid", REGIONS, REGIONS, "scores=sigmoid is for heads of such scores"),
        ("cwd-logits", QUERIES, QUERIES, "weights=cells is for the cells of a dense head, not for a query head"),
        ("cwd-logits", REGIONS, REGIONS, "scores=sigmoid"),
        ("bckd", QUERIES, QUERIES, "per=positive needs a student that marks the region main of its anchors"),
        ("bckd", REGIONS, REGIONS, "scores=sigmoid"),
        ("ld", GFL, FCOS, "not distributions over the same bins: student 0 to 4, teacher none"),
        ("ld", FCOS, FCOS, "not distributions over the same bins: student none, teacher none"),
        ("ld", replace(GFL, regions=("main",)), GFL, "weights=vlr needs a student that marks the region vlr"),
        ("ld", GFL, replace(GFL, layout=replace(GFL.layout, bins="0 to 8")), "student 0 to 4, teacher 0 to 8"),
    ],
)
def test_other_pairs_are_refused(name: str, student: DetectorInfo, teacher: DetectorInfo, reason: str) -> None:
    with pytest.raises(PairError, match=reason):
        check_pair(load_policy(name), student, teacher)


def test_dense_heads_of_all_kinds_are_served() -> None:
    for name in ("kd-sigmoid", "dist-sigmoid", "cwd-logits", "bckd"):
        check_pair(load_policy(name), FCOS, GFL)
