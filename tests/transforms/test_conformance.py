"""What every transform must do; a newly registered one is tested with no further edit.

Example arguments follow from the types of the fields: every choice of a ``Literal``, both of a ``bool``, the numbers
1, 2 and 4 for a required ``int``; other fields keep their defaults.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from typing import Any

import pytest
import torch

from detkds.errors import UserError
from detkds.registry import TRANSFORMS, expression
from detkds.structures import Kind, Pair

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "feature": ((4, 6, 8, 8), (2, 3, 5, 7), (1, 2, 1, 3)),
    "logits": ((4, 3, 2, 4, 5), (2, 3, 1, 3, 3), (6, 5)),
    "probability": ((2, 3, 2, 4, 5), (6, 5)),
    "regression": ((4, 4, 2, 3, 5), (6, 4)),
    "sides": ((2, 4, 2, 3, 5), (6, 4)),
    "boxes": ((2, 4, 2, 3, 5), (6, 4)),
}
KINDS = set(SHAPES)
# Transforms whose result may have no positions left to weigh.
WITHOUT_POSITIONS = {"att_map", "gram"}


def examples(cls: Any) -> list[Any]:
    """Pieces of a class with every combination of its example arguments."""
    hints = typing.get_type_hints(cls)
    choices = []
    for field in dataclasses.fields(cls):
        if typing.get_origin(hints[field.name]) is typing.Literal:
            choices.append(typing.get_args(hints[field.name]))
        elif hints[field.name] is bool:
            choices.append((True, False))
        elif field.default is not dataclasses.MISSING:
            choices.append((field.default,))
        else:
            choices.append((1, 2, 4) if hints[field.name] is int else (0.5, 2.0))
    return [cls(*arguments) for arguments in itertools.product(*choices)]


PIECES = [piece for name in TRANSFORMS for piece in examples(TRANSFORMS[name])]
CASES = [
    pytest.param(piece, kind, shape, id=f"{expression(piece)}-{kind}-{'x'.join(map(str, shape))}")
    for piece in PIECES
    for kind in piece.kinds
    for shape in SHAPES[kind]
    if not (expression(piece).startswith("norm(HW") and len(shape) == 2)
]
EACH = pytest.mark.parametrize("piece", PIECES, ids=expression)
EVERYWHERE = pytest.mark.parametrize(("piece", "kind", "shape"), CASES)


def pair_of(student: torch.Tensor, teacher: torch.Tensor, kind: Kind, weight: torch.Tensor | None = None) -> Pair:
    return Pair(
        student,
        teacher,
        kind=kind,
        weight=weight,
        decoded=(student * 2, teacher * 2),
        distributions=(torch.stack([student, -student], 2), torch.stack([teacher, -teacher], 2)),
        generator=torch.Generator().manual_seed(3),
    )


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@EACH
def test_is_written_as_it_is_built(piece: Any) -> None:
    assert TRANSFORMS.build(expression(piece)) == piece
    assert hash(TRANSFORMS.build(expression(piece))) == hash(piece)


@EACH
def test_states_its_place(piece: Any) -> None:
    assert piece.stage in ("attention", "scale", "normalise", "response")
    assert piece.kinds
    assert set(piece.kinds) | set(piece.kinds.values()) <= KINDS
    assert TRANSFORMS.summary(piece.name).endswith(".")


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_refuses_wrong_arguments_by_name(name: str) -> None:
    cls: Any = TRANSFORMS[name]
    for field in dataclasses.fields(cls):
        required = [
            1 if typing.get_type_hints(cls)[f.name] is int else "C"
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.name != field.name
        ]
        written = ", ".join([*map(str, required), f"{field.name}=wrong"])
        if not required or field.default is not dataclasses.MISSING:
            with pytest.raises(UserError, match=rf"{field.name}: expected .*, got 'wrong'"):
                TRANSFORMS.build(f"{name}({written})")


@EVERYWHERE
def test_gives_two_alike_tensors_of_the_stated_kind(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    kept = student.clone(), teacher.clone()
    result = piece(pair_of(student, teacher, kind))
    assert result.kind == piece.kinds[kind]
    assert result.student.shape == result.teacher.shape
    assert result.student.numel() > 0
    assert result.student.isfinite().all() and result.teacher.isfinite().all()
    assert torch.equal(student, kept[0]) and torch.equal(teacher, kept[1])


@EVERYWHERE
def test_treats_equal_sides_alike(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    if getattr(piece, "shared", True) is False:
        pytest.skip("draws for each side on purpose")
    same = draw(shape)
    result = piece(pair_of(same, same.clone(), kind))
    assert torch.equal(result.student, result.teacher)


@EVERYWHERE
def test_draws_only_from_the_pairs_generator(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    before = torch.get_rng_state()
    first = piece(pair_of(draw(shape), draw(shape, 1), kind))
    second = piece(pair_of(draw(shape), draw(shape, 1), kind))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.student, second.student)


@EVERYWHERE
@pytest.mark.parametrize("fill", [0.0, 0.3, -7.0])
def test_is_finite_on_constants(piece: Any, kind: Kind, shape: tuple[int, ...], fill: float) -> None:
    student = torch.full(shape, fill, requires_grad=True)
    result = piece(pair_of(student, draw(shape), kind))
    assert result.student.isfinite().all()
    (gradient,) = torch.autograd.grad((result.student * draw(tuple(result.student.shape), 5)).sum(), student)
    assert gradient.isfinite().all()


@EVERYWHERE
@pytest.mark.parametrize("factor", [1e4, 1e-4])
def test_is_finite_far_from_one(piece: Any, kind: Kind, shape: tuple[int, ...], factor: float) -> None:
    student = (factor * draw(shape)).requires_grad_()
    result = piece(pair_of(student, factor * draw(shape, 1), kind))
    assert result.student.isfinite().all()
    (gradient,) = torch.autograd.grad(result.student.sum(), student)
    assert gradient.isfinite().all()


@EVERYWHERE
def test_takes_half_precision(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    exact = draw(shape).bfloat16()
    result = piece(pair_of(exact, exact, kind))
    reference = piece(pair_of(exact.float(), exact.float(), kind))
    torch.testing.assert_close(result.student.float(), reference.student, rtol=0.02, atol=0.02)


@EVERYWHERE
def test_carries_the_weight_along(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    """The weight stays broadcastable, non-negative and 0 nowhere else; no weight means equal weights.

    It ends where the result has no positions, and counts in the numbers there.
    """
    ones = torch.ones(shape[0], 1, *shape[2:])
    plain = piece(pair_of(draw(shape), draw(shape, 1), kind))
    weighted = piece(pair_of(draw(shape), draw(shape, 1), kind, weight=ones))
    if weighted.weight is None:
        assert piece.name in WITHOUT_POSITIONS
    else:
        weighted.weight.expand_as(weighted.student)
        assert set(weighted.weight.unique().tolist()) <= {0.0, 1.0}
    values = weighted.student.square()
    torch.testing.assert_close(weighted.mean(values), plain.mean(values))
    torch.testing.assert_close(weighted.row_mean(values.sum(1)), plain.row_mean(values.sum(1)))


@EVERYWHERE
def test_takes_an_empty_batch(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    student = torch.zeros(0, *shape[1:], requires_grad=True)
    weight = torch.zeros(0, 1, *shape[2:])
    for result in (
        piece(pair_of(student, student.detach(), kind)),
        piece(pair_of(student, student.detach(), kind, weight)),
    ):
        assert result.student.numel() == 0
        loss = result.mean(result.student)
        assert loss == 0
        loss.backward()


@EVERYWHERE
def test_gradient_is_that_of_the_value(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    small = tuple(min(size, 4) for size in shape)
    student = draw(small, dtype=torch.float64).requires_grad_()
    teacher = draw(small, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: piece(pair_of(x, teacher, kind)).student, student)
