"""What every distance must do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair
from detkds.testing.pieces import SHAPES, check_arguments_are_named, check_spelling

Shape = tuple[int, ...]


@dataclass(frozen=True)
class DistanceTraits:
    """In what a distance differs from most.

    Attributes:
        floor: its value at equality, where that is not 0; such a distance may be negative.
        looks_around: whether a position of weight 0 still tells on its neighbors.
        own_gradient: whether it holds a factor back from the gradient by definition.
        weight_power: what an even weight multiplies it by, as a power of the weight.
    """

    floor: float | None = None
    looks_around: bool = False
    own_gradient: bool = False
    weight_power: float = 0.0


def check_distance(expression: str, traits: DistanceTraits = DistanceTraits()) -> None:
    """Every check of a registered distance with these arguments, on all kinds that it takes."""
    piece = DISTANCES.build(expression)
    check_declaration(piece)
    for kind, shape in cases(piece):
        for check in CHECKS:
            check(piece, kind, shape, traits)


def check_declaration(piece: Any) -> None:
    """How it is written, and what it says that it takes."""
    check_spelling(DISTANCES, piece)
    check_arguments_are_named(DISTANCES, piece)
    assert isinstance(piece.kinds, frozenset) and piece.kinds and piece.kinds <= set(SHAPES), piece.kinds


def cases(piece: Any) -> Iterator[tuple[Kind, Shape]]:
    """The kinds that it takes, with shapes of each."""
    for kind in sorted(piece.kinds):
        for shape in SHAPES[kind]:
            yield kind, shape


def valid(tensor: Tensor, kind: Kind) -> Tensor:
    """Numbers that mean what the kind says, from any numbers."""
    if kind == "probability":
        return tensor.softmax(1)
    if kind == "sides":
        return tensor.abs()
    if kind == "boxes":
        low, size = tensor[:, :2], tensor[:, 2:].abs()
        return torch.cat([low, low + size], 1)
    return tensor


def draw(shape: Shape, kind: Kind, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded numbers that mean what the kind says."""
    return valid(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), kind)


def is_lowest_at_equality(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """Equal sides give the lowest value, 0 for most, at any size of the numbers."""
    for factor in (1.0, 0.0001, 10000.0):
        if traits.floor is not None and factor < 1:
            continue  # its lowest value is approached only where numbers are far above 1e-6
        same = draw(shape, kind, 0) if kind == "probability" else factor * draw(shape, kind, 0)
        value = piece(Pair(same, same.clone(), kind=kind))
        assert value.shape == ()
        assert abs(value.item() - (traits.floor or 0.0)) <= (2e-6 if traits.floor is None else 0.2)


def is_above_its_lowest_elsewhere(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """Sides that differ give more."""
    for seed in range(5):
        value = piece(Pair(draw(shape, kind, seed), draw(shape, kind, seed + 100), kind=kind))
        assert value.item() > (traits.floor or 0.0) + 1e-4


def gives_the_teacher_no_gradient(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """The student has a gradient, the teacher has none."""
    student, teacher = (draw(shape, kind, seed).requires_grad_() for seed in (0, 1))
    piece(Pair(student, teacher, kind=kind)).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


def changes_no_input(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """Neither side nor the weight is modified."""
    student, teacher, weight = draw(shape, kind, 0), draw(shape, kind, 1), torch.rand(shape[0], 1, *shape[2:])
    kept = [tensor.clone() for tensor in (student, teacher, weight)]
    piece(Pair(student, teacher, kind=kind, weight=weight))
    assert all(torch.equal(now, before) for now, before in zip((student, teacher, weight), kept, strict=True))


def is_finite_where_nothing_varies(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """Value and gradient at S = T, zeros, constants and far from one; the gradient is that of a root nowhere."""
    some = draw(shape, kind, 0)
    zero, even, far = torch.zeros(shape), torch.full(shape, 0.3), valid(1e4 * torch.randn(shape), kind)
    for student, teacher in itertools.product((some, zero, even, far), repeat=2):
        student = student.clone().requires_grad_()
        for weight in (None, torch.zeros(shape[0], 1, *shape[2:])):
            value = piece(Pair(student, teacher, kind=kind, weight=weight))
            (gradient,) = torch.autograd.grad(value, student)
            assert value.isfinite(), (student, teacher)
            assert gradient.isfinite().all(), (student, teacher)


def is_zero_for_equal_degenerate_sides(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """Equal sides on which nothing varies give 0."""
    if traits.floor is not None:
        return
    for value in (0.0, 0.3, 1e-9, 7e3):
        same = torch.full(shape, value)
        if kind == "probability":
            same = same.softmax(1)
        assert piece(Pair(same, same.clone(), kind=kind)).abs() < 1e-6


def sums_half_precision_in_float32(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """Half precision is widened before anything is summed."""
    student, teacher = draw(shape, kind, 0).bfloat16(), draw(shape, kind, 1).bfloat16()
    value = piece(Pair(student, teacher, kind=kind))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, piece(Pair(student.float(), teacher.float(), kind=kind)))


def nothing_is_at_distance_zero(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """Empty sides give 0, with a gradient."""
    student = torch.zeros(0, *shape[1:], requires_grad=True)
    for weight in (None, torch.zeros(0, 1, *shape[2:])):
        value = piece(Pair(student, torch.zeros(0, *shape[1:]), kind=kind, weight=weight))
        assert value.item() == 0
        value.backward()


def even_weights_are_a_factor_of_sums_and_change_no_mean(
    piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits
) -> None:
    """A weight that is the same everywhere changes nothing, or is a factor of a sum."""
    student, teacher = draw(shape, kind, 0), draw(shape, kind, 1)
    plain = piece(Pair(student, teacher, kind=kind))
    for weight in (torch.full((shape[0], 1, *shape[2:]), 0.25), torch.full(shape, 3.0), torch.ones(1, 1, *shape[2:])):
        factor = weight.flatten()[0] ** traits.weight_power
        torch.testing.assert_close(piece(Pair(student, teacher, kind=kind, weight=weight)), factor * plain)


def positions_of_weight_zero_do_not_count(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """What stands at a position of weight 0 has no effect."""
    if traits.looks_around:
        return
    student, teacher = draw(shape, kind, 0), draw(shape, kind, 1)
    weight = torch.arange(shape[0] * student[0, 0].numel()).remainder(3).float().view(shape[0], 1, *shape[2:])
    other = torch.where(weight > 0, student, draw(shape, kind, 2))
    values = [piece(Pair(side, teacher, kind=kind, weight=weight)) for side in (student, other)]
    torch.testing.assert_close(values[0], values[1])
    plain = [piece(Pair(side, teacher, kind=kind)) for side in (student, other)]
    assert not torch.isclose(torch.stack(values), torch.stack(plain), rtol=1e-4).all(), "the weight has no effect"


def gradient_is_that_of_the_value(piece: Any, kind: Kind, shape: Shape, traits: DistanceTraits) -> None:
    """The gradient agrees with finite differences in double precision."""
    if traits.own_gradient:
        return
    small = tuple(min(size, 4) for size in shape)
    student = draw(small, kind, 0, torch.float64).requires_grad_()
    pair = Pair(
        student,
        draw(small, kind, 1, torch.float64),
        kind=kind,
        weight=torch.rand(small[0], 1, *small[2:], generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(lambda x: piece(dataclasses.replace(pair, student=x)), student)


CHECKS = (
    is_lowest_at_equality,
    is_above_its_lowest_elsewhere,
    gives_the_teacher_no_gradient,
    changes_no_input,
    is_finite_where_nothing_varies,
    is_zero_for_equal_degenerate_sides,
    sums_half_precision_in_float32,
    nothing_is_at_distance_zero,
    even_weights_are_a_factor_of_sums_and_change_no_mean,
    positions_of_weight_zero_do_not_count,
    gradient_is_that_of_the_value,
)
"""Every check of one piece on one kind and shape."""
