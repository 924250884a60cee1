"""Candidates of a search as tasks, and weights as ratios that become the weights they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.policy import Policy, Term
from detkds.policy_search.result import HalvingGroup, State
from detkds.runs.candidates import ProxyEvaluator, relative_policies
from detkds.runs.plan import SEARCH, Plan, make_plan
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import Trainer

A, B, C = (Policy([Term("global", (), "l2", weight)]) for weight in (1.0, 2.0, 3.0))


@pytest.fixture
def plan(tiny_run: dict[str, Any]) -> Plan:
    return make_plan(parse_config(tiny_run))


class Scheduler:
    """Completes everything with AP 25."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def run(self, tasks: Sequence[Task]) -> list[TaskResult]:
        self.tasks = list(tasks)
        return [TaskResult(State.COMPLETE, {"ap": 0.25, "ap50": 0.5}) for _ in tasks]


def asked(plan: Plan, policies: Sequence[Policy], peers: Sequence[HalvingGroup] = (), **attributes: Any) -> list[Task]:
    scheduler = Scheduler()
    evaluator = ProxyEvaluator(plan, scheduler)  # type: ignore[arg-type]
    vars(evaluator).update(attributes)
    assert [result.ap for result in evaluator.evaluate(policies, peers)] == [25] * len(policies)
    return scheduler.tasks


def test_candidates_share_the_seed_of_the_search_and_are_screened(tiny_run: dict[str, Any]) -> None:
    search = {**tiny_run["search"], "seed": 7, "filter": False}
    plan = make_plan(parse_config({**tiny_run, "search": search}))
    tasks = asked(plan, [A, B])
    assert tasks == [Task(SEARCH, policy, 7, calibration_seed=7, label=str(policy)) for policy in (A, B)]
    search["filter"] = True
    assert all(task.screened for task in asked(make_plan(parse_config({**tiny_run, "search": search})), [A]))


def test_without_halving_no_task_has_a_group(plan: Plan) -> None:
    assert [task.group for task in asked(plan, [A, B], [HalvingGroup("a"), HalvingGroup("b")])] == [None, None]


def test_with_halving_a_task_knows_its_whole_group(tiny_run: dict[str, Any]) -> None:
    proxy = {**tiny_run["proxy"], "epochs": 2, "halving": {"rungs": [1]}}
    plan = make_plan(parse_config({**tiny_run, "proxy": proxy}))
    peers = [HalvingGroup("x", {"k": (1.0,)}), HalvingGroup("y"), HalvingGroup("x", {"k": (1.0,)})]
    tasks = asked(plan, [B, C, A], peers)
    assert [task.group for task in tasks] == peers
    assert [task.members for task in tasks] == [(A.key, B.key), (C.key,), (A.key, B.key)]
    assert {task.members for task in asked(plan, [A, B])} == {(A.key, B.key)}, "without groups all are one"


def test_labels_serve_the_call_they_were_made_for(plan: Plan) -> None:
    assert [task.label for task in asked(plan, [A, B], labels=["global/0", "global/1"])] == ["global/0", "global/1"]
    assert [task.label for task in asked(plan, [A], labels=["global/0", "global/1"])] == [str(A)]


# ----------------------------------------------------------------------------------------------- relative weights


def calibrated(plan: Plan, policy: Policy) -> Policy:
    """The policy as a comparison on the search's images would train it."""
    task = Task(SEARCH, policy, 0, calibration_seed=plan.config.search.seed)
    trainer = Trainer(plan.setups, calibration_batches=plan.config.proxy.calibration_batches)
    screened = trainer._screened(task, [task])
    assert isinstance(screened, Policy)
    return screened


def test_there_and_back(plan: Plan) -> None:
    policy = Policy([Term("global", (), "l2", 3.0), Term("logits", (), "l1", 0.5)], name="mine")
    (relative,) = relative_policies(plan, [policy])
    assert [term.weighting for term in relative] == ["gradient", "gradient"]
    back = calibrated(plan, relative)
    assert back.name == "mine"
    assert [term.weighting for term in back] == ["absolute", "absolute"]
    assert [term.weight for term in back] == pytest.approx([3.0, 0.5])


def test_a_doubled_weight_is_a_doubled_ratio(plan: Plan) -> None:
    one, two = relative_policies(plan, [Policy([Term("fgbg", (), "l2", weight)]) for weight in (1.0, 2.0)])
    assert two.terms[0].weight == pytest.approx(2 * one.terms[0].weight)
    assert one.terms[0].weight > 0


def test_what_is_right_already_stays_as_it_is(plan: Plan) -> None:
    absolute, relative = Policy([Term("global", (), "l2", 3.0)]), Policy([Term("global", (), "l2", 3.0, "gradient")])
    assert calibrated(plan, absolute) is absolute
    assert relative_policies(plan, [relative, Policy()]) == [relative, Policy()]
