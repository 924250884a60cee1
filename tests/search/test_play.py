"""A search in memory has the trials of a stored one."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from detkds.registry import SAMPLERS
from detkds.search.divide_and_conquer import make_sampler
from detkds.search.play import Measure, Played, best_within, play
from detkds.search.result import Result, State
from detkds.search.settings import SearchSettings
from detkds.search.space import Params
from detkds.search.study import MAX_REFUSED, SearchStudy

SETTINGS = SearchSettings(population=6, parents=2, initial_chunk=4, parallel=2, newcomer="every:2", crossover=0.3)


def measured(params: Params) -> Result:
    """A number that depends on the choice; every seventh is refused, some fail, some are pruned."""
    number = zlib.crc32(repr(sorted(params.items())).encode())
    if number % 7 == 0:
        return Result(State.FILTERED, trained=False)
    if number % 11 == 0:
        return Result(State.FAILED, reason="broken")
    if number % 13 == 0:
        return Result(State.PRUNED, ap=number % 50, rungs=(1.0, number % 50)[: 1 + number % 2])
    return Result(State.COMPLETE, ap=number % 100, metrics={"AP50": number % 3})


def stored(sampler: Any, measure: Measure, budget: int) -> list[Played]:
    """The same through a study, told by records."""
    study = SearchStudy("study", sampler, InMemoryStorage(), budget)
    while candidates := study.gather():
        for candidate in candidates:
            study.tell(candidate, measure(candidate.params))
    return [Played(r.params, r.key, r.state, (0, 0, 0), r.counts) for r in study.records if r.state]


def told(trials: list[Played]) -> list[Any]:
    return [(dict(one.params), one.key, one.state, one.counts) for one in trials]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("sizes", [(4, 5, 3), (3, 2)])
def test_every_sampler_has_the_trials_of_a_study(name: str, sizes: tuple[int, ...], grid: Callable[..., Any]) -> None:
    """The second grid is used up; its six choices are four losses."""
    same = None if len(sizes) == 3 else lambda params: f"{min(params['g0'], 'o1')}{params['g1']}"
    budget = 30

    def sampler() -> Any:
        return make_sampler(name, grid(*sizes, same=same), 3, SETTINGS)

    def measure(params: Params) -> Result:
        return measured(params if same is None else {"key": same(params)})

    found = play(sampler(), measure, budget)
    assert told(found) == told(stored(sampler(), measure, budget))
    if same is None:
        assert sum(one.counts for one in found) == budget
    else:
        assert {one.key for one in found} == {"o0o0", "o0o1", "o1o0", "o1o1"}


def test_a_search_of_which_all_is_refused_is_given_up(grid: Callable[..., Any]) -> None:
    def refused(params: Params) -> Result:
        return Result(State.FILTERED, trained=False)

    sampler = [make_sampler("random", grid(20, 20), 0, SETTINGS) for _ in range(2)]
    found = play(sampler[0], refused, 30)
    assert told(found) == told(stored(sampler[1], refused, 30))
    assert MAX_REFUSED <= len(found) < MAX_REFUSED + SETTINGS.initial_chunk
    assert best_within(found, 30) is None


def test_twins_that_a_sampler_proposes_are_looked_up(grid: Callable[..., Any]) -> None:
    """All choices are one loss; evolution is told to begin with three of them."""
    space = grid(3, same=lambda params: "one")
    first = [{"g0": f"o{i}"} for i in range(3)]
    found = [run(make_sampler("evolution", space, 0, SETTINGS, first), measured, 9) for run in (play, stored)]
    assert told(found[0]) == told(found[1])
    assert sum(one.counts for one in found[0]) <= 1


def test_the_best_within_a_budget_counts_trainings() -> None:
    def one(ap: float, counts: bool = True, state: State = State.COMPLETE, ap50: float = 0.0) -> Played:
        return Played({}, str(ap), state, (int(state is State.COMPLETE), ap, ap50), counts)

    trials = [one(1.0), one(-1.0, False, State.FILTERED), one(9.0, state=State.PRUNED), one(2.0, ap50=5.0),
              one(2.0, False, ap50=6.0), one(3.0)]  # fmt: skip
    assert best_within(trials, 2) is trials[0]
    assert best_within(trials, 3) is trials[4]
    assert best_within(trials, 4) is trials[5]
