"""A small space without policies, and a run of a sampler without storage, for tests of the algorithms alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from detkds.policy import Policy
from detkds.policy_search.result import State, Trial
from detkds.policy_search.samplers.base import SearchSampler
from detkds.policy_search.space import Option, Params


@dataclass(frozen=True)
class Grid:
    """Genes g0, g1 ... with options 0 .. n-1; ``same`` maps a choice to the text of its loss."""

    genes: Mapping[str, tuple[Option, ...]]
    same: Callable[[Params], str] | None = None
    forbidden: Callable[[Params], bool] | None = None

    def legal(self, params: Params) -> bool:
        return self.forbidden is None or not self.forbidden(params)

    def key(self, params: Params) -> str:
        if self.same is not None:
            return self.same(params)
        return "-".join(str(params[name]) for name in self.genes)

    def policy(self, params: Params) -> Policy:
        return Policy([], name=self.key(params))

    def describe(self) -> dict[str, Any]:
        return {name: list(options) for name, options in self.genes.items()}


@pytest.fixture
def grid() -> Callable[..., Grid]:
    """Build a grid from the number of options of each gene."""

    def build(*sizes: int, **changes: Any) -> Grid:
        return Grid({f"g{i}": tuple(f"o{j}" for j in range(n)) for i, n in enumerate(sizes)}, **changes)

    return build


Measure = Callable[[Params], float | State]


@pytest.fixture
def run() -> Callable[..., list[Trial]]:
    """Run a sampler alone, one trial at a time, until so many candidates were trained."""

    def search(sampler: SearchSampler, measure: Measure, trainings: int) -> list[Trial]:
        history: list[Trial] = []
        trained = 0
        while trained < trainings:
            number = len(history)
            proposal = sampler.propose(history, number, np.random.default_rng([sampler.seed, number]))
            if proposal.role == "exhausted":
                break
            value = measure(proposal.params)
            state, ap = (value, None) if isinstance(value, State) else (State.COMPLETE, float(value))
            trained += state in (State.COMPLETE, State.PRUNED)
            policy, key = sampler.space.policy(proposal.params), sampler.space.key(proposal.params)
            given = {"ap": ap, "role": proposal.role, "iteration": proposal.iteration}
            history.append(Trial("study", number, state, proposal.params, policy, key, **given))
        return history

    return search


@pytest.fixture
def separable() -> Callable[[Grid, int], dict[tuple[str, Option], float]]:
    """Random main effects of every option; the optimum is the best option of each gene."""

    def build(space: Grid, seed: int) -> dict[tuple[str, Option], float]:
        rng = np.random.default_rng(seed)
        return {(name, option): rng.normal() for name, options in space.genes.items() for option in options}

    return build


def value(effects: Mapping[tuple[str, Option], float], params: Params) -> float:
    return sum(effects[item] for item in params.items())


@pytest.fixture
def total() -> Callable[[Mapping[tuple[str, Option], float], Params], float]:
    """The sum of the effects of a choice."""
    return value
