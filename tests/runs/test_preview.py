"""What a run is going to do and cost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.policy_search.space import parse_spaces
from detkds.runs.estimate import Speed, estimate, estimate_training
from detkds.runs.plan import make_plan
from detkds.runs.preview import combinations, preview

SPACE = """
weights: {absolute: [1, 2]}
knowledge:
  global: {distance: [l1, l2]}
  logits: {distance: [l1]}
"""


def test_combinations_are_counted() -> None:
    """Weights 0, 1, 2 of two terms but not none: 3 x 3 - 1."""
    spaces = parse_spaces(SPACE)
    assert combinations(spaces) == 8
    assert combinations({"global": spaces["global"]}) == 0


def test_a_preview_is_plain_data(tiny_run: dict[str, Any]) -> None:
    tiny_run["final"] = {**tiny_run["final"], "top": 2}
    data = json.loads(json.dumps(preview(make_plan(parse_config(tiny_run)))))
    assert data["comparison"]["policies"][-1] == "searched (best 2)"
    assert data["comparison"]["trainings"] == 10
    assert data["pair"]["teacher"]["weights"] == "trained first, 1 epochs"


def test_costs_add_up_as_by_hand(tiny_run: dict[str, Any]) -> None:
    """Minutes, with all parts 60 s but predictions 0.

    Teacher: 2 steps of data + step = 4. Search: proxy 4 draws in 1 batch = 1 step; 5 single candidates, each step +
    one term = 2, and data + teacher forward = 2 shared by 5; 1 combination: step + 5 terms + 2 shared = 8: 10 + 2 + 8.
    Confirmation: 1 candidate, 1 seed, 2 steps of step + 5 terms = 12, and 2 steps x 2 shared = 4.
    Comparison, 1 seed: 2 steps x (4 students + (1 + 5) terms) + 2 steps x 2 shared = 24.
    """
    tiny_run["final"] = {"seeds": [0], "policies": ["pkd"]}
    plan = make_plan(parse_config(tiny_run))
    speed = Speed(60, 60, 60, 60, 60, 0, 0)
    expected = {"teacher": 4, "search": 20, "confirmation": 16, "comparison": 24, "total": 64}
    assert estimate(plan, speed) == pytest.approx(expected)


def test_an_undivided_search_costs_as_many_trainings_one_after_the_other(tiny_run: dict[str, Any]) -> None:
    """Minutes, with all parts 60 s but predictions 0: 6 candidates, each step + 5 terms + 2 shared by nobody."""
    tiny_run["search"] = {**tiny_run["search"], "method": "joint", "filter": False}
    plan = make_plan(parse_config(tiny_run))
    assert estimate(plan, Speed(60, 60, 60, 60, 60, 0, 0))["search"] == pytest.approx(6 * 8)
    found = preview(plan)["search"]
    assert found["trainings"] == {"policies": 0, "single": 0, "combination": 0, "joint": 6, "total": 6}
    assert found["joint_policies"] > 1e12 and not found["filter"]


def test_halving_costs_the_steps_that_are_expected(tiny_run: dict[str, Any]) -> None:
    """Minutes, with student steps and predictions of 60 s. A kind of 6 candidates of 1 step in each of 4 epochs.

    Rungs after 1 and 3, one of two goes on: 1 + 1/2 + 1/2 + 1/4 = 9/4 epochs, measured 1 + 1/2 + 1/4 times on 8 images.
    """
    tiny_run["proxy"] = {**tiny_run["proxy"], "epochs": 4, "halving": {"rungs": [1, 3], "eta": 2}}
    tiny_run["search"] = {**tiny_run["search"], "knowledge": ["global"], "single_budget": 6, "race": []}
    plan = make_plan(parse_config(tiny_run))
    assert estimate(plan, Speed(0, 60, 0, 0, 0, 60, 0))["search"] == pytest.approx(6 * (9 / 4 + 8 * 7 / 4))
    # the teacher and the images are there for 4 epochs of 6 populations: iterations of one study follow each other
    assert estimate(plan, Speed(60, 0, 0, 60, 0, 0, 0))["search"] == pytest.approx(6 * 4 * 2)
    assert estimate(plan, Speed(60, 0, 0, 60, 0, 0, 0, 15))["search"] == pytest.approx(6 * 4 * 1.25)
    assert preview(plan)["search"]["halving"] == {"rungs": (1, 3), "eta": 2, "brackets": 1}


def test_one_training_is_timed(tiny_run: dict[str, Any]) -> None:
    plan = make_plan(parse_config(tiny_run))
    stages = estimate_training(plan, "student", plan.policies["pkd"])
    assert set(stages) == {"teacher", "student", "total"}
    assert stages["total"] == pytest.approx(stages["teacher"] + stages["student"])
    assert set(estimate_training(plan, "teacher")) == {"teacher", "total"}
    assert set(estimate_training(plan, "student")) == {"student", "total"}
