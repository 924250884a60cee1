"""Evolution of policies: Algorithm 1 of the paper, with what it leaves open decided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkds.config import SearchConfig
from detkds.errors import ConfigError, Faults
from detkds.policy_search.result import Trial
from detkds.policy_search.samplers.base import REDRAWS, Proposal, SearchSampler
from detkds.policy_search.samplers.population import (
    Population,
    cross,
    mutate,
    neighbors,
    parent_pool,
    replay,
    stratified,
)
from detkds.policy_search.samplers.surrogate import Surrogate
from detkds.policy_search.space import Option, Params, SearchSpace, draw
from detkds.registry import SAMPLERS

CURIOSITY = 4.0
"""How many standard deviations of the guess are added to it where children are compared."""

Child = tuple[dict[str, Option], list[Trial]]
"""A choice and the trials it was made from."""


@SAMPLERS.register("evolution")
class Evolution(SearchSampler):
    """Keep a population; mutate one gene of a good member; keep the child if it is no worse than the worst.

    The initial population is the given choices and a stratified sample. An iteration takes ceil(r P) members, one of
    the k best of them as parent, and proposes a mutant (and, if asked for, a random newcomer that competes with it).
    A choice that was already made is never proposed again: after 20 redraws the untried neighbors of the parent,
    then of the other good members, are listed.

    Of ``screen`` children the one is proposed of which the trials so far promise most: the AP expected of it and four
    of its standard deviations, see :class:`~detkds.policy_search.samplers.surrogate.Surrogate`. Half of the children
    are mutants; others are drawn from the whole space, so that a search can leave its population. ``screen=1`` is the
    paper's algorithm: one mutant. With probability ``crossover`` a mutant has two parents.

    Source: DetKDS (ICML 2024), Algorithm 1. The mutation operator, ties and the initial sample are not given there.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        config: SearchConfig,
        initial: Sequence[Params] = (),
        *,
        screen: int = 64,
        crossover: float = 0.0,
    ) -> None:
        faults = Faults("evolution")
        if isinstance(screen, bool) or not isinstance(screen, int) or screen < 1:
            faults.add(f"screen: expected a whole number >= 1, got {screen!r}")
        if isinstance(crossover, bool) or not isinstance(crossover, int | float) or not 0 <= crossover <= 1:
            faults.add(f"crossover: expected a probability, got {crossover!r}")
        faults.raise_as(ConfigError)
        super().__init__(space, seed, config, initial)
        self.screen = screen
        self.crossover = crossover

    def propose(self, history: Sequence[Trial], number: int, rng: np.random.Generator) -> Proposal:
        """Fill the first open slot of the algorithm."""
        population = self.population(history)
        role, iteration = population.open_slots(self.config)[0]
        if role == "init":
            params = self._design(population, history)[iteration]
            if not self.space.legal(params) or self.space.key(params) in population.seen:
                params = self.unseen(population.seen, rng)
        elif role == "mutant" and population.members:
            return self._mutant(population, history, iteration, rng)
        else:
            params = self.unseen(population.seen, rng)
        if params is None:
            return Proposal(draw(self.space, rng), "exhausted", iteration)
        return Proposal(params, role, iteration)

    def batch_size(self, history: Sequence[Trial], chunk: int) -> int:
        """The open part of the initial population, in chunks, or of the iterations that run side by side."""
        slots = self.population(history).open_slots(self.config)
        return min(len(slots), chunk) if slots[0][0] == "init" else len(slots)

    def population(self, history: Sequence[Trial]) -> Population:
        """Where the algorithm stands after these trials."""
        return replay(history, self.config, len(self.initial))

    def _design(self, population: Population, history: Sequence[Trial]) -> list[dict[str, Option]]:
        rng = np.random.default_rng([self.seed, 0, 1])
        given = [dict(params) for params in self.initial]
        taken = {self.space.key(params) for params in given}
        taken |= {trial.key for trial in history if trial.role == "seed"}
        return given + stratified(self.space, population.slots - len(given), rng, taken)

    def _mutant(
        self, population: Population, history: Sequence[Trial], iteration: int, rng: np.random.Generator
    ) -> Proposal:
        surrogate = Surrogate(self.space, history) if self.screen > 1 else None
        for _ in range(REDRAWS):
            children = self._children(population, rng)
            for child, parents in self._by_promise(children, surrogate):
                if self._is_new(child, population):
                    return Proposal(child, "mutant", iteration, tuple(parent.number for parent in parents))
        for parent in population.members:
            untried = [child for child in neighbors(parent.params, self.space) if self._is_new(child, population)]
            if untried:
                return Proposal(untried[int(rng.integers(len(untried)))], "mutant", iteration, (parent.number,))
        params = self.unseen(population.seen, rng)
        if params is None:
            return Proposal(draw(self.space, rng), "exhausted", iteration)
        return Proposal(params, "mutant", iteration)

    def _children(self, population: Population, rng: np.random.Generator) -> list[Child]:
        """``screen`` choices with their parents: mutants, each of a sample of its own, and as many of no parent."""
        children: list[Child] = []
        for _ in range(self.screen - self.screen // 2):
            pool = parent_pool(population.members, self.config, rng)
            crossing = len(pool) > 1 and rng.random() < self.crossover
            parents = [pool[i] for i in rng.choice(len(pool), 2 if crossing else 1, replace=False)]
            base = cross(parents[0].params, parents[1].params, self.space, rng) if crossing else parents[0].params
            children.append((mutate(base, self.space, rng), parents))
        return children + [(draw(self.space, rng), []) for _ in range(self.screen // 2)]

    def _by_promise(self, children: list[Child], surrogate: Surrogate | None) -> list[Child]:
        if surrogate is None:
            return children
        expected, spread = surrogate.predict([child for child, _ in children])
        return [children[i] for i in np.argsort(-(expected + CURIOSITY * spread), kind="stable")]

    def _is_new(self, params: Params, population: Population) -> bool:
        return self.space.legal(params) and self.space.key(params) not in population.seen


@SAMPLERS.register("weights")
def weight_evolution(
    space: SearchSpace, seed: int, config: SearchConfig, initial: Sequence[Params] = (), *, screen: int = 64
) -> Evolution:
    """Evolution of weight vectors: two parents are crossed gene by gene, then exactly one weight is changed.

    Source: DetKDS (ICML 2024), section 3.3, where the operators are only named.
    """
    config = config.model_copy(update={"newcomer": "never"})
    return Evolution(space, seed, config, initial, screen=screen, crossover=1.0)
