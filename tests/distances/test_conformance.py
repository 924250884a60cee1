"""What every distance must do; a newly registered one is tested with no further edit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detkds.registry import DISTANCES, TRANSFORMS, expression
from detkds.structures import Kind, Pair
from detkds.testing.distances import CHECKS, DistanceTraits, cases, check_declaration
from detkds.testing.pieces import examples

TRAITS = {
    "correlation": DistanceTraits(floor=-19.93),
    "logsum": DistanceTraits(floor=-13.82),
    "ssim": DistanceTraits(looks_around=True),
    "ciou": DistanceTraits(own_gradient=True),
    "euclidean": DistanceTraits(weight_power=0.5),
}
PIECES = [piece for name in DISTANCES for piece in examples(DISTANCES[name])]
CASES = [
    pytest.param(piece, kind, shape, id=f"{expression(piece)}-{kind}-{'x'.join(map(str, shape))}")
    for piece in PIECES
    for kind, shape in cases(piece)
]


@pytest.mark.parametrize("piece", PIECES, ids=expression)
def test_is_declared(piece: Any) -> None:
    check_declaration(piece)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("piece", "kind", "shape"), CASES)
def test_every_check(piece: Any, kind: Kind, shape: tuple[int, ...], check: Any) -> None:
    image = DistanceTraits(weight_power=float(getattr(piece, "per", "") == "image"))
    check(piece, kind, shape, TRAITS.get(piece.name, image))


# --- whole chains of the feature space ---

ATTENTIONS = ("", "satt", "catt")
SCALES = ("", "scale(2)", "scale(4)", "local(2)", "local(4)")
NORMALISATIONS = ("", "norm(HW)", "norm(C)", "norm(N)", "minmax", "norm_batch")
FEATURE_DISTANCES = [
    name for name in DISTANCES if "feature" in DISTANCES[name].kinds and name not in ("correlation", "logsum")
]  # type: ignore[attr-defined]


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
