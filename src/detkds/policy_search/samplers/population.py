"""The population of Algorithm 1, replayed from the stored trials, and the operations on choices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from detkds.config import SearchConfig
from detkds.policy_search.result import State, Trial
from detkds.policy_search.space import Option, Params, SearchSpace

Slot = tuple[str, int]
"""A role and its iteration (for ``init``: the place in the initial population)."""


@dataclass
class Population:
    """Where the algorithm stands after some trials.

    Attributes:
        size: P, constant once the initial population is complete.
        slots: places of the initial population that are to be measured.
        members: the population.
        seen: keys of all choices ever made, including refused and running ones.
        taken: slots that are filled or whose candidate is running.
    """

    size: int
    slots: int
    members: list[Trial] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    taken: set[Slot] = field(default_factory=set)

    def open_slots(self, config: SearchConfig) -> list[Slot]:
        """What may be proposed now: free places of the initial population, else of the next iterations.

        Places of the first ``config.parallel`` unfinished iterations; a refused candidate leaves its place free.
        """
        initial = [slot for slot in (("init", place) for place in range(self.slots)) if slot not in self.taken]
        if initial:
            return initial
        slots: list[Slot] = []
        iteration, open_iterations = 0, 0
        while open_iterations < config.parallel:
            free = [slot for slot in iteration_slots(iteration, config) if slot not in self.taken]
            open_iterations += bool(free)
            slots += free
            iteration += 1
        return slots


def replay(history: Iterable[Trial], config: SearchConfig, initial: int = 0) -> Population:
    """Run the algorithm over stored trials.

    A completed or pruned candidate fills its slot; a filtered or failed one never enters the population and its slot
    is proposed anew. When all slots of an iteration are filled, the better candidate (tie: the mutant) is added and
    the worst member (tie: the older) removed.

    Args:
        history: trials in the order of their numbers.
        config: algorithm parameters.
        initial: how many given choices belong into the initial population.
    """
    trials = list(history)
    seeds = sum(trial.role == "seed" for trial in trials)
    population = Population(size=config.population, slots=max(config.population - seeds, initial))
    filled: dict[int, dict[str, Trial]] = {}
    initials = 0
    for trial in trials:
        population.seen.add(trial.key)
        slot = (trial.role, trial.iteration)
        if trial.repeats or trial.state in (State.FILTERED, State.FAILED):
            continue
        if trial.role in ("mutant", "newcomer", "init"):
            population.taken.add(slot)
        if trial.state is None:
            continue
        if trial.role in ("mutant", "newcomer"):
            candidates = filled.setdefault(trial.iteration, {})
            candidates[trial.role] = trial
            if len(candidates) < 1 + config.has_newcomer(trial.iteration):
                continue
            trial = max(candidates.values(), key=lambda trial: (trial.fitness, trial.role == "mutant"))
        initials += trial.role == "init"
        population.members.append(trial)
        if initials >= population.slots:
            while len(population.members) > population.size:
                worst = min(population.members, key=_standing)
                population.members = [member for member in population.members if member is not worst]
    return population


def iteration_slots(iteration: int, config: SearchConfig) -> list[Slot]:
    """What one iteration measures: a mutant, and a newcomer where the configuration asks for one."""
    roles = ("mutant", "newcomer") if config.has_newcomer(iteration) else ("mutant",)
    return [(role, iteration) for role in roles]


def parent_pool(members: Sequence[Trial], config: SearchConfig, rng: np.random.Generator) -> list[Trial]:
    """The ``config.parents`` fittest (tie: the newer) of a random ceil(r P) members, best first."""
    count = math.ceil(config.sample_ratio * len(members) - 1e-9)
    sample = [members[i] for i in rng.choice(len(members), count, replace=False)]
    return sorted(sample, key=_standing, reverse=True)[: config.parents]


def _standing(trial: Trial) -> tuple[tuple[float, float, float], int]:
    """What members are ordered by: fitness, then the newer."""
    return trial.fitness, trial.number


def mutate(params: Params, space: SearchSpace, rng: np.random.Generator) -> dict[str, Option]:
    """Change exactly one gene, to any of its other options alike; unchanged only where no gene has another option."""
    free = [name for name, options in space.genes.items() if len(options) > 1]
    child = {name: params[name] for name in space.genes}
    if free:
        name = free[int(rng.integers(len(free)))]
        others = [option for option in space.genes[name] if option != params[name]]
        child[name] = others[int(rng.integers(len(others)))]
    return child


def cross(first: Params, second: Params, space: SearchSpace, rng: np.random.Generator) -> dict[str, Option]:
    """Uniform crossover: every gene from either parent with probability one half."""
    return {name: (first if rng.random() < 0.5 else second)[name] for name in space.genes}


def neighbors(params: Params, space: SearchSpace) -> Iterator[dict[str, Option]]:
    """Every choice that differs in exactly one gene."""
    for name, options in space.genes.items():
        for option in options:
            if option != params[name]:
                yield {gene: option if gene == name else params[gene] for gene in space.genes}


def stratified(
    space: SearchSpace, count: int, rng: np.random.Generator, taken: Iterable[str] = ()
) -> list[dict[str, Option]]:
    """``count`` choices in which every option of every gene appears floor or ceil(count / options) times.

    Genes are paired at random (a Latin hypercube); pairs that are illegal or the same loss as another are re-paired
    by exchanging one gene with another row, which keeps the counts. Where that does not succeed (a space with few
    distinct losses) the row stays, and whoever uses the design draws anew.
    """
    columns = {name: _spread(options, count, rng) for name, options in space.genes.items()}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(count)]
    names = list(space.genes)
    taken = set(taken)
    for _ in range(100 * count):
        clashing = _clashing(rows, space, taken)
        if not clashing:
            break
        row, other = rows[clashing[0]], rows[int(rng.integers(count))]
        name = names[int(rng.integers(len(names)))]
        row[name], other[name] = other[name], row[name]
    return rows


def _spread(options: Sequence[Option], count: int, rng: np.random.Generator) -> list[Option]:
    whole, rest = divmod(count, len(options))
    column = list(options) * whole + [options[i] for i in rng.permutation(len(options))[:rest]]
    return [column[i] for i in rng.permutation(count)]


def _clashing(rows: Sequence[Mapping[str, Option]], space: SearchSpace, taken: set[str]) -> list[int]:
    seen, clashing = set(taken), []
    for i, row in enumerate(rows):
        key = space.key(row) if space.legal(row) else ""
        if not key or key in seen:
            clashing.append(i)
        seen.add(key)
    return clashing
