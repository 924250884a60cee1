"""The schedule of a term that names none."""

from __future__ import annotations

from dataclasses import dataclass

from detkds.protocols import Schedule
from detkds.registry import SCHEDULES


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """The whole weight at every step."""

    def __call__(self, step: int, total: int | None) -> float:
        """1."""
        return 1.0
