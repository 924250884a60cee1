"""Weights turned into ratios and back are the weights they were."""

from __future__ import annotations

from typing import Any

import pytest
from detkds.runs.weights import absolute_policies, relative_policies

from detkds.config_file import parse_config
from detkds.policy import Policy, Term
from detkds.runs.plan import Plan, make_plan
from detkds.training.population import Setting


@pytest.fixture
def plan(tiny_run: dict[str, Any]) -> Plan:
    """One seed for search and comparison, so that both calibrate on the same start."""
    tiny_run["final"] = {**tiny_run["final"], "seeds": [0]}
    return make_plan(parse_config(tiny_run))


@pytest.fixture
def setting(plan: Plan) -> Setting:
    return plan.setting(plan.proxy_data, plan.validation_data, plan.proxy_config)


def test_there_and_back(plan: Plan, setting: Setting) -> None:
    policy = Policy([Term("global", (), "l2", 3.0), Term("logits", (), "l1", 0.5)], name="mine")
    (relative,) = relative_policies(plan, setting, [policy])
    assert [term.weighting for term in relative] == ["gradient", "gradient"]
    (back,) = absolute_policies(plan, setting, [relative])
    assert back.name == "mine"
    assert [term.weighting for term in back] == ["absolute", "absolute"]
    assert [term.weight for term in back] == pytest.approx([3.0, 0.5])


def test_a_doubled_weight_is_a_doubled_ratio(plan: Plan, setting: Setting) -> None:
    one, two = relative_policies(plan, setting, [Policy([Term("fgbg", (), "l2", w)]) for w in (1.0, 2.0)])
    assert two.terms[0].weight == pytest.approx(2 * one.terms[0].weight)
    assert one.terms[0].weight > 0


def test_what_is_right_already_stays_as_it_is(plan: Plan, setting: Setting) -> None:
    absolute, relative = Policy([Term("global", (), "l2", 3.0)]), Policy([Term("global", (), "l2", 3.0, "gradient")])
    assert absolute_policies(plan, setting, [absolute, Policy()]) == [absolute, Policy()]
    assert relative_policies(plan, setting, [relative]) == [relative]
