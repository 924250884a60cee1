"""A small space without policies, and a run of a sampler without storage, for tests of the algorithms alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from detkds.policy import Policy
from detkds.search.result import State
from detkds.search.samplers.base import Entry, SearchSampler
from detkds.search.space import Option, Params


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
def run() -> Callable[..., list[Entry]]:
    """Run a sampler alone, one trial at a time, until so many candidates were trained."""

    def play(sampler: SearchSampler, measure: Measure, trainings: int) -> list[Entry]:
        history: list[Entry] = []
        trained = 0
        while trained < trainings:
            number = len(history)
            proposal = sampler.propose(history, number, np.random.default_rng([sampler.seed, number]))
            if proposal.role == "exhausted":
                break
            found = measure(proposal.params)
            state = found if isinstance(found, State) else State.COMPLETE
            ap = -np.inf if isinstance(found, State) else found
            trained += state in (State.COMPLETE, State.PRUNED)
            fitness = (int(state is State.COMPLETE), float(ap), 0.0)
            key = sampler.space.key(proposal.params)
            history.append(
                Entry(number, proposal.params, key, state, fitness, proposal.role, proposal.iteration, False)
            )
        return history

    return play


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


@pytest.fixture
def measured() -> list[dict[str, Any]]:
    """The lines of a table of eight choices that are four losses: cutting changes nothing under these distances.

    True AP without the seeds' mean difference of 2: 20.5 (20 and 23 - 2), 23.5 (24 and 25 - 2) and 30; one is refused.
    """
    genes = {"attention": ["none", "catt"], "scale": ["none", "local(2)"], "distance": ["l1", "l2"], "weight": [3.0]}
    space = {"knowledge": "global", "weighting": "gradient", "genes": genes}

    def line(attention: str, distance: str, seed: int, *ap: float) -> dict[str, Any]:
        return {
            "knowledge": "global",
            "params": {"attention": attention, "scale": "none", "distance": distance, "weight": 3.0},
            "seed": seed,
            "state": "complete" if ap else "filtered",
            "ap": list(ap),
            "ap50": [2 * value for value in ap],
            "reason": "" if ap else "over the limit",
            "seconds": 1.8,
        }

    return [
        {"format": 1, "name": "tiny", "command": "made by hand", "rungs": [1, 3], "spaces": {"global": space}},
        line("none", "l1", 0, 10.0, 20.0),
        line("none", "l2", 0, 12.0, 24.0),
        line("catt", "l1", 0, 11.0, 30.0),
        line("catt", "l2", 0),
        line("none", "l1", 1, 10.0, 23.0),
        line("none", "l2", 1, 10.0, 25.0),
    ]
