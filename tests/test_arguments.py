from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Annotated, Literal

import pytest
from pydantic import Field

from detkds.arguments import Count, NonNegative, OddCount, Positive, piece


@piece
class Piece:
    axis: Literal["HW", "C"] = "C"
    shared: bool = True
    n: Count = 2
    tau: Positive = 0.5
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    factor: NonNegative = 0
    size: OddCount = 1
    label: str = ""


def test_accepts_what_the_types_say() -> None:
    built = Piece("HW", False, 1, 3, 0, 0, 3, label="anything")
    assert replace(built, n=5) == Piece("HW", False, 5, 3.0, 0.0, 0.0, 3, "anything")
    with pytest.raises(FrozenInstanceError):
        built.n = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("axis", "W", "one of HW, C"),
        ("axis", 1, "one of HW, C"),
        ("shared", 1, "true or false"),
        ("shared", "false", "true or false"),
        ("n", 0, "a whole number >= 1"),
        ("n", 2.0, "a whole number >= 1"),
        ("n", True, "a whole number >= 1"),
        ("tau", 0, "a finite number > 0"),
        ("tau", math.inf, "a finite number > 0"),
        ("tau", math.nan, "a finite number > 0"),
        ("tau", "x", "a finite number > 0"),
        ("tau", True, "a finite number > 0"),
        ("ratio", 1.0, "a finite number >= 0 and < 1"),
        ("factor", -0.1, "a finite number >= 0"),
        ("size", 2, "an odd number"),
        ("size", -1, "a whole number >= 1"),
        ("label", 3, "text"),
    ],
)
def test_refuses(field: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        Piece(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{field}: expected {expected}, got {value!r}"


def test_names_every_fault() -> None:
    with pytest.raises(ValueError, match=r"^axis: .*, got 'W'; n: .*, got 0; tau: .*, got -1$"):
        Piece("W", True, 0, -1)  # type: ignore[arg-type]


def test_an_argument_that_is_missing_or_unknown_is_named() -> None:
    @piece
    class Needy:
        n: Count

    with pytest.raises(ValueError, match=r"^n: field required$"):
        Needy()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"^m: unexpected keyword argument, got 1$"):
        Needy(1, m=1)  # type: ignore[call-arg]
