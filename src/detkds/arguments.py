"""The arguments of a piece, checked against the types and bounds of its fields when it is built."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

Piece = TypeVar("Piece")


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("an odd number")
    return value


Count = Annotated[int, Field(ge=1)]
OddCount = Annotated[Count, AfterValidator(_odd)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]

_TYPES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass_transform(frozen_default=True)
def piece(cls: type[Piece]) -> type[Piece]:
    """A frozen dataclass whose arguments are checked: no text for a number, no bool for an int, nothing non-finite.

    Building one raises a ``ValueError`` that names every argument at fault, what was expected and what came.
    """
    checked: Any = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))(cls)
    build = checked.__init__

    @functools.wraps(build)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            build(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError("; ".join(argument_faults(error, checked.__pydantic_fields__))) from None

    checked.__init__ = init
    return checked


def argument_faults(error: ValidationError, fields: Mapping[str, FieldInfo]) -> list[str]:
    """One line for every fault of an error: the argument, what was expected and what came.

    Args:
        fields: of the class whose arguments are at fault, by name and in order.
    """
    faults = []
    for fault in error.errors():
        argument, *path = fault["loc"] or ("",)
        name = list(fields)[argument] if isinstance(argument, int) and argument < len(fields) else str(argument)
        where = ".".join(map(str, (name, *path)))
        if fault["type"] == "value_error":
            expected = f"expected {fault['ctx']['error']}"
        elif name in fields and not path and fault["type"] != "missing":
            expected = f"expected {_expected(fields[name])}"
        else:
            expected = fault["msg"][:1].lower() + fault["msg"][1:]
        faults.append(f"{where}: {expected}" + ("" if fault["type"] == "missing" else f", got {fault['input']!r}"))
    return faults


def _expected(field: FieldInfo) -> str:
    """What a field takes, such as ``a finite number > 0 and < 1``."""
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(field.annotation)))}"
    bounds = [
        f"{sign} {getattr(bound, key):g}"
        for bound in field.metadata
        for key, sign in _BOUNDS.items()
        if getattr(bound, key, None) is not None
    ]
    kind = _TYPES.get(field.annotation, str(field.annotation))  # type: ignore[arg-type]
    return f"{kind} {' and '.join(bounds)}".strip()
