"""What every distance must do; a newly registered one is tested with no further edit.

Example arguments follow from the types of the fields: every choice of a ``Literal``, both of a ``bool``; other fields
keep their defaults, or are 1 where there is none.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from typing import Any

import pytest
import torch
from torch import Tensor

from detkds.errors import UserError
from detkds.registry import DISTANCES, TRANSFORMS, expression
from detkds.structures import Kind, Pair

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "feature": ((2, 5, 6, 7), (3, 4, 1, 2)),
    "logits": ((2, 3, 2, 4, 5), (6, 3)),
    "probability": ((2, 3, 2, 4, 5), (6, 3)),
    "regression": ((2, 4, 2, 3, 5), (6, 4)),
    "sides": ((2, 4, 2, 3, 5), (6, 4)),
    "boxes": ((2, 4, 2, 3, 5), (6, 4)),
}
# Distances whose lowest value, at equality, is not 0, with that value. They may be negative.
FLOORS = {"correlation": -19.93, "logsum": -13.82}
# Distances that look beyond one position, so that a position of weight 0 still tells on its neighbours.
NEIGHBOURLY = {"ssim"}
# Distances that hold a factor back from the gradient by definition.
PARTLY_DETACHED = {"ciou"}


def examples(cls: Any) -> list[Any]:
    """Pieces of a class with every combination of its example arguments."""
    hints = typing.get_type_hints(cls)
    choices = []
    for field in dataclasses.fields(cls):
        if typing.get_origin(hints[field.name]) is typing.Literal:
            choices.append(typing.get_args(hints[field.name]))
        elif hints[field.name] is bool:
            choices.append((True, False))
        else:
            choices.append((1 if field.default is dataclasses.MISSING else field.default,))
    return [cls(*arguments) for arguments in itertools.product(*choices)]


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


def draw(shape: tuple[int, ...], kind: Kind, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return valid(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), kind)


PIECES = [piece for name in DISTANCES for piece in examples(DISTANCES[name])]
CASES = [
    pytest.param(piece, kind, shape, id=f"{expression(piece)}-{kind}-{'x'.join(map(str, shape))}")
    for piece in PIECES
    for kind in sorted(piece.kinds)
    for shape in SHAPES[kind]
]
EACH = pytest.mark.parametrize("piece", PIECES, ids=expression)
EVERYWHERE = pytest.mark.parametrize(("piece", "kind", "shape"), CASES)


@EACH
def test_is_written_as_it_is_built(piece: Any) -> None:
    assert DISTANCES.build(expression(piece)) == piece
    assert hash(DISTANCES.build(expression(piece))) == hash(piece)


@EACH
def test_states_what_it_takes(piece: Any) -> None:
    assert isinstance(piece.kinds, frozenset)
    assert piece.kinds and piece.kinds <= set(SHAPES)
    assert DISTANCES.summary(piece.name).endswith(".")


@pytest.mark.parametrize(
    ("name", "field"), [(name, field.name) for name in DISTANCES for field in dataclasses.fields(DISTANCES[name])]
)
def test_refuses_wrong_arguments_by_name(name: str, field: str) -> None:
    with pytest.raises(UserError, match=rf"{field}: expected .*, got 'wrong'"):
        DISTANCES.build(f"{name}({field}=wrong)")


@EVERYWHERE
@pytest.mark.parametrize("factor", [1.0, 1e-4, 1e4])
def test_is_lowest_at_equality(piece: Any, kind: Kind, shape: tuple[int, ...], factor: float) -> None:
    if piece.name in FLOORS and factor < 1:
        pytest.skip("approaches its lowest value only where sigma is far above 1e-6")
    same = draw(shape, kind, 0) if kind == "probability" else factor * draw(shape, kind, 0)
    value = piece(Pair(same, same.clone(), kind=kind))
    assert value.shape == ()
    assert value.item() == pytest.approx(FLOORS.get(piece.name, 0.0), abs=0.2 if piece.name in FLOORS else 2e-6)


@EVERYWHERE
def test_is_above_its_lowest_elsewhere(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        value = piece(Pair(draw(shape, kind, seed), draw(shape, kind, seed + 100), kind=kind))
        assert value.item() > FLOORS.get(piece.name, 0.0) + 1e-4


@EVERYWHERE
def test_gives_the_teacher_no_gradient(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    student, teacher = (draw(shape, kind, seed).requires_grad_() for seed in (0, 1))
    piece(Pair(student, teacher, kind=kind)).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().sum() > 0


@EVERYWHERE
def test_changes_no_input(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    student, teacher, weight = draw(shape, kind, 0), draw(shape, kind, 1), torch.rand(shape[0], 1, *shape[2:])
    kept = [tensor.clone() for tensor in (student, teacher, weight)]
    piece(Pair(student, teacher, kind=kind, weight=weight))
    assert all(torch.equal(now, before) for now, before in zip((student, teacher, weight), kept, strict=True))


@EVERYWHERE
def test_is_finite_where_nothing_varies(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
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


@EVERYWHERE
def test_is_zero_for_equal_degenerate_sides(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    if piece.name in FLOORS:
        pytest.skip("has no zero")
    for value in (0.0, 0.3, 1e-9, 7e3):
        same = torch.full(shape, value)
        if kind == "probability":
            same = same.softmax(1)
        assert piece(Pair(same, same.clone(), kind=kind)).abs() < 1e-6


@EVERYWHERE
def test_sums_half_precision_in_float32(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape, kind, 0).bfloat16(), draw(shape, kind, 1).bfloat16()
    value = piece(Pair(student, teacher, kind=kind))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, piece(Pair(student.float(), teacher.float(), kind=kind)))


@EVERYWHERE
def test_nothing_is_at_distance_zero(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    student = torch.zeros(0, *shape[1:], requires_grad=True)
    for weight in (None, torch.zeros(0, 1, *shape[2:])):
        value = piece(Pair(student, torch.zeros(0, *shape[1:]), kind=kind, weight=weight))
        assert value.item() == 0
        value.backward()


@EVERYWHERE
def test_even_weights_are_a_factor_of_sums_and_change_no_mean(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape, kind, 0), draw(shape, kind, 1)
    plain = piece(Pair(student, teacher, kind=kind))
    for weight in (torch.full((shape[0], 1, *shape[2:]), 0.25), torch.full(shape, 3.0), torch.ones(1, 1, *shape[2:])):
        power = 0.5 if piece.name == "euclidean" else float(getattr(piece, "per", "") == "image")
        factor = weight.flatten()[0] ** power
        torch.testing.assert_close(piece(Pair(student, teacher, kind=kind, weight=weight)), factor * plain)


@EVERYWHERE
def test_positions_of_weight_zero_do_not_count(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    if piece.name in NEIGHBOURLY:
        pytest.skip("looks at windows")
    student, teacher = draw(shape, kind, 0), draw(shape, kind, 1)
    weight = torch.arange(shape[0] * student[0, 0].numel()).remainder(3).float().view(shape[0], 1, *shape[2:])
    other = torch.where(weight > 0, student, draw(shape, kind, 2))
    values = [piece(Pair(side, teacher, kind=kind, weight=weight)) for side in (student, other)]
    torch.testing.assert_close(values[0], values[1])
    assert not torch.isclose(values[0], piece(Pair(student, teacher, kind=kind)), rtol=1e-4)


@EVERYWHERE
def test_gradient_is_that_of_the_value(piece: Any, kind: Kind, shape: tuple[int, ...]) -> None:
    if piece.name in PARTLY_DETACHED:
        pytest.skip("has its own gradient, compared with a reference elsewhere")
    small = tuple(min(size, 4) for size in shape)
    student = draw(small, kind, 0, torch.float64).requires_grad_()
    pair = Pair(
        student,
        draw(small, kind, 1, torch.float64),
        kind=kind,
        weight=torch.rand(small[0], 1, *small[2:], generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(lambda x: piece(dataclasses.replace(pair, student=x)), student)


# --- whole chains of the feature space ---

ATTENTIONS = ("", "satt", "catt")
SCALES = ("", "scale(2)", "scale(4)", "local(2)", "local(4)")
NORMALISATIONS = ("", "norm(HW)", "norm(C)", "norm(N)", "minmax", "norm_batch")
FEATURE_DISTANCES = [name for name in DISTANCES if "feature" in DISTANCES[name].kinds and name not in FLOORS]  # type: ignore[attr-defined]


def through(pair: Pair, *expressions: str) -> Pair:
    for text in filter(None, expressions):
        pair = TRANSFORMS.build(text)(pair)
    return pair


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_nearer_is_less(scale: str, normalise: str) -> None:
    """Along S(t) = (1 - t) S + t T the loss falls from t = 0.5 over 0.75 to 0 at 1, whatever stands before it."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 8, 16, 16, generator=generator)
    for attention in ATTENTIONS:
        sides = [torch.lerp(student, teacher, t) for t in (0.5, 0.75, 1)]
        pairs = [through(Pair(side, teacher), attention, scale, normalise) for side in sides]
        for name in FEATURE_DISTANCES:
            half, near, equal = (DISTANCES.build(name)(pair).item() for pair in pairs)
            assert half > near > equal, (attention, name)
            assert -1e-6 <= equal <= 2e-6, (attention, name)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_masked_equal_sides_are_at_distance_zero(scale: str, normalise: str, size: tuple[int, int]) -> None:
    same = torch.randn(4, 6, *size, generator=torch.Generator().manual_seed(0))
    pair = Pair(same, same.clone(), generator=torch.Generator().manual_seed(1))
    pair = through(pair, "mask", scale, normalise)
    for name in FEATURE_DISTANCES:
        assert DISTANCES.build(name)(pair).abs() < 2e-6, name
