"""Checks of constructor options: every fault is collected, so that a user mends them all at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from detkds.errors import Faults, unknown_name

Builder = TypeVar("Builder", bound=Callable[..., Any])


def with_options_of(base: Callable[..., Any]) -> Callable[[Builder], Builder]:
    """For a function that hands its ``**options`` on to ``base``: name base's keywords among its own arguments."""

    def decorate(function: Builder) -> Builder:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        names = {one.name for one in own}
        handed_on = [
            one
            for one in inspect.signature(base).parameters.values()
            if one.kind is one.KEYWORD_ONLY and one.name not in names
        ]
        announced: Any = function
        announced.__signature__ = signature.replace(parameters=[*own, *handed_on])
        return function

    return decorate


def check_whole(faults: Faults, minimum: int = 1, **values: Any) -> None:
    """Each value must be a whole number of at least ``minimum``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            faults.add(f"{name}: expected a whole number >= {minimum}, got {value!r}")


def check_fraction(faults: Faults, **values: Any) -> None:
    """Each value must be a number from 0 to 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            faults.add(f"{name}: expected a number from 0 to 1, got {value!r}")


def check_numbers(faults: Faults, **values: Any) -> None:
    """Each value must be a list of one or more finite numbers above 0."""
    for name, value in values.items():
        if not (isinstance(value, Sequence) and not isinstance(value, str) and value and all(map(_is_positive, value))):
            faults.add(f"{name}: expected a list of one or more finite numbers > 0, got {value!r}")


def check_choice(faults: Faults, known: Iterable[str], **values: Any) -> None:
    """Each value must be one of the known words."""
    known = tuple(known)
    for name, value in values.items():
        if value not in known:
            faults.add(unknown_name(name, value, known))


def check_class_names(faults: Faults, class_names: Any) -> None:
    """Class names must be a list of one or more different non-empty strings."""
    if isinstance(class_names, str) or not isinstance(class_names, Sequence) or not class_names:
        faults.add(f"class_names: expected a list of one or more names, got {class_names!r}")
        return
    wrong = [name for name in class_names if not isinstance(name, str) or not name]
    twice = sorted({name for name in class_names if isinstance(name, str) and list(class_names).count(name) > 1})
    if wrong:
        faults.add(f"class_names: expected non-empty strings, got {wrong!r}")
    if twice:
        faults.add(f"class_names: expected different names, got {', '.join(twice)} more than once")


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
