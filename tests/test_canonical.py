"""One canonical form is one loss, up to its factor: by value over the whole feature space, and for the responses."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch

from detkds.canonical import canonical_steps
from detkds.protocols import Transform
from detkds.registry import DISTANCES, KNOWLEDGE, TRANSFORMS, expression
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

RESPONSES = space(
    ("", "norm(C)", "minmax", "softmax"),
    ("", "reshape(K)"),
    distances=(*ELEMENTWISE, "kl(mean=true)", "cosine", "pearson", "bce", "bkd"),
)
RESPONSES = [(steps, distance) for steps, distance in RESPONSES if distance[0] != "b" or "softmax" not in steps]


@cache
def built(text: str, distance: bool = False) -> Any:
    return (DISTANCES if distance else TRANSFORMS).build(text)


def form(knowledge: str, transforms: tuple[str, ...], distance: str) -> tuple[tuple[str, ...], str, float]:
    """The canonical steps of expressions, as expressions."""
    steps = canonical_steps(KNOWLEDGE.build(knowledge), list(map(built, transforms)), built(distance, True))
    return tuple(map(expression, steps.transforms)), expression(steps.distance), steps.factor


# Arguments under which a rule would be wrong; what they do follows the number of rows, which reshaping changes.
UNPLAIN = space(
    ("", "satt(source=teacher)", "catt(source=teacher)", "focal", "mask"),
    ("", "scale(1)", "local(2)"),
    ("", "norm(C)", "norm(HW)", "minmax"),
    ("", "reshape(C)"),
    distances=("l1", "l1(per=position)", "l2(per=image)", "smooth_l1(per=image)", "pearson"),
)


def losses(
    points: list[Point],
    shape: tuple[int, ...],
    kind: Kind,
    weighted: bool,
    scale: float = 1,
    divisor: float | None = None,
) -> list[float]:
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
            draw = torch.Generator().manual_seed(5)
            pair = Pair(student, teacher, kind=kind, weight=weight, divisor=divisor, generator=draw)
            for text in transforms:
                step = built(text)
                pair = dataclasses.replace(step(pair), kind=step.kinds[pair.kind])
            pairs[transforms] = pair
        values.append(built(distance, True)(pairs[transforms]).item())
    return values


def groups(points: list[Point], knowledge: str) -> dict[Point, list[tuple[int, float]]]:
    """The index and the factor of every point, by its form."""
    found: dict[Point, list[tuple[int, float]]] = defaultdict(list)
    for index, point in enumerate(points):
        transforms, distance, factor = form(knowledge, *point)
        found[transforms, distance].append((index, factor))
    return found


def agree(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-4 * max(abs(one), abs(other))


def distinct(columns: list[list[float]]) -> int:
    """How many points, as ratios to their first column, differ from all others by more than 1e-4 of the larger one."""
    kept: list[tuple[float, ...]] = []
    for row in zip(*columns, strict=True):
        row = tuple(value / row[0] for value in row)
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
            ("unplain", UNPLAIN, "feature", MAPS[1:5]),
            ("logits", LOGITS, "logits", ROWS),
        )
        for case in cases
    ],
)
def test_equal_forms_are_equal_losses(
    points: list[Point], kind: Kind, knowledge: str, shape: tuple[int, ...], weighted: bool
) -> None:
    values = losses(points, shape, kind, weighted)
    for canonical, members in groups(points, knowledge).items():
        (expected,) = losses([canonical], shape, kind, weighted)
        for index, factor in members:
            assert values[index] == pytest.approx(factor * expected, rel=1e-4, abs=1e-9), (points[index], canonical)


@pytest.mark.parametrize(
    ("knowledge", "divisor"), [("logits", None), ("logits(weights=confidence)", None), ("logits(per=positive)", 7.0)]
)
@pytest.mark.parametrize(("shape", "weighted"), [case.values[1:] for case in ROWS])
def test_equal_forms_of_responses_are_equal_losses(
    shape: tuple[int, ...], weighted: bool, knowledge: str, divisor: float | None
) -> None:
    points = RESPONSES + LOGITS
    values = losses(points, shape, "logits", weighted, divisor=divisor)
    for canonical, members in groups(points, knowledge).items():
        (expected,) = losses([canonical], shape, "logits", weighted, divisor=divisor)
        for index, factor in members:
            assert values[index] == pytest.approx(factor * expected, rel=1e-4, abs=1e-9), (points[index], canonical)


@pytest.mark.parametrize("points", [RAW, BEYOND, UNPLAIN, LOGITS], ids=["raw", "beyond", "unplain", "logits"])
def test_canonical_forms_are_their_own(points: list[Point]) -> None:
    for point in points:
        transforms, distance, _ = form("global", *point)
        assert form("global", transforms, distance) == (transforms, distance, 1.0)


def test_counts_of_the_feature_space() -> None:
    """980 spellings are 700 policies; 487 of them differ by more than a constant, and no two of these always agree."""
    assert len(RAW) == 980
    kept = {(tuple(step for step in steps if not built(step).neutral), distance) for steps, distance in RAW}
    assert len(kept) == 4 * 5 * 5 * 7 == 700
    forms = list(groups(RAW, "global"))
    assert len(forms) == 487
    shapes = [(4, 16, 16, 16), (3, 9, 17, 14), (2, 8, 3, 3), (4, 2, 8, 8)]
    assert distinct([losses(forms, shape, "feature", False) for shape in shapes]) == 487


def test_counts_of_the_logits_space() -> None:
    """56 spellings; reshaping changes nothing for three distances, scale and shift nothing for correlations.

    Three more are multiples: ``l2`` of standardised rows, and ``smooth_l1`` of numbers between 0 and 1, of which there
    are two.

    ``softmax`` with ``kl`` stays apart from ``kl`` alone: the two differ where a probability falls below 1e-8.
    """
    forms = list(groups(LOGITS, "logits"))
    assert len(forms) == 56 - 2 * 3 - 2 - 2 - 1 - 2
    cases = itertools.product([(4, 5, 2, 6, 7), (3, 4, 1, 5, 5)], (1, 20))
    assert distinct([losses(forms, shape, "logits", False, scale) for shape, scale in cases]) == len(forms)


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
        (("scale(1)", "norm(C)", "reshape(C)"), "l2(per=image)", (("norm(C)", "reshape(C)"), "l2(per=image)")),
        (("minmax",), "smooth_l1(1, position)", (("minmax",), "smooth_l1(per=position)")),
        (("local(2)",), "l1(per=element)", ((), "l1")),
        (("catt(source=teacher)", "norm(HW)"), "l1", (("catt(source=teacher)", "norm(HW)"), "l1")),
        (("focal", "scale(1)"), "pearson", (("focal",), "pearson")),
    ],
)
def test_rules(transforms: tuple[str, ...], distance: str, expected: Point) -> None:
    assert form("global", transforms, distance) == (*expected, 1.0)


@pytest.mark.parametrize(
    ("transforms", "distance", "expected"),
    [
        (("norm(C)",), "l2", ((), "pearson", 2.0)),
        (("catt", "scale(2)", "norm(C)"), "l2", (("catt", "scale(2)"), "pearson", 2.0)),
        (("satt", "local(2)", "norm(C)"), "l2", ((), "pearson", 2.0)),
        (("norm(C, mode=l2)",), "l2", (("norm(C, mode=l2)",), "l2", 1.0)),
        (("norm(HW)",), "l2", (("norm(HW)",), "l2", 1.0)),
        (("minmax",), "smooth_l1", (("minmax",), "l2", 0.5)),
        (("minmax(batch)",), "smooth_l1(beta=4)", (("minmax(scope=batch)",), "l2", 0.125)),
        (("softmax(C)",), "smooth_l1", (("softmax",), "l2", 0.5)),
        (("mask", "scale(2)", "norm(C)"), "l2", (("mask", "scale(2)", "norm(C)"), "l2", 1.0)),
        (("minmax",), "smooth_l1(beta=0.5)", (("minmax",), "smooth_l1(beta=0.5)", 1.0)),
    ],
)
def test_rules_up_to_a_factor(transforms: tuple[str, ...], distance: str, expected: tuple[Any, ...]) -> None:
    assert form("global", transforms, distance) == expected


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
    assert form("global", (one,), "l1") == form("global", (other,), "l1")


@dataclasses.dataclass(frozen=True)
class Foreign(Transform):
    """A piece that no rule knows, whether transform, distance or knowledge."""

    name: str  # type: ignore[misc]


def test_unknown_pieces_pass_through_and_stop_the_rules() -> None:
    sharpen, satt, norm, l1 = Foreign("sharpen"), built("satt"), built("norm(C)"), built("l1", True)
    whole = KNOWLEDGE.build("global")
    assert canonical_steps(whole, (satt, built("scale(1)"), sharpen, norm), l1) == ((satt, sharpen, norm), l1, 1.0)
    distance: Any = Foreign("my_distance")
    assert canonical_steps(whole, (satt, norm), distance) == ((satt, norm), distance, 1.0)
    assert canonical_steps(whole, (norm, satt), l1) == ((norm, satt), l1, 1.0)


def test_foreign_knowledge_may_weigh_channels() -> None:
    mine: Any = Foreign("mine")
    pearson, minmax = built("pearson", True), built("minmax")
    assert canonical_steps(mine, (minmax, built("scale(1)")), pearson) == ((minmax,), pearson, 1.0)
    assert form("fgbg(background=1)", ("minmax",), "pearson") == ((), "pearson", 1.0)


def test_sums_over_rows_and_over_elements_are_not_one_loss() -> None:
    for knowledge in ("logits(per=positive)", "localization(per=batch)"):
        assert form(knowledge, ("norm(C)",), "l2") == (("norm(C)",), "l2", 1.0)
    assert form("logits(weights=confidence)", ("norm(C)",), "l2") == ((), "pearson", 2.0)
