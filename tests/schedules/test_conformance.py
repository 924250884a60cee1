"""What every schedule must do; a newly registered one is tested with no further edit."""

from __future__ import annotations

import pytest

from detkds.registry import SCHEDULES, expression
from detkds.testing import check_schedule
from detkds.testing.pieces import examples

EXPRESSIONS = [expression(piece) for name in SCHEDULES for piece in examples(SCHEDULES[name], (1, 3))]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_conforms(expression: str) -> None:
    check_schedule(expression)
