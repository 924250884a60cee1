from __future__ import annotations

import itertools
import math

import pytest
import torch
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from detkds.distances.iou import CIoU, DIoU, EIoU, GIoU, IoU
from detkds.registry import DISTANCES
from detkds.structures import Pair
from detkds.transforms.softmax import Softmax

FAMILY = {"iou": IoU(), "giou": GIoU(), "diou": DIoU(), "ciou": CIoU(), "eiou": EIoU()}
EACH = pytest.mark.parametrize("name", FAMILY)


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def distance(name: str, student: torch.Tensor, teacher: torch.Tensor) -> float:
    return FAMILY[name](Pair(student, teacher, kind="boxes")).item()


def some_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    low = 20 * torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 1 + 20 * torch.rand(count, 2, generator=generator)], 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("iou", 0.709677), ("giou", 0.823963), ("diou", 0.777245), ("ciou", 0.777589), ("eiou", 0.858878)],
)
def test_by_hand(name: str, expected: float) -> None:
    """A = (0, 0, 4, 4), B = (1, 1, 5, 7): I = 9, U = 16 + 24 - 9 = 31, enclosing 5 x 7, offset (1, 2).

    IoU 9/31; GIoU + 4/35; DIoU + 5/74; EIoU + 5/74 + 0 + (2/7)^2.
    """
    assert distance(name, boxes((0, 0, 4, 4)), boxes((1, 1, 5, 7))) == pytest.approx(expected, abs=2e-6)


def test_logarithm() -> None:
    """As above, and of boxes apart, which count as of IoU 1e-6 and feel nothing."""
    student = boxes((0, 0, 4, 4), (0, 0, 1, 1)).requires_grad_()
    loss = IoU(log=True)(Pair(student, boxes((1, 1, 5, 7), (2, 2, 3, 3)), kind="boxes"))
    assert loss.item() == pytest.approx((math.log(31 / 9) + 6 * math.log(10)) / 2, rel=1e-5)
    loss.backward()
    assert student.grad is not None and (student.grad[0] != 0).any() and not student.grad[1].any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@EACH
def test_matches_a_loop(name: str, scale: float, generator: torch.Generator) -> None:
    student, teacher = scale * some_boxes(50, generator), scale * some_boxes(50, generator)
    expected = []
    for a, b in zip(student.tolist(), teacher.tolist(), strict=True):
        wa, ha, wb, hb = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
        inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
        union = wa * ha + wb * hb - inter
        iou = inter / union
        cw, ch = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
        rho = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
        v = 4 / math.pi**2 * (math.atan(wb / hb) - math.atan(wa / ha)) ** 2
        diou = 1 - iou + rho / (cw**2 + ch**2)
        expected.append(
            {
                "iou": 1 - iou,
                "giou": 1 - iou + (cw * ch - union) / (cw * ch),
                "diou": diou,
                "ciou": diou + v * v / (1 - iou + v),
                "eiou": diou + ((wa - wb) / cw) ** 2 + ((ha - hb) / ch) ** 2,
            }[name]
        )
    assert distance(name, student, teacher) == pytest.approx(sum(expected) / 50, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("giou", generalized_box_iou_loss), ("diou", distance_box_iou_loss), ("ciou", complete_box_iou_loss)],
)
def test_value_and_gradient_match_torchvision(name: str, reference: object, generator: torch.Generator) -> None:
    student, teacher = some_boxes(40, generator).requires_grad_(), some_boxes(40, generator)
    ours, theirs = FAMILY[name](Pair(student, teacher, kind="boxes")), reference(student, teacher, reduction="mean")  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, student)[0] for value in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


@EACH
def test_sides_are_boxes_around_one_origin(name: str) -> None:
    student, teacher = boxes((1, 2, 3, 4)), boxes((2, 2, 1, 5))
    value = FAMILY[name](Pair(student, teacher, kind="sides"))
    assert value.item() == pytest.approx(distance(name, boxes((-1, -2, 3, 4)), boxes((-2, -2, 1, 5))))


@EACH
def test_dense_numbers_lie_at_dimension_one(name: str, generator: torch.Generator) -> None:
    student, teacher = some_boxes(60, generator), some_boxes(60, generator)
    weight = torch.rand(60, 1, generator=generator)

    def dense(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(2, 2, 3, 5, -1).movedim(-1, 1)

    flat = FAMILY[name](Pair(student, teacher, kind="boxes", weight=weight))
    torch.testing.assert_close(
        FAMILY[name](Pair(dense(student), dense(teacher), kind="boxes", weight=dense(weight))), flat
    )


@EACH
def test_weighted_mean_of_rows(name: str) -> None:
    student, teacher = boxes((0, 0, 4, 4), (0, 0, 2, 2)), boxes((1, 1, 5, 7), (1, 0, 2, 2))
    values = [distance(name, student[i : i + 1], teacher[i : i + 1]) for i in range(2)]
    weighted = FAMILY[name](Pair(student, teacher, kind="boxes", weight=torch.tensor([[3.0], [1.0]])))
    assert weighted.item() == pytest.approx((3 * values[0] + values[1]) / 4)


@EACH
@pytest.mark.parametrize("share", [1e-3, 1e-6, 1e-12])
def test_size_does_not_matter(name: str, share: float) -> None:
    """The shares of a softmax over all positions of a map are tiny sides; they must still tell boxes apart."""
    student, teacher = boxes((1, 2, 3, 4)), boxes((2, 2, 1, 5))
    plain = FAMILY[name](Pair(student, teacher, kind="sides")).item()
    assert FAMILY[name](Pair(share * student, share * teacher, kind="sides")).item() == pytest.approx(plain, rel=1e-4)


@EACH
def test_serves_softmax_over_positions(name: str, generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 1, 4, 1, 100, 150, generator=generator)
    same = Softmax("N")(Pair(teacher, teacher, kind="regression"))
    other = Softmax("N")(Pair(student, teacher, kind="regression"))
    assert FAMILY[name](same).item() == pytest.approx(0, abs=1e-5)
    assert FAMILY[name](other) > 0.3


def test_equal_aspect_makes_ciou_diou() -> None:
    student, teacher = boxes((0, 0, 4, 2)), boxes((1, 1, 9, 5))
    assert distance("ciou", student, teacher) == pytest.approx(distance("diou", student, teacher), abs=1e-6)


def test_giou_lies_between_zero_and_two(generator: torch.Generator) -> None:
    for offset in (0.0, 30.0, 3000.0):
        value = distance("giou", some_boxes(30, generator) + offset, some_boxes(30, generator))
        assert 0 <= value <= 2
    assert value > 1.9


POINT, LINE, SQUARE = (1.0, 1, 1, 1), (0.0, 1, 4, 1), (0.0, 0, 4, 4)
FAR, INVERTED = (100.0, 100, 110, 120), (4.0, 4, 0, 0)
DEGENERATE = list(itertools.product([POINT, LINE, SQUARE, FAR, INVERTED], repeat=2))


@EACH
@pytest.mark.parametrize(("student", "teacher"), DEGENERATE)
def test_degenerate_boxes_are_finite(name: str, student: tuple, teacher: tuple) -> None:
    box = boxes(student).requires_grad_()
    value = FAMILY[name](Pair(box, boxes(teacher), kind="boxes"))
    value.backward()
    assert box.grad is not None and box.grad.isfinite().all() and box.grad.abs().max() < 100
    assert 0 <= value <= 4
    if student == teacher != INVERTED:
        assert value.item() == pytest.approx(0, abs=1e-6)
    elif name == "iou" and student != teacher:
        assert value > 0.9


@EACH
def test_disjoint_boxes_pull(name: str) -> None:
    """Where boxes do not touch, every member but IoU still has a gradient towards the teacher."""
    box = boxes((0, 0, 1, 1)).requires_grad_()
    FAMILY[name](Pair(box, boxes((5, 0, 6, 1)), kind="boxes")).backward()
    assert box.grad is not None
    assert (box.grad[0, [0, 2]].sum() < 0) == (name != "iou")


def test_refuses_other_than_four_numbers() -> None:
    with pytest.raises(ValueError, match=r"expected four numbers at dimension 1, got shape \(2, 5\)"):
        IoU()(Pair(torch.ones(2, 5), torch.ones(2, 5), kind="boxes"))


def test_family_is_complete() -> None:
    assert set(FAMILY) == {name for name in DISTANCES if DISTANCES[name].kinds == {"sides", "boxes"}}  # type: ignore[attr-defined]
