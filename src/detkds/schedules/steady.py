"""The schedule of a term that names none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from detkds.registry import SCHEDULES


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant:
    """The whole weight at every step."""

    name: ClassVar[str]
    needs_total: ClassVar[bool] = False

    def __call__(self, step: int, total: int | None) -> float:
        """1."""
        return 1.0
