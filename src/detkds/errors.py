"""The errors a user can meet: every fault at once, each saying what was expected, what came and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can fix.

    ``faults`` holds one line per fault; the command line prints them all and exits with code 2.
    """

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type[UserError], tuple[object, ...]]:
        return type(self), (self.faults,)  # keeps the faults apart on the way from another process


class PolicyError(UserError):
    """A policy, term or expression that cannot be built."""


class DataError(UserError):
    """Annotations or images that cannot be used."""


class ConfigError(UserError):
    """A run configuration that cannot be used."""


class PairError(UserError):
    """A teacher and a student between which a policy cannot be applied."""


class WeightsError(UserError):
    """A checkpoint that cannot be loaded into the model it was named for."""


class Faults:
    """Collects faults so that one error can name them all.

    >>> faults = Faults("policy.yaml")
    >>> faults.add("terms[0]: weight: expected a finite number >= 0, got -1")
    >>> faults.raise_as(PolicyError)
    Traceback (most recent call last):
    detkds.errors.PolicyError: policy.yaml: terms[0]: weight: expected a finite number >= 0, got -1
    """

    def __init__(self, where: str = "") -> None:
        self.where = where
        self.lines: list[str] = []

    def add(self, fault: str | UserError) -> None:
        """Record one fault, or all faults of an error that was caught."""
        prefix = f"{self.where}: " if self.where else ""
        for line in fault.faults if isinstance(fault, UserError) else (fault,):
            self.lines.append(prefix + line)

    def __bool__(self) -> bool:
        return bool(self.lines)

    def raise_as(self, error: type[UserError]) -> None:
        """Raise ``error`` with every recorded fault; return quietly where there is none."""
        if self.lines:
            raise error(self.lines)


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """One line for a name nobody knows, with the nearest known name and the whole list."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {str(name)!r}{hint} Known: {', '.join(known) or 'none'}"
