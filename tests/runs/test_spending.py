"""A search's cost in full trainings, and how a cost that was asked for is spent."""

from __future__ import annotations

from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.runs.plan import Plan, make_plan
from detkds.runs.spending import RACE_SHARE, race_of, search_cost, unit_costs, within_budget


def plan_of(run: dict[str, Any], proxy: dict[str, Any] | None = None, **search: Any) -> Plan:
    run["search"] = search
    run["train"] = {**run["train"], "epochs": 12}
    run["proxy"] = {"validation": 0.5, "population": 10, "calibration_batches": 1, **(proxy or {})}
    return make_plan(parse_config(run))


def test_cost_counts_steps(tiny_run: dict[str, Any]) -> None:
    """8 draws a pass everywhere. Of 12 passes 3 are trained by all, 3 by a third and 6 by a ninth of the candidates."""
    plan = plan_of(tiny_run, candidates=12, race=[4, 2])
    candidate = (3 + 3 / 3 + 6 / 9) / 12
    assert unit_costs(plan) == (pytest.approx(candidate), 1.0)
    assert search_cost(plan) == pytest.approx(12 * candidate + 6)
    assert plan.halving is not None and plan.halving.rungs == (3, 6) and plan.proxy_config.epochs == 12


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [({"epochs": 2}, 2), ({"epochs": 5}, 5), ({"epochs": 5, "halving": {"rungs": [1]}}, 5)],
)
def test_a_proxy_of_its_own_costs_its_passes(tiny_run: dict[str, Any], changes: dict[str, Any], epochs: int) -> None:
    plan = plan_of(tiny_run, proxy=changes)
    assert plan.proxy_config.epochs == epochs and plan.proxy_config.draws == 8
    assert (plan.halving is not None) == isinstance(changes.get("halving"), dict)
    assert unit_costs(plan)[0] <= epochs / 12


def test_the_methods_of_the_paper_stop_nothing_by_themselves(tiny_run: dict[str, Any]) -> None:
    plan = plan_of(tiny_run, method="divide")
    assert plan.halving is None and plan.proxy_config.epochs == 2


@pytest.mark.parametrize("cost", ["3x", "6x", "12.5x"])
def test_what_is_asked_for_is_spent_and_not_more(tiny_run: dict[str, Any], cost: str) -> None:
    plan = within_budget(plan_of(tiny_run, budget=cost))
    asked = float(cost[:-1])
    assert asked - 0.4 <= search_cost(plan) <= asked
    assert plan.config.search.race == race_of(int(RACE_SHARE * asked))


def test_without_a_budget_candidates_and_race_stay(tiny_run: dict[str, Any]) -> None:
    plan = plan_of(tiny_run, candidates=3, race=[2])
    assert within_budget(plan) is plan


@pytest.mark.parametrize("trainings", range(1, 40))
def test_a_race_narrows_to_two_and_wastes_little(trainings: int) -> None:
    race = race_of(trainings)
    assert list(race) == sorted(race, reverse=True) and race[-1] == min(2, trainings)
    assert trainings - 1 <= sum(race) <= trainings
