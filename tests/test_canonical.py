"""Equal canonical forms are equal losses: checked by value over the whole feature space, and for the responses."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch

from detkds.canonical import _REQUIRED, _SIGNATURES, alias_steps, canonical_steps
from detkds.errors import UserError
from detkds.registry import DISTANCES, TRANSFORMS
from detkds.structures import Kind, Pair

Point = tuple[tuple[str, ...], str]


def space(*slots: tuple[str, ...], distances: tuple[str, ...]) -> list[Point]:
    chains = [tuple(filter(None, chain)) for chain in itertools.product(*slots)]
    return list(itertools.product(chains, distances))


ELEMENTWISE = ("l1", "l2", "smooth_l1")
RAW = space(
    ("", "satt", "catt", "mask"),
    ("", "scale(1)", "scale(2)", "scale(4)", "local(1)", "local(2)", "local(4)"),
    ("", "norm(HW)", "norm(C)", "norm(N)", "minmax"),
    distances=(*ELEMENTWISE, "kl", "cosine", "pearson", "ssim"),
)
BEYOND = space(
    ("", "satt(power=1)", "catt(tau=1)"),
    ("", "scale(2, pool=avg)", "local(2)", "win(2)"),
    ("", "norm_batch", "minmax(batch)", *(f"norm({axis}, mode=l2)" for axis in ("HW", "N", "C")), "norm(C, mode=rms)"),
    ("", "reshape(N)", "reshape(C)"),
    distances=(*ELEMENTWISE, "kl(tau=2)", "cosine", "pearson", "correlation"),
)
LOGITS = space(
    ("", "norm(N)", "norm(C)", "minmax", "reshape(N)", "reshape(C)", "softmax", "norm_batch"),
    distances=(*ELEMENTWISE, "kl", "cosine", "pearson", "correlation"),
)


@cache
def built(text: str, distance: bool = False) -> Any:
    return (DISTANCES if distance else TRANSFORMS).build(text)


def losses(points: list[Point], shape: tuple[int, ...], kind: Kind, weighted: bool, scale: float = 1) -> list[float]:
    """The loss at each point. Weighted sides are zero where the weight is, as with foreground and background."""
    generator = torch.Generator().manual_seed(0)
    teacher = scale * torch.randn(shape, generator=generator)
    student = teacher + 0.8 * scale * torch.randn(shape, generator=generator)
    weight = None
    if weighted:
        inside = (torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.4).float()
        student, teacher = student * inside, teacher * inside
        weight = inside * torch.rand(inside.shape, generator=generator)
    pairs: dict[tuple[str, ...], Pair] = {}
    values = []
    for transforms, distance in points:
        if transforms not in pairs:
            pair = Pair(student, teacher, kind=kind, weight=weight, generator=torch.Generator().manual_seed(5))
            for text in transforms:
                pair = built(text)(pair)
            pairs[transforms] = pair
        values.append(built(distance, True)(pairs[transforms]).item())
    return values


def groups(points: list[Point], knowledge: str) -> dict[Point, list[int]]:
    found: dict[Point, list[int]] = defaultdict(list)
    for index, point in enumerate(points):
        found[canonical_steps(knowledge, *point)].append(index)
    return found


def agree(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-4 * max(abs(one), abs(other))


def distinct(columns: list[list[float]]) -> int:
    """How many points differ from all others in some column by more than 1e-4 of the larger value."""
    kept: list[tuple[float, ...]] = []
    for row in zip(*columns, strict=True):
        if not any(all(map(agree, row, other)) for other in kept):
            kept.append(row)
    return len(kept)


MAPS = [
    pytest.param("global", (4, 8, 16, 16), False, id="global"),
    pytest.param("global", (2, 6, 7, 9), False, id="global-indivisible"),
    pytest.param("global", (1, 5, 3, 3), False, id="global-small"),
    pytest.param("fgbg", (4, 8, 11, 15), True, id="fgbg"),
    pytest.param("fgbg", (3, 5, 2, 6), True, id="fgbg-small"),
    pytest.param("instance", (5, 6, 14, 14), False, id="instance"),
    pytest.param("instance", (1, 6, 7, 7), False, id="instance-one"),
]
ROWS = [
    pytest.param("logits", (4, 5, 2, 6, 7), False, id="dense"),
    pytest.param("logits", (1, 5, 2, 3, 3), True, id="dense-weighted"),
    pytest.param("logits", (9, 5), False, id="region"),
]


@pytest.mark.parametrize(
    ("points", "kind", "knowledge", "shape", "weighted"),
    [
        pytest.param(points, kind, *case.values, id=f"{name}-{case.id}")
        for name, points, kind, cases in (
            ("raw", RAW, "feature", MAPS),
            ("beyond", BEYOND, "feature", MAPS[1:6]),
            ("logits", LOGITS, "logits", ROWS),
        )
        for case in cases
    ],
)
def test_equal_forms_are_equal_losses(
    points: list[Point], kind: Kind, knowledge: str, shape: tuple[int, ...], weighted: bool
) -> None:
    values = losses(points, shape, kind, weighted)
    for form, members in groups(points, knowledge).items():
        (expected,) = losses([form], shape, kind, weighted)
        for index in members:
            assert values[index] == pytest.approx(expected, rel=1e-4, abs=1e-9), (points[index], form)


@pytest.mark.parametrize("points", [RAW, BEYOND, LOGITS], ids=["raw", "beyond", "logits"])
def test_canonical_forms_are_their_own(points: list[Point]) -> None:
    for point in points:
        form = canonical_steps("global", *point)
        assert canonical_steps("global", *form) == form


def test_counts_of_the_feature_space() -> None:
    """980 spellings are 700 policies; 516 of them are different losses, and no two of these 516 always agree."""
    assert len(RAW) == 980
    assert len({(alias_steps(transforms), distance) for transforms, distance in RAW}) == 4 * 5 * 5 * 7 == 700
    forms = list(groups(RAW, "global"))
    assert len(forms) == 516
    columns = [losses(forms, (4, 16, 16, 16), "feature", False), losses(forms, (2, 8, 3, 3), "feature", False)]
    assert distinct(columns) == 516


def test_counts_of_the_logits_space() -> None:
    """56 spellings; reshaping changes nothing for three distances, scale and shift nothing for correlations.

    ``softmax`` with ``kl`` stays apart from ``kl`` alone: the two differ where a probability falls below 1e-8.
    """
    forms = list(groups(LOGITS, "logits"))
    assert len(forms) == 56 - 2 * 3 - 2 - 2
    small, large = (losses(forms, (4, 5, 2, 6, 7), "logits", False, scale) for scale in (1, 20))
    assert distinct([small, large]) == len(forms)


@pytest.mark.parametrize(
    ("transforms", "distance", "expected"),
    [
        (("scale(1)",), "l1", ((), "l1")),
        (("local(1)", "norm(N)"), "l2", (("norm(N)",), "l2")),
        (("mask(ratio=0)",), "l2", ((), "l2")),
        (("local(2)",), "kl", ((), "kl")),
        (("local(2)",), "ssim", (("local(2)",), "ssim")),
        (("local(2)", "norm(HW)"), "l2", (("local(2)", "norm(HW)"), "l2")),
        (("local(2)", "norm_batch"), "l2", (("local(2)", "norm_batch"), "l2")),
        (("catt", "scale(2)", "norm(HW)"), "ssim", (("scale(2)", "norm(HW)"), "ssim")),
        (("catt", "scale(2)", "norm(N)"), "l1", (("catt", "scale(2)", "norm(N)"), "l1")),
        (("satt", "local(4)", "norm(C)"), "l1", (("norm(C)",), "l1")),
        (("satt", "scale(2)", "norm(C)"), "l1", (("satt", "scale(2)", "norm(C)"), "l1")),
        (("satt", "scale(2)"), "cosine", (("satt", "scale(2)"), "cosine")),
        (("satt",), "cosine", ((), "cosine")),
        (("norm(C)",), "cosine", ((), "pearson")),
        (("norm(C, mode=l2)",), "cosine", ((), "cosine")),
        (("norm(C, mode=std)",), "l1", (("norm(C)",), "l1")),
        (("norm(N, mode=std)",), "l1", (("norm(N, mode=std)",), "l1")),
        (("mask", "minmax"), "pearson", (("mask",), "pearson")),
        (("minmax",), "cosine", (("minmax",), "cosine")),
        (("norm_batch", "reshape(C)"), "l2", (("norm_batch",), "l2")),
        (("reshape(C)",), "kl", (("reshape(C)",), "kl")),
    ],
)
def test_rules(transforms: tuple[str, ...], distance: str, expected: Point) -> None:
    assert canonical_steps("global", transforms, distance) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("satt", "satt(tau=0.5, power=0.5)"),
        ("scale(2)", "scale(n=2, pool=max)"),
        ("norm(N)", "norm(axis=N)"),
        ("satt(1)", "satt(tau=1.0)"),
        ("mask(shared=false)", "mask(0.65, false)"),
    ],
)
def test_spellings_of_one_piece_are_one(one: str, other: str) -> None:
    assert canonical_steps("global", (one,), "l1") == canonical_steps("global", (other,), "l1")


def test_unknown_pieces_pass_through_and_stop_the_rules() -> None:
    steps = ("satt", "scale(1)", "sharpen(3)", "norm(C)")
    assert canonical_steps("global", steps, "l1") == (("satt", "sharpen(3)", "norm(C)"), "l1")
    assert canonical_steps("global", ("satt", "norm(C)"), "my_distance(2)") == (("satt", "norm(C)"), "my_distance(2)")
    assert canonical_steps("global", ("norm(C, soft=true)",), "pearson") == (("norm(C, soft=true)",), "pearson")
    assert canonical_steps("global", ("norm(C)", "satt"), "l1") == (("norm(C)", "satt"), "l1")


def test_foreign_knowledge_may_weigh_channels() -> None:
    assert canonical_steps("mine", ("minmax", "scale(1)"), "pearson") == (("minmax",), "pearson")
    assert canonical_steps("fgbg(background=1)", ("minmax",), "pearson") == ((), "pearson")


def test_unreadable_expression_is_refused() -> None:
    with pytest.raises(UserError, match="expected an expression"):
        canonical_steps("global", ("scale(2",), "l1")


def test_signatures_are_those_of_the_pieces() -> None:
    """The rules know pieces by name only; this keeps their idea of the arguments true."""
    for name, signature in _SIGNATURES.items():
        cls: Any = (TRANSFORMS if name in TRANSFORMS else DISTANCES)[name]
        fields = {
            field.name: _REQUIRED if field.default is dataclasses.MISSING else field.default
            for field in dataclasses.fields(cls)
        }
        assert list(fields.items()) == list(signature.items()), name
