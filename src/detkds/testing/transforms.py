"""What every transform must do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import torch

from detkds.protocols import Stage
from detkds.registry import TRANSFORMS, expression
from detkds.structures import Kind, Pair
from detkds.testing.pieces import SHAPES as BASIC_SHAPES
from detkds.testing.pieces import check_arguments_are_named, check_spelling

Shape = tuple[int, ...]
SHAPES: Mapping[str, tuple[Shape, ...]] = {
    **BASIC_SHAPES,
    "feature": ((4, 6, 8, 8), (2, 3, 5, 7), (1, 2, 1, 3)),
    "logits": ((4, 3, 2, 4, 5), (2, 3, 1, 3, 3), (6, 5)),
    "probability": ((2, 3, 2, 4, 5), (6, 5)),
    "regression": ((4, 4, 2, 3, 5), (6, 4)),
}


def check_transform(expression: str) -> None:
    """Every check of a registered transform with these arguments, on all kinds that it takes."""
    piece = TRANSFORMS.build(expression)
    check_declaration(piece)
    for kind, shape in cases(piece):
        for check in CHECKS:
            check(piece, kind, shape)


def check_declaration(piece: Any) -> None:
    """How it is written, and what it says of its place."""
    check_spelling(TRANSFORMS, piece)
    check_arguments_are_named(TRANSFORMS, piece)
    assert piece.stage in get_args(Stage), piece.stage
    assert piece.kinds and set(piece.kinds) | set(piece.kinds.values()) <= set(SHAPES), piece.kinds


def cases(piece: Any) -> Iterator[tuple[Kind, Shape]]:
    """The kinds that it takes, with shapes of each."""
    for kind in piece.kinds:
        for shape in SHAPES[kind]:
            if not (expression(piece).startswith("norm(HW") and len(shape) == 2):
                yield kind, shape


def pair_of(student: torch.Tensor, teacher: torch.Tensor, kind: Kind, weight: torch.Tensor | None = None) -> Pair:
    """A pair that carries all that a transform may ask for."""
    return Pair(
        student,
        teacher,
        kind=kind,
        weight=weight,
        decoded=(student * 2, teacher * 2),
        distributions=(torch.stack([student, -student], 2), torch.stack([teacher, -teacher], 2)),
        generator=torch.Generator().manual_seed(3),
    )


def draw(shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gives_two_alike_tensors_of_the_stated_kind(piece: Any, kind: Kind, shape: Shape) -> None:
    """Two finite tensors of one shape, of the stated kind; no input is modified."""
    student, teacher = draw(shape, 1), draw(shape, 2)
    kept = student.clone(), teacher.clone()
    result = piece(pair_of(student, teacher, kind))
    assert result.kind == piece.kinds[kind]
    assert result.student.shape == result.teacher.shape
    assert result.student.numel() > 0
    assert result.student.isfinite().all() and result.teacher.isfinite().all()
    assert torch.equal(student, kept[0]) and torch.equal(teacher, kept[1])


def treats_equal_sides_alike(piece: Any, kind: Kind, shape: Shape) -> None:
    """Equal sides stay equal."""
    if getattr(piece, "shared", True) is False:
        return  # draws for each side on purpose
    same = draw(shape)
    result = piece(pair_of(same, same.clone(), kind))
    assert torch.equal(result.student, result.teacher)


def draws_only_from_the_pairs_generator(piece: Any, kind: Kind, shape: Shape) -> None:
    """What is random comes from the pair's generator alone."""
    before = torch.get_rng_state()
    first = piece(pair_of(draw(shape), draw(shape, 1), kind))
    second = piece(pair_of(draw(shape), draw(shape, 1), kind))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.student, second.student)


def is_finite_on_constants(piece: Any, kind: Kind, shape: Shape) -> None:
    """Value and gradient are finite where nothing varies."""
    for fill in (0.0, 0.3, -7.0):
        student = torch.full(shape, fill, requires_grad=True)
        result = piece(pair_of(student, draw(shape), kind))
        assert result.student.isfinite().all()
        (gradient,) = torch.autograd.grad((result.student * draw(tuple(result.student.shape), 5)).sum(), student)
        assert gradient.isfinite().all()


def is_finite_far_from_one(piece: Any, kind: Kind, shape: Shape) -> None:
    """Value and gradient are finite for large and small numbers."""
    for factor in (10000.0, 0.0001):
        student = (factor * draw(shape)).requires_grad_()
        result = piece(pair_of(student, factor * draw(shape, 1), kind))
        assert result.student.isfinite().all()
        (gradient,) = torch.autograd.grad(result.student.sum(), student)
        assert gradient.isfinite().all()


def takes_half_precision(piece: Any, kind: Kind, shape: Shape) -> None:
    """Half precision gives about what full precision gives."""
    exact = draw(shape).bfloat16()
    result = piece(pair_of(exact, exact, kind))
    reference = piece(pair_of(exact.float(), exact.float(), kind))
    torch.testing.assert_close(result.student.float(), reference.student, rtol=0.02, atol=0.02)


def carries_the_weight_along(piece: Any, kind: Kind, shape: Shape) -> None:
    """The weight stays broadcastable, non-negative and 0 nowhere else; no weight means equal weights.

    It ends where the result has no positions, and counts in the numbers there.
    """
    ones = torch.ones(shape[0], 1, *shape[2:])
    plain = piece(pair_of(draw(shape), draw(shape, 1), kind))
    weighted = piece(pair_of(draw(shape), draw(shape, 1), kind, weight=ones))
    if weighted.weight is None:
        assert weighted.student.shape[2:] != shape[2:], "the weight of the positions is lost"
    else:
        weighted.weight.expand_as(weighted.student)
        assert set(weighted.weight.unique().tolist()) <= {0.0, 1.0}
    values = weighted.student.square()
    torch.testing.assert_close(weighted.mean(values), plain.mean(values))
    torch.testing.assert_close(weighted.row_mean(values.sum(1)), plain.row_mean(values.sum(1)))


def takes_an_empty_batch(piece: Any, kind: Kind, shape: Shape) -> None:
    """An empty batch gives an empty pair, whose loss of 0 has a gradient."""
    student = torch.zeros(0, *shape[1:], requires_grad=True)
    weight = torch.zeros(0, 1, *shape[2:])
    for result in (
        piece(pair_of(student, student.detach(), kind)),
        piece(pair_of(student, student.detach(), kind, weight)),
    ):
        assert result.student.numel() == 0
        loss = torch.as_tensor(result.mean(result.student))
        assert loss == 0
        loss.backward()


def gradient_is_that_of_the_value(piece: Any, kind: Kind, shape: Shape) -> None:
    """The gradient agrees with finite differences in double precision."""
    small = tuple(min(size, 4) for size in shape)
    student = draw(small, dtype=torch.float64).requires_grad_()
    teacher = draw(small, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: piece(pair_of(x, teacher, kind)).student, student)


CHECKS = (
    gives_two_alike_tensors_of_the_stated_kind,
    treats_equal_sides_alike,
    draws_only_from_the_pairs_generator,
    is_finite_on_constants,
    is_finite_far_from_one,
    takes_half_precision,
    carries_the_weight_along,
    takes_an_empty_batch,
    gradient_is_that_of_the_value,
)
"""Every check of one piece on one kind and shape."""
