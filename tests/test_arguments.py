from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest

from detkds.arguments import check_arguments


@dataclass(frozen=True)
class Piece:
    axis: Literal["HW", "C"] = "C"
    shared: bool = True
    n: int = 2
    tau: float = 0.5
    label: str = ""

    def __post_init__(self) -> None:
        check_arguments(self)


def test_accepts_what_the_types_say() -> None:
    Piece("HW", False, 1, 3, label="anything")


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
    ],
)
def test_refuses(field: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        Piece(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{field}: expected {expected}, got {value!r}"


def test_names_every_fault() -> None:
    with pytest.raises(ValueError, match=r"^axis: .*; n: .*; tau: .*"):
        Piece("W", True, 0, -1)  # type: ignore[arg-type]
