"""The race between search and comparison: who begins, who goes on, and what is expected of each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from detkds import Policy, Term
from detkds.policy_search.divide_and_conquer import SearchOutcome
from detkds.policy_search.result import State, Trial
from detkds.policy_search.whole import PORTFOLIO
from detkds.progress import Progress
from detkds.runs.confirmation import AGREEMENT, NOISE, confirm, entrants, posterior_means
from detkds.tasks.task import TaskResult


def trial(number: int, ap: float, role: str = "child") -> Trial:
    policy = Policy([Term("global", [], "l2", 1.0 + number)], name=f"policy {number}")
    return Trial("policies", number, State.COMPLETE, {}, policy, policy.key, ap=ap, role=role)


def outcome_of(*trials: Trial) -> SearchOutcome:
    ranked = tuple(sorted(trials, key=lambda t: -(t.ap or 0.0)))
    return SearchOutcome(ranked[0], {}, ranked[:1], trials, {})


class Scheduler:
    """Gives each policy the AP of a table, by its label and the seed, and notes what was asked for."""

    def __init__(self, aps: dict[str, list[float | None]]) -> None:
        self.aps, self.progress = aps, Progress()
        self.asked: list[tuple[str, int]] = []

    def run(self, tasks: Any) -> list[TaskResult]:
        self.asked += [(task.label, task.seed) for task in tasks]
        aps = [self.aps[task.label][task.seed - 1] for task in tasks]
        return [
            TaskResult(State.FAILED, reason="lost") if ap is None else TaskResult(State.COMPLETE, {"ap": ap / 100})
            for ap in aps
        ]


def plan_of(race: tuple[int, ...], top: int = 1) -> Any:
    config = SimpleNamespace(search=SimpleNamespace(race=race, seed=0), final=SimpleNamespace(top=top))
    return SimpleNamespace(config=config)


def test_a_third_of_those_that_begin_are_hand_designed() -> None:
    outcome = outcome_of(*(trial(i, 30 - i) for i in range(6)), trial(6, 10.0, PORTFOLIO), trial(7, 9.0, PORTFOLIO))
    assert [t.number for t in entrants(outcome, 3)] == [0, 1, 6]
    assert [t.number for t in entrants(outcome, 4)] == [0, 1, 6, 7]
    assert [t.number for t in entrants(outcome_of(trial(0, 1.0), trial(1, 2.0)), 4)] == [1, 0]


def test_the_plain_student_is_no_hand_designed_policy() -> None:
    plain = Trial("policies", 9, State.COMPLETE, {}, Policy(name="plain"), "plain", ap=1.0, role=PORTFOLIO)
    assert [t.number for t in entrants(outcome_of(trial(0, 30.0), trial(1, 20.0), plain), 2)] == [0, 1]


def test_fewer_go_on_in_each_round_with_a_seed_of_its_own() -> None:
    names = [f"policies/{i}" for i in range(4)]
    scheduler = Scheduler(dict(zip(names, [[30, 30], [20, 0], [36, 34], [10, 0]], strict=True)))
    confirmed = confirm(plan_of((4, 2)), scheduler, outcome_of(*(trial(i, 20.0 - i) for i in range(4))))  # type: ignore[arg-type]
    assert scheduler.asked == [(name, 1) for name in names] + [("policies/2", 2), ("policies/0", 2)]
    assert [racer.record.place for racer in confirmed] == ["policies/2", "policies/0", "policies/1", "policies/3"]
    assert confirmed[0].ap == {1: 36, 2: 34} and confirmed[0].mean == 35


def test_failed_trainings_are_out_and_without_any_the_proxy_decides() -> None:
    trials = [trial(0, 20.0), trial(1, 19.0)]
    half = Scheduler({"policies/0": [None], "policies/1": [25]})
    assert [r.record.number for r in confirm(plan_of((2,)), half, outcome_of(*trials))] == [1]  # type: ignore[arg-type]
    lost = Scheduler({"policies/0": [None], "policies/1": [None]})
    assert [r.record.number for r in confirm(plan_of((2,)), lost, outcome_of(*trials))] == [0]  # type: ignore[arg-type]
    assert not Scheduler({}).asked and confirm(plan_of(()), Scheduler({}), outcome_of(*trials))[0].ap == {}  # type: ignore[arg-type]


def test_posterior_means_by_hand() -> None:
    """Means 30 and 40, one seed: variance 50 - 0.5625; scores of the proxy -+ 1/sqrt 2."""
    noise, variance = NOISE**2, 50 - NOISE**2
    score = 2**-0.5
    rest = variance * (1 - AGREEMENT**2)
    prior = [35 - AGREEMENT * variance**0.5 * score, 35 + AGREEMENT * variance**0.5 * score]
    expected = [(p * noise + m * rest) / (noise + rest) for p, m in zip(prior, [30, 40], strict=True)]
    assert posterior_means([10.0, 20.0], [{1: 30.0}, {1: 40.0}]) == pytest.approx(expected)


def test_the_proxy_breaks_ties_and_counts_less_with_more_seeds() -> None:
    low, high = posterior_means([10.0, 20.0], [{1: 30.0}, {1: 30.0}])
    lower, higher = posterior_means([10.0, 20.0], [{1: 30.0, 2: 30.0}, {1: 30.0, 2: 30.0}])
    assert low < lower < higher < high
    assert posterior_means([5.0], [{1: 7.0, 2: 9.0}]) == [8.0] and posterior_means([], []) == []
