"""Checks of the arguments of a piece against the types of its fields."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_arguments(piece: Any) -> None:
    """Check every field of a dataclass against its annotation; called from ``__post_init__``.

    A ``Literal`` field takes one of its choices, ``bool`` true or false, ``int`` a whole number >= 1 and
    ``float`` a finite number > 0. Fields of other types are left to the piece.

    Raises:
        ValueError: names every argument at fault, what was expected and what came.
    """
    hints = _type_hints(type(piece))
    faults = []
    for field in dataclasses.fields(piece):
        value = getattr(piece, field.name)
        expected = _refusal(hints[field.name], value)
        if expected is not None:
            faults.append(f"{field.name}: expected {expected}, got {value!r}")
    if faults:
        raise ValueError("; ".join(faults))


@lru_cache
def _type_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _refusal(annotation: Any, value: object) -> str | None:
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        return None if value in choices else f"one of {', '.join(map(str, choices))}"
    if annotation is bool:
        return None if isinstance(value, bool) else "true or false"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return None if number and isinstance(value, int) and value >= 1 else "a whole number >= 1"
    if annotation is float:
        return None if number and math.isfinite(value) and value > 0 else "a finite number > 0"  # type: ignore[arg-type]
    return None
