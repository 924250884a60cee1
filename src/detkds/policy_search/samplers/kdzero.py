"""Evolution with crossover in a space that shrinks as the search goes on, after KD-Zero."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from detkds.config import SearchConfig
from detkds.errors import ConfigError, Faults
from detkds.policy import Policy
from detkds.policy_search.combination import CombinationSpace
from detkds.policy_search.result import State, Trial
from detkds.policy_search.samplers.base import Proposal, SearchSampler
from detkds.policy_search.samplers.evolution import Evolution
from detkds.policy_search.space import Option, Params, SearchSpace, points
from detkds.registry import SAMPLERS

SHRINKAGES = 2
"""The space shrinks after each third of the budget but the last, which ends the search."""

LEAST_EVALUATIONS = 3
"""How often an option must have been measured before it can be dropped."""


@dataclass(frozen=True)
class ShrunkSpace:
    """A space of which some options were dropped; a choice with any of them is not legal."""

    whole: SearchSpace
    genes: Mapping[str, tuple[Option, ...]]

    def legal(self, params: Params) -> bool:
        """Whether the choice is legal in the whole space and has only options that are left."""
        return all(params[name] in options for name, options in self.genes.items()) and self.whole.legal(params)

    def key(self, params: Params) -> str:
        """As in the whole space."""
        return self.whole.key(params)

    def policy(self, params: Params) -> Policy:
        """As in the whole space."""
        return self.whole.policy(params)

    def describe(self) -> dict[str, Any]:
        """The whole space and the options that are left."""
        return {"whole": self.whole.describe(), "genes": {name: list(left) for name, left in self.genes.items()}}


@SAMPLERS.register("kdzero")
class ShrinkingEvolution(SearchSampler):
    """Evolution whose parents are crossed, and which drops the options that did worst after each third of the budget.

    Of each gene the worst ``shrink`` of its options by mean AP are dropped, rounded down, where they were measured at
    least three times; a pruned candidate counts as the worst that was completed. What is dropped depends on the trials
    of that third and earlier ones alone. Once the shrunk space is used up the whole space is searched on. A search that
    is continued with another budget shrinks at other trials from there on.

    Source: KD-Zero (Li et al., NeurIPS 2023) describes crossover, mutation and shrinkage; its numbers and its second
    objective, the sharpness of the loss landscape, are not public, so AP alone decides and the numbers are our own.

    Args:
        crossover: probability of crossing two parents before mutation.
        shrink: fraction of a gene's options that is dropped at each shrinkage, at least 0 and below 1.

    Raises:
        ConfigError: listing every argument that cannot be used.
    """

    uses_budget: ClassVar[bool] = True

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        config: SearchConfig,
        initial: Sequence[Params] = (),
        *,
        crossover: float = 0.5,
        shrink: float = 0.25,
    ) -> None:
        faults = Faults("kdzero")
        for name, value, most in (("crossover", crossover, "at most"), ("shrink", shrink, "below")):
            number = not isinstance(value, bool) and isinstance(value, int | float)
            if not number or value < 0 or value > 1 or (value == 1 and most == "below"):
                faults.add(f"{name}: expected a number >= 0 and {most} 1, got {value!r}")
        faults.raise_as(ConfigError)
        super().__init__(space, seed, config, initial)
        self.shrink = float(shrink)
        self.budget = config.combination_budget if isinstance(space, CombinationSpace) else config.single_budget
        self.crossover = float(crossover)
        self._evolution = self._evolve(space)

    def propose(self, history: Sequence[Trial], number: int, rng: np.random.Generator) -> Proposal:
        """One step of evolution in what is left of the space; the initial population is of the whole space."""
        whole = self._evolution
        role, _ = whole.population(history).open_slots(whole.config)[0]
        left = self.options_left(history)
        if role == "init" or left == dict(self.space.genes):
            return whole.propose(history, number, rng)
        proposal = self._evolve(ShrunkSpace(self.space, left)).propose(history, number, rng)
        return whole.propose(history, number, rng) if proposal.role == "exhausted" else proposal

    def batch_size(self, history: Sequence[Trial], chunk: int) -> int:
        """As many as evolution proposes."""
        return self._evolution.batch_size(history, chunk)

    def options_left(self, history: Sequence[Trial]) -> dict[str, tuple[Option, ...]]:
        """The options of every gene after the shrinkages that are due."""
        measured = [trial for trial in history if _is_measured(trial)]
        left = dict(self.space.genes)
        for third in range(1, SHRINKAGES + 1):
            due = math.ceil(third * self.budget / (SHRINKAGES + 1))
            if len(measured) < due:
                break
            fewer = {name: self._keep(name, options, measured[:due]) for name, options in left.items()}
            if next(points(ShrunkSpace(self.space, fewer)), None) is not None:
                left = fewer
        return left

    def _keep(self, name: str, options: tuple[Option, ...], measured: Sequence[Trial]) -> tuple[Option, ...]:
        aps: defaultdict[Option, list[float]] = defaultdict(list)
        worst_ap = min((trial.fitness[1] for trial in measured if trial.state is State.COMPLETE), default=0.0)
        for trial in measured:
            if trial.state is not State.FAILED:
                completed = trial.state is State.COMPLETE
                aps[trial.params[name]].append(trial.fitness[1] if completed else worst_ap)
        ranked = sorted((option for option in options if aps[option]), key=lambda option: float(np.mean(aps[option])))
        worst = ranked[: math.floor(self.shrink * len(options) + 1e-9)]
        return tuple(option for option in options if option not in worst or len(aps[option]) < LEAST_EVALUATIONS)

    def _evolve(self, space: SearchSpace) -> Evolution:
        return Evolution(space, self.seed, self.config, self.initial, screen=1, crossover=self.crossover)


def _is_measured(trial: Trial) -> bool:
    """Whether a training was spent on it."""
    return trial.state in (State.COMPLETE, State.PRUNED, State.FAILED) and not trial.repeats and trial.role != "seed"
