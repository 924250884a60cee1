from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from detkds.errors import UserError
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair
from detkds.transforms.normalise import Normalize, NormalizeBatch

SHAPES = [(5, 6, 7, 8), (5, 3, 2, 4, 6), (6, 5)]


def dims_of(axis: str, ndim: int) -> tuple[int, ...]:
    return {"HW": tuple(range(2, ndim)), "C": (1,), "N": (0,)}[axis]


def one_side(transform: Normalize | NormalizeBatch, tensor: torch.Tensor, kind: Kind = "feature") -> torch.Tensor:
    return transform(Pair(tensor, tensor, kind=kind)).student


def test_by_hand() -> None:
    """(1, 3): mean 2, biased sigma 1; length sqrt(10)."""
    tensor = torch.tensor([[[[1.0, 3.0]]]])
    assert one_side(Normalize("HW"), tensor).flatten().tolist() == pytest.approx([-1, 1], abs=1e-5)
    root = math.sqrt(10)
    assert one_side(Normalize("HW", "l2"), tensor).flatten().tolist() == pytest.approx([1 / root, 3 / root])
    root = math.sqrt(5)
    assert one_side(Normalize("HW", "rms"), tensor).flatten().tolist() == pytest.approx([1 / root, 3 / root])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", ["HW", "C", "N"])
@pytest.mark.parametrize("mode", ["std", "l2", "rms", "auto"])
def test_statistics(shape: tuple[int, ...], axis: str, mode: str, generator: torch.Generator) -> None:
    if axis == "HW" and len(shape) == 2:
        pytest.skip("rows have no positions")
    dims = dims_of(axis, len(shape))
    result = one_side(Normalize(axis, mode), 3 + 2 * torch.randn(shape, generator=generator))  # type: ignore[arg-type]
    square = result.square()
    if mode in ("std", "auto"):
        torch.testing.assert_close(result.mean(dims), torch.zeros_like(result.mean(dims)), atol=1e-5, rtol=0)
    size = square.sum(dims) if mode == "l2" else square.mean(dims)
    torch.testing.assert_close(size, torch.ones_like(size), atol=1e-4, rtol=0)


def test_batch_of_one_is_left_alone() -> None:
    pair = Pair(torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3))
    assert Normalize("N")(pair) is pair


@pytest.mark.parametrize("images", [2, 3])
def test_small_batch_keeps_a_gradient(images: int, generator: torch.Generator) -> None:
    """Standardising two samples gives plus and minus one whatever they are; auto takes the root mean square."""
    tensor = torch.randn(images, 2, 3, 3, generator=generator, requires_grad=True)
    result = one_side(Normalize("N"), tensor)
    torch.testing.assert_close(result, one_side(Normalize("N", "rms"), tensor))
    target = torch.randn(result.shape, generator=generator)
    (gradient,) = torch.autograd.grad((result - target).square().sum(), tensor, retain_graph=True)
    assert gradient.abs().mean() > 0.1


def test_std_of_two_samples_is_all_ones() -> None:
    tensor = torch.tensor([[0.2], [5.0]]).view(2, 1, 1, 1)
    assert one_side(Normalize("N", "std"), tensor).flatten().tolist() == pytest.approx([-1, 1], abs=1e-5)


@pytest.mark.parametrize("images", [1, 2])
def test_l2_of_zeros_is_zero(images: int) -> None:
    assert one_side(Normalize("N", "l2"), torch.zeros(images, 2, 3, 3)).abs().max() == 0


def test_axis_needs_positions() -> None:
    with pytest.raises(ValueError, match=r"norm\(HW\): expected maps .* got rows of shape \(4, 3\)"):
        one_side(Normalize("HW"), torch.ones(4, 3))


@pytest.mark.parametrize("text", ["norm(HWC)", "norm(C, mode=batch)", "norm"])
def test_refuses_arguments(text: str) -> None:
    with pytest.raises(UserError, match=r"expected one of|missing a required argument"):
        TRANSFORMS.build(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_matches_torch(shape: tuple[int, ...], generator: torch.Generator) -> None:
    tensor = 3 + 2 * torch.randn(shape, generator=generator)
    expected = F.batch_norm(tensor, None, None, training=True, eps=1e-12)
    torch.testing.assert_close(one_side(NormalizeBatch(), tensor), expected, atol=1e-4, rtol=1e-4)


def test_level_far_above_the_spread_keeps_its_digits(generator: torch.Generator) -> None:
    noise = torch.randn(2, 3, 8, 8, generator=generator)
    torch.testing.assert_close(
        one_side(NormalizeBatch(), noise + 100), one_side(NormalizeBatch(), noise), atol=1e-3, rtol=1e-3
    )
