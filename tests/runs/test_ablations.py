"""The method without divide-and-conquer and without the filter, on real trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.errors import ConfigError
from detkds.policy_search.divide_and_conquer import JOINT
from detkds.runs.plan import make_plan
from detkds.runs.search import find_policy, run_search
from detkds.runs.session import open_session


@pytest.fixture
def undivided(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """Two kinds of knowledge, with weights of which some are far over the filter's limit."""
    space = Path(tiny_run["runs"]).parent / "space.yaml"
    space.write_text(
        "weights: {absolute: [1, 1.0e+35]}\n"
        "knowledge:\n"
        "  global: {normalise: [none, norm(N)], distance: [l1, l2]}\n"
        "  logits: {distance: [l1, l2]}\n"
    )
    search = {"method": "joint", "space": str(space), "weighting": "absolute", "knowledge": ["global", "logits"]}
    budgets = {"single_budget": 2, "combination_budget": 3, "population": 2, "race": [2]}
    return {**tiny_run, "search": {**search, **budgets}, "final": {"seeds": [0], "policies": []}}


def test_an_undivided_search_runs_to_its_report_and_is_taken_up_again(undivided: dict[str, Any], heard: Any) -> None:
    finished = run_search(parse_config(undivided), heard)
    assert {record.study for record in finished.outcome.trials} == {JOINT}
    assert finished.summary["search"]["trainings"] == 2 * 2 + 3
    assert finished.summary["search"]["method"] == "joint" and finished.summary["search"]["filter"]
    assert len(finished.summary["confirmation"]) == 2
    assert "all kinds of knowledge in one joint space" in (finished.folder / "report.html").read_text()
    trials = (finished.folder / "trials.jsonl").read_text()
    undivided["search"]["combination_budget"] += 1
    more = run_search(parse_config(undivided), heard)
    assert more.summary["search"]["trainings"] == 8
    longer = [json.loads(line) for line in (more.folder / "trials.jsonl").read_text().splitlines()]
    assert longer[: len(trials.splitlines())] == [json.loads(line) for line in trials.splitlines()]
    for change in ({"method": "divide"}, {"filter": False}):
        other = parse_config({**undivided, "search": {**undivided["search"], **change}})
        with pytest.raises(ConfigError, match=f"search.{next(iter(change))} was"):
            run_search(other, heard)


def test_without_the_filter_what_it_refuses_costs_trainings(undivided: dict[str, Any], heard: Any) -> None:
    found = {}
    for on in (True, False):
        search = {**undivided["search"], "filter": on}
        plan = make_plan(parse_config({**undivided, "name": f"filter {on}", "search": search}))
        plan.teacher.eval().requires_grad_(False)
        with open_session(plan, heard) as session, session.scheduler() as scheduler:
            outcome = find_policy(session, scheduler)
        assert outcome.trained == 7
        found[on] = {str(record.state) for record in outcome.trials if "e+35" in record.key}
    assert found == {True: {"filtered"}, False: {"failed"}}
