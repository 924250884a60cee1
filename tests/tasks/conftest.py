"""A plan whose candidates train in a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.runs.plan import Plan, make_plan


@pytest.fixture
def plan_of(tiny_run: dict[str, Any]) -> Callable[..., Plan]:
    """``plan_of(proxy={...}, train={...}, ...)``: the tiny run with these changes, its teacher untrained and frozen."""

    def build(**changes: Any) -> Plan:
        merged = {
            name: {**tiny_run[name], **value} if isinstance(value, dict) else value for name, value in changes.items()
        }
        plan = make_plan(parse_config({**tiny_run, **merged}))
        plan.teacher.eval().requires_grad_(False)
        return plan

    return build
