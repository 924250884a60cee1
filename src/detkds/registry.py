"""One registry class for every family of pieces: one file and one decorator add a piece.

A registered piece is a frozen dataclass; its fields are the arguments of its expression, so that
``Scale(2)`` is written ``scale(2)`` in a policy and ``Normalize("C", mode="l2")`` is ``norm(C, mode=l2)``.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from detkds.errors import UserError, unknown_name

T = TypeVar("T")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_EXPRESSION = re.compile(r"^\s*(?P<name>[A-Za-z_][\w/.-]*)\s*(?:\((?P<arguments>.*)\))?\s*$", re.DOTALL)


class Registry(Generic[T]):
    """Names and what they build.

    The modules of ``package`` are imported at the first look-up, so there is no second list to edit and
    ``import detkds`` stays light. A name registered twice raises ``ValueError``.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Callable[..., T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """Return a decorator that files a class or builder under ``name``."""

        def decorate(target: Decorated) -> Decorated:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._entries[name]} and {target}")
            self._entries[name] = target
            piece: Any = target
            if inspect.isclass(piece):
                setattr(piece, "name", name)  # noqa: B010 - a class has no such attribute before
            return target

        return decorate

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __getitem__(self, name: str) -> Callable[..., T]:
        self._load()
        if name not in self._entries:
            raise UserError(unknown_name(self.kind, name, self._entries))
        return self._entries[name]

    def summary(self, name: str) -> str:
        """The first line of the piece's docstring."""
        return (inspect.getdoc(self[name]) or "").partition("\n")[0]

    def build(self, expression: str) -> T:
        """Build a piece from an expression such as ``satt(power=1)``.

        Raises:
            UserError: the name is unknown, an argument is missing, unexpected or refused by the piece.
        """
        name, args, kwargs = parse_expression(expression)
        target = self[name]
        try:
            return target(*args, **kwargs)
        except (TypeError, ValueError) as error:
            fault = _misfit(target, args, kwargs) or error
            raise UserError(f"{self.kind} {expression!r}: {fault}") from None

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            package = importlib.import_module(self.package)
            for module in sorted(info.name for info in pkgutil.walk_packages(package.__path__, f"{self.package}.")):
                importlib.import_module(module)
        except BaseException:
            self._loaded = False  # so that the next look-up meets the same error, not an "unknown name"
            raise


def _misfit(target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Which argument is missing or unexpected; None where they fit."""
    signature = inspect.signature(target)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"{error}; its arguments are ({', '.join(map(str, signature.parameters.values()))})"
    return None


def parse_expression(text: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Split ``name(a, b, key=value)`` into its name, positional and keyword arguments.

    >>> parse_expression("norm(C, mode=l2)")
    ('norm', ('C',), {'mode': 'l2'})
    """
    match = _EXPRESSION.match(text) if isinstance(text, str) else None
    if match is None:
        raise UserError(f"expected an expression such as 'scale(2)' or 'norm(C, mode=l2)', got {text!r}")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in (match["arguments"] or "").split(","))):
        key, equals, value = part.partition("=")
        if equals and key.strip() in kwargs:
            raise UserError(f"{text!r}: argument {key.strip()!r} is given twice")
        if equals:
            kwargs[key.strip()] = _literal(value.strip())
        elif kwargs:
            raise UserError(f"{text!r}: positional argument {part!r} after a keyword argument")
        else:
            args.append(_literal(part))
    return match["name"], tuple(args), kwargs


def expression(piece: Any) -> str:
    """Write a piece the way a policy names it; the inverse of :meth:`Registry.build`.

    Arguments without a default are written first and bare, others only where they differ from their default.
    """
    required, optional = [], []
    for field in dataclasses.fields(piece):
        value = getattr(piece, field.name)
        if field.default is dataclasses.MISSING:
            required.append(_written(value))
        elif value != field.default:
            optional.append(f"{field.name}={_written(value)}")
    arguments = ", ".join(required + optional)
    return f"{piece.name}({arguments})" if arguments else str(piece.name)


def _literal(text: str) -> Any:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _written(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


KNOWLEDGE: Registry[Any] = Registry("knowledge", "detkds.knowledge")
TRANSFORMS: Registry[Any] = Registry("transform", "detkds.transforms")
DISTANCES: Registry[Any] = Registry("distance", "detkds.distances")
ADAPTERS: Registry[Any] = Registry("adapter", "detkds.adapters")
SCHEDULES: Registry[Any] = Registry("schedule", "detkds.schedules")
DETECTORS: Registry[Any] = Registry("detector", "detkds.detectors")
SAMPLERS: Registry[Any] = Registry("sampler", "detkds.policy_search.samplers")
