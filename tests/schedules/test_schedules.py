"""The factor of a term's weight over a training."""

from __future__ import annotations

import pytest

from detkds.errors import UserError
from detkds.registry import SCHEDULES


@pytest.mark.parametrize(
    ("expression", "total", "factors"),
    [
        ("constant", None, {0: 1, 99: 1}),
        ("warmup(4)", None, {0: 0, 1: 0.25, 3: 0.75, 4: 1, 99: 1}),
        ("warmup(4, linear=false)", None, {0: 0, 3: 0, 4: 1}),
        ("cosine(end=0.2)", 101, {0: 1, 50: 0.6, 100: 0.2, 500: 0.2}),
        ("cosine", 1, {0: 1}),
        ("stop(0.9)", 10, {0: 1, 8: 1, 9: 0}),
    ],
)
def test_factors(expression: str, total: int | None, factors: dict[int, float]) -> None:
    schedule = SCHEDULES.build(expression)
    assert {step: schedule(step, total) for step in factors} == pytest.approx(factors)
    assert schedule.needs_total or schedule(0, None) == factors[0]


@pytest.mark.parametrize("expression", ["warmup(0)", "warmup(2.5)", "cosine(end=0)", "stop(1.5)", "stop(at=0)"])
def test_arguments_that_make_no_sense_are_refused(expression: str) -> None:
    with pytest.raises(UserError, match="expected"):
        SCHEDULES.build(expression)
