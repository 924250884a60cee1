"""What all families of pieces have in common: examples of their arguments, and how they are written."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from detkds.errors import UserError
from detkds.registry import Registry, expression

SHAPES: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "feature": ((2, 5, 6, 7), (3, 4, 1, 2)),
    "logits": ((2, 3, 2, 4, 5), (6, 3)),
    "probability": ((2, 3, 2, 4, 5), (6, 3)),
    "regression": ((2, 4, 2, 3, 5), (6, 4)),
    "sides": ((2, 4, 2, 3, 5), (6, 4)),
    "boxes": ((2, 4, 2, 3, 5), (6, 4)),
}
"""Shapes of tensors of every kind."""


def examples(cls: Any, counts: Sequence[int] = (1,), numbers: Sequence[float] = (1.0,)) -> list[Any]:
    """Pieces of a class with every combination of example arguments.

    Every choice of a ``Literal`` and both of a ``bool``; other fields keep their defaults.

    Args:
        counts, numbers: for whole and other numbers without a default.
    """
    hints = typing.get_type_hints(cls)
    choices: list[Sequence[Any]] = []
    for field in dataclasses.fields(cls):
        if typing.get_origin(hints[field.name]) is typing.Literal:
            choices.append(typing.get_args(hints[field.name]))
        elif hints[field.name] is bool:
            choices.append((True, False))
        elif field.default is not dataclasses.MISSING:
            choices.append((field.default,))
        else:
            choices.append(counts if hints[field.name] is int else numbers)
    return [cls(*arguments) for arguments in itertools.product(*choices)]


def check_spelling(registry: Registry[Any], piece: Any) -> None:
    """It is built from the expression that it is written as, and says what it is in a sentence."""
    again = registry.build(expression(piece))
    assert again == piece and hash(again) == hash(piece), f"{again} is not what {expression(piece)} is written for"
    assert registry.summary(piece.name).endswith("."), f"{piece.name}: the docstring begins with no sentence"


def check_arguments_are_named(registry: Registry[Any], piece: Any) -> None:
    """A wrong argument is refused by its name, with what was expected and what came."""
    for field in dataclasses.fields(piece):
        arguments = {
            other.name: getattr(piece, other.name)
            for other in dataclasses.fields(piece)
            if other.default is dataclasses.MISSING
        } | {field.name: "wrong"}
        written = ", ".join(f"{name}={value}" for name, value in arguments.items())
        try:
            registry.build(f"{piece.name}({written})")
        except UserError as error:
            message = str(error)
        else:
            message = "nothing was refused"
        assert f"{field.name}: expected " in message and "got 'wrong'" in message, f"{piece.name}({written}): {message}"
