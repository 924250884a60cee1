"""Evolution of policies: Algorithm 1 of the paper, with what it leaves open decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detkds.errors import ConfigError
from detkds.registry import SAMPLERS
from detkds.search.samplers.base import REDRAWS, Entry, Proposal, SearchSampler
from detkds.search.samplers.population import (
    Population,
    cross,
    mutate,
    neighbours,
    parent_pool,
    replay,
    stratified,
)
from detkds.search.samplers.surrogate import Surrogate
from detkds.search.settings import SearchSettings
from detkds.search.space import Option, Params, SearchSpace, draw

CURIOSITY = 0.6
"""How many standard deviations of the guess are added to it where mutants are compared."""


@SAMPLERS.register("evolution")
class Evolution(SearchSampler):
    """Keep a population; mutate one gene of a good member; keep the child if it is no worse than the worst.

    The initial population is the given choices and a stratified sample. An iteration takes ceil(r P) members, one of
    the k best of them as parent, and proposes a mutant (and, if asked for, a random newcomer that competes with it).
    A choice that was already made is never proposed again: after 20 redraws the untried neighbours of the parent,
    then of the other good members, are listed.

    Of ``screen`` mutants the one is proposed of which the trials so far promise most: the AP expected of it and 0.6 of
    its standard deviation, see :class:`~detkds.search.samplers.surrogate.Surrogate`. ``screen=1`` is the paper's
    algorithm.

    Source: DetKDS (ICML 2024), Algorithm 1. The mutation operator, ties and the initial sample are not given there.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        settings: SearchSettings,
        initial: Sequence[Params] = (),
        *,
        screen: int = 16,
    ) -> None:
        if isinstance(screen, bool) or not isinstance(screen, int) or screen < 1:
            raise ConfigError(f"evolution: screen: expected a whole number >= 1, got {screen!r}")
        super().__init__(space, seed, settings, initial)
        self.screen = screen

    def propose(self, history: Sequence[Entry], number: int, rng: np.random.Generator) -> Proposal:
        """Fill the first open slot of the algorithm."""
        population = self.population(history)
        role, iteration = population.open_slots(self.settings)[0]
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

    def lot(self, history: Sequence[Entry]) -> int:
        """The open part of the initial population, in chunks, or of the iterations that run side by side."""
        slots = self.population(history).open_slots(self.settings)
        return min(len(slots), self.settings.initial_chunk) if slots[0][0] == "init" else len(slots)

    def population(self, history: Sequence[Entry]) -> Population:
        """Where the algorithm stands after these trials."""
        return replay(history, self.settings, len(self.initial))

    def _design(self, population: Population, history: Sequence[Entry]) -> list[dict[str, Option]]:
        rng = np.random.default_rng([self.seed, 0, 1])
        given = [dict(params) for params in self.initial]
        taken = {self.space.key(params) for params in given}
        taken |= {entry.key for entry in history if entry.role == "seed"}
        return given + stratified(self.space, population.slots - len(given), rng, taken)

    def _mutant(
        self, population: Population, history: Sequence[Entry], iteration: int, rng: np.random.Generator
    ) -> Proposal:
        mutants = self._mutants(population, rng)
        if mutants:
            best = 0
            if len(mutants) > 1:
                expected, spread = Surrogate(self.space, history).predict([child for child, _ in mutants])
                best = int(np.argmax(expected + CURIOSITY * spread))
            child, parents = mutants[best]
            return Proposal(child, "mutant", iteration, tuple(parent.number for parent in parents))
        for parent in population.members:
            untried = [child for child in neighbours(parent.params, self.space) if self._is_new(child, population)]
            if untried:
                return Proposal(untried[int(rng.integers(len(untried)))], "mutant", iteration, (parent.number,))
        params = self.unseen(population.seen, rng)
        if params is None:
            return Proposal(draw(self.space, rng), "exhausted", iteration)
        return Proposal(params, "mutant", iteration)

    def _mutants(self, population: Population, rng: np.random.Generator) -> list[tuple[dict[str, Option], list[Entry]]]:
        """Up to ``screen`` untried children with their parents; each of a sample of its own."""
        found: dict[str, tuple[dict[str, Option], list[Entry]]] = {}
        for _ in range(REDRAWS * self.screen):
            pool = parent_pool(population.members, self.settings, rng)
            crossing = len(pool) > 1 and rng.random() < self.settings.crossover
            parents = [pool[i] for i in rng.choice(len(pool), 2 if crossing else 1, replace=False)]
            base = cross(parents[0].params, parents[1].params, self.space, rng) if crossing else parents[0].params
            child = mutate(base, self.space, rng)
            if self._is_new(child, population):
                found.setdefault(self.space.key(child), (child, parents))
            if len(found) >= self.screen:
                break
        return list(found.values())

    def _is_new(self, params: Params, population: Population) -> bool:
        return self.space.legal(params) and self.space.key(params) not in population.seen


@SAMPLERS.register("weights")
def weight_evolution(
    space: SearchSpace, seed: int, settings: SearchSettings, initial: Sequence[Params] = (), *, screen: int = 16
) -> Evolution:
    """Evolution of weight vectors: two parents are crossed gene by gene, then exactly one weight is changed.

    Source: DetKDS (ICML 2024), section 3.3, where the operators are only named.
    """
    settings = replace(settings, crossover=1.0, newcomer="never")
    return Evolution(space, seed, settings, initial, screen=screen)
