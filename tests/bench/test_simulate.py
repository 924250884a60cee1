"""A search in memory has the trials of a stored one."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from detkds.bench.simulate import best_within, config_for_budget, simulate
from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy import Policy
from detkds.policy_search.divide_and_conquer import make_sampler
from detkds.policy_search.result import Result, State, Trial
from detkds.policy_search.samplers.base import SearchSampler
from detkds.policy_search.space import Params, Space
from detkds.policy_search.storage import open_storage
from detkds.policy_search.study import SearchStudy
from detkds.registry import SAMPLERS

CONFIG = SearchConfig(population=6, parents=2, parallel=2, newcomer="every:2")
GENES = {"transform": ("none", "norm(N)", "softmax(C)"), "distance": ("l1", "l2", "kl"), "weight": (0.5, 1, 2, 5)}


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


def stored(sampler: SearchSampler, measure: Callable[[Params], Result], budget: int, folder: Path) -> list[Trial]:
    """The same through a stored study that is opened anew for every round."""
    while True:
        study = SearchStudy("simulation", sampler, open_storage(folder), budget)
        trials = study.ask()
        if not trials:
            return study.trials
        for trial in trials:
            study.tell(trial, measure(trial.params))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("genes", [GENES, {"distance": ("l1", "l2"), "weight": (1, 2)}])
def test_every_sampler_has_the_trials_of_a_stored_study(
    name: str, genes: dict[str, tuple[str | float, ...]], tmp_path: Path
) -> None:
    """The second space is used up."""
    space = Space("logits", genes)
    trials = simulate(make_sampler(name, space, 3, CONFIG), measured, 20)
    assert trials == stored(make_sampler(name, space, 3, CONFIG), measured, 20, tmp_path)
    if genes is GENES:
        assert sum(trial.counts for trial in trials) == 20
    else:
        assert len({trial.key for trial in trials}) == 4


def test_the_best_within_a_budget_counts_trainings() -> None:
    def trial(ap: float, counts: bool = True, state: State = State.COMPLETE, ap50: float = 0.0) -> Trial:
        return Trial("simulation", 0, state, {}, Policy(), str(ap), ap=ap, metrics={"AP50": ap50}, counts=counts)

    trials = [trial(1.0), trial(-1.0, False, State.FILTERED), trial(9.0, state=State.PRUNED), trial(2.0, ap50=5.0),
              trial(2.0, False, ap50=6.0), trial(3.0)]  # fmt: skip
    assert best_within(trials, 2) is trials[0]
    assert best_within(trials, 3) is trials[4]
    assert best_within(trials, 4) is trials[5]


@pytest.mark.parametrize(
    ("trainings", "knowledge", "single", "combination", "population"),
    [(140, 5, 20, 40, 8), (100, 5, 14, 30, 8), (700, 5, 100, 200, 20), (60, 1, 60, 0, 8)],
)
def test_a_total_budget_is_shared_out_whole(
    trainings: int, knowledge: int, single: int, combination: int, population: int
) -> None:
    config = config_for_budget(trainings, knowledge)
    assert (config.single_budget, config.combination_budget, config.population) == (single, combination, population)
    assert single * knowledge + combination == trainings == config.trainings(knowledge)


def test_a_budget_too_small_to_share() -> None:
    with pytest.raises(ConfigError, match="at least 7 trainings, got 6"):
        config_for_budget(6, 5)
