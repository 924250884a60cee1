"""A search in memory, for comparing samplers: the same trials as a stored one, many times faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.storages import InMemoryStorage

from detkds.search.result import Result, State, fitness
from detkds.search.samplers.base import Entry, Proposal, SearchSampler
from detkds.search.space import Params
from detkds.search.study import MAX_REFUSED, MAX_TWINS, SearchStudy

Measure = Callable[[Params], Result]
"""From a choice to its measurement."""


@dataclass(frozen=True)
class Played:
    """One trial of a search in memory; ``counts`` as in :class:`detkds.search.result.Record`."""

    params: Params
    key: str
    state: State
    fitness: tuple[float, float, float]
    counts: bool


def play(sampler: SearchSampler, measure: Measure, budget: int) -> list[Played]:
    """Search until ``budget`` candidates were trained or nothing new is proposed; all trials, in order.

    They are those of a :class:`SearchStudy` with the same sampler, measurements and budget. A sampler that reads an
    Optuna study itself is run through one; what any other proposes is a pure function of the trials before.
    """
    if type(sampler).sample_relative is not SearchSampler.sample_relative:
        return _through_a_study(sampler, measure, budget)
    game = _Game(sampler, measure)
    while game.goes_on and (size := min(sampler.lot(game.history), budget - game.trained)) > 0:
        game.wave(size)
    return game.played


def best_within(played: Sequence[Played], budget: int) -> Played | None:
    """The best completed trial of the first ``budget`` trainings (tie: the earlier); None where none was completed."""
    spent = np.cumsum([one.counts for one in played])
    within = [one for one, trained in zip(played, spent, strict=True) if trained <= budget]
    done = [one for one in within if one.state is State.COMPLETE]
    return max(done, key=lambda one: one.fitness, default=None)


class _Game:
    """Trials in waves: those of a wave are proposed before any of them is measured."""

    def __init__(self, sampler: SearchSampler, measure: Measure) -> None:
        self.sampler = sampler
        self.measure = measure
        self.history: list[Entry] = []
        self.counts: list[bool] = []
        self.goes_on = True
        self._settled: dict[str, Entry] = {}
        self._refused = 0

    @property
    def trained(self) -> int:
        return sum(self.counts)

    @property
    def played(self) -> list[Played]:
        return [
            Played(entry.params, entry.key, entry.state, entry.fitness, counts)
            for entry, counts in zip(self.history, self.counts, strict=True)
            if entry.state is not None
        ]

    def wave(self, size: int) -> None:
        """Propose ``size`` new candidates, twins not counted, then measure them."""
        begin, new, twins = len(self.history), set[str](), 0
        while len(new) < size and twins < MAX_TWINS and self.goes_on:
            number = len(self.history)
            rng = np.random.default_rng([self.sampler.seed, number])
            proposal = self.sampler.propose(self.history, number, rng)
            self.goes_on = proposal.role != "exhausted"
            entry = self._entry(number, proposal)
            twins += entry.twin or entry.key in new
            if not entry.twin:
                new.add(entry.key)
            self.history.append(entry)
            self.counts.append(False)
        self.goes_on = self.goes_on and twins < MAX_TWINS
        for number in range(begin, len(self.history)):
            self._settle(number)
        self.goes_on = self.goes_on and self._refused < MAX_REFUSED

    def _entry(self, number: int, proposal: Proposal) -> Entry:
        key = self.sampler.space.key(proposal.params)
        entry = Entry(number, proposal.params, key, None, fitness(None, None, {}), proposal.role,
                      proposal.iteration, False)  # fmt: skip
        return self._twin(entry) if key in self._settled else entry

    def _twin(self, entry: Entry) -> Entry:
        known = self._settled[entry.key]
        return replace(entry, state=known.state, fitness=known.fitness, twin=True)

    def _settle(self, number: int) -> None:
        entry = self.history[number]
        if entry.state is not None:
            return
        if entry.key in self._settled:
            self.history[number] = self._twin(entry)
            return
        result = self.measure(entry.params).checked()
        self._refused = self._refused + 1 if result.state in (State.FILTERED, State.FAILED) else 0
        self.counts[number] = result.counts
        standing = fitness(result.state, result.ap, result.metrics, result.rungs)
        self.history[number] = replace(entry, state=result.state, fitness=standing)
        self._settled[entry.key] = self.history[number]


def _through_a_study(sampler: SearchSampler, measure: Measure, budget: int) -> list[Played]:
    study = SearchStudy("play", sampler, InMemoryStorage(), budget)
    while candidates := study.gather():
        for candidate in candidates:
            study.tell(candidate, measure(candidate.params))
    return [
        Played(one.params, one.key, one.state, fitness(one.state, one.ap, one.metrics, one.rungs), one.counts)
        for one in study.records
        if one.state is not None
    ]
