"""The schedule of a term that names none."""

from __future__ import annotations

from detkds.arguments import piece
from detkds.protocols import Schedule
from detkds.registry import SCHEDULES


@SCHEDULES.register("constant")
@piece
class Constant(Schedule):
    """The whole weight at every step."""

    def __call__(self, step: int, total: int | None) -> float:
        """1."""
        return 1.0
