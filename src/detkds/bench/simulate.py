"""A search in memory, for comparing samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy_search.result import Result, State, Trial
from detkds.policy_search.samplers.base import SearchSampler
from detkds.policy_search.space import Params
from detkds.policy_search.study import SearchStudy

SMALL_BUDGET = 60
"""Trainings per study up to which a small population is the better one (measured on synthetic landscapes)."""


def simulate(sampler: SearchSampler, measure: Callable[[Params], Result], budget: int, chunk: int = 4) -> list[Trial]:
    """Search until ``budget`` candidates were trained or nothing new is proposed; all trials, in order.

    ``measure`` gives the measurement of a choice; ``chunk`` is as in :class:`~detkds.policy_search.study.SearchStudy`.
    """
    study = SearchStudy("simulation", sampler, None, budget, chunk=chunk)
    while trials := study.ask():
        for trial in trials:
            study.tell(trial, measure(trial.params))
    return study.trials


def best_within(trials: Sequence[Trial], budget: int) -> Trial | None:
    """The best completed trial of the first ``budget`` trainings (tie: the earlier); None where none was completed."""
    spent = accumulate(trial.counts for trial in trials)
    within = [trial for trial, trained in zip(trials, spent, strict=True) if trained <= budget]
    completed = [trial for trial in within if trial.state is State.COMPLETE]
    return max(completed, key=lambda trial: trial.fitness, default=None)


def config_for_budget(trainings: int, knowledge: int = 1, **changes: Any) -> SearchConfig:
    """A configuration for a total number of trainings: equal shares for every kind, a double one for the combination.

    Up to 60 trainings per study the population is small (8, k = 3), above it the paper's (20, k = 5).

    Raises:
        ConfigError: there are fewer trainings than shares.
    """
    shares = knowledge + (2 if knowledge > 1 else 0)
    single = trainings // shares
    if single < 1:
        raise ConfigError(f"search: expected a budget of at least {shares} trainings, got {trainings}")
    size = {"population": 8, "parents": 3} if single <= SMALL_BUDGET else {"population": 20, "parents": 5}
    rest = trainings - single * knowledge if knowledge > 1 else 0
    return SearchConfig(**{**size, "method": "divide", "single_budget": single, "combination_budget": rest, **changes})
