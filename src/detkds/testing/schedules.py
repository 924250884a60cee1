"""What every schedule must do."""

from __future__ import annotations

import math

from detkds.registry import SCHEDULES
from detkds.testing.pieces import check_arguments_are_named, check_spelling


def check_schedule(expression: str) -> None:
    """Every check of a registered schedule with these arguments: a share in [0, 1], the same at every call."""
    piece = SCHEDULES.build(expression)
    check_spelling(SCHEDULES, piece)
    check_arguments_are_named(SCHEDULES, piece)
    for total in (1, 2, 10, 1000):
        for step in {0, 1, total // 2, total - 1, total, 10 * total}:
            share = piece(step, total)
            assert isinstance(share, int | float) and math.isfinite(share) and 0 <= share <= 1, (step, total, share)
            assert share == piece(step, total), (step, total)
            if not piece.needs_total:
                assert share == piece(step, None), f"{expression} counts from the end; declare needs_total"
