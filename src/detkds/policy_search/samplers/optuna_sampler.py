"""Samplers of Optuna behind the same interface: the same beginning, no repetition, exact resumption."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from detkds.config import SearchConfig
from detkds.policy_search.result import Trial
from detkds.policy_search.samplers.base import REDRAWS, Proposal, SearchSampler
from detkds.policy_search.samplers.population import stratified
from detkds.policy_search.space import Params, SearchSpace, draw
from detkds.policy_search.storage import StoredTrials


class OptunaSampler(SearchSampler):
    """Base of the samplers that ask Optuna, seeded anew for every trial so that they resume exactly.

    They begin with the same initial choices as evolution. A choice that was made before, or is illegal, is drawn anew;
    after 20 redraws an untried one is drawn at random. Optuna reads the trials from a study in memory.
    """

    role: ClassVar[str]
    """What proposals of Optuna's sampler are noted as."""

    def __init__(self, space: SearchSpace, seed: int, config: SearchConfig, initial: Sequence[Params] = ()) -> None:
        super().__init__(space, seed, config, initial)
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(options) for name, options in space.genes.items()
        }
        self._mirror = OptunaMirror(space, self.prepare)

    @abstractmethod
    def optuna_sampler(self, seed: int) -> BaseSampler:
        """Optuna's sampler with this seed."""

    def prepare(self, study: Study, trial: FrozenTrial) -> None:
        """What Optuna's sampler notes with a trial before its choice is made; nothing by default."""

    @property
    def population(self) -> int:
        """How many choices are made before Optuna's sampler is asked."""
        return self.config.population

    def propose(self, history: Sequence[Trial], number: int, rng: np.random.Generator) -> Proposal:
        """The initial choices and a stratified sample, then Optuna's, or else random untried choices."""
        seen = {trial.key for trial in history}
        study, trial = self._mirror.follow(history)
        begun = sum(trial.role == "init" for trial in history)
        if begun >= max(self.population, len(self.initial)):
            params = self._ask(study, trial, seen)
            if params is not None:
                return Proposal(params, self.role, len(history))
        count = max(self.population - len(self.initial), 0)
        design = stratified(self.space, count, np.random.default_rng([self.seed, 0, 1])) if count else []
        for params in (*self.initial, *design)[begun:]:
            if self.space.legal(params) and self.space.key(params) not in seen:
                return Proposal(dict(params), "init", begun)
        params = self.unseen(seen, rng)
        return Proposal(draw(self.space, rng), "exhausted") if params is None else Proposal(params, "random")

    def _ask(self, study: Study, trial: FrozenTrial, seen: set[str]) -> dict[str, Any] | None:
        """A new legal choice of Optuna's sampler; None where it has none."""
        rng = np.random.default_rng([self.seed, trial.number, 1])
        for seed in np.random.SeedSequence([self.seed, trial.number]).generate_state(REDRAWS):
            chosen = self.optuna_sampler(int(seed)).sample_relative(study, trial, self._distributions)
            if not chosen:
                return None
            params = {**self._any_options(rng), **chosen}  # what Optuna leaves open it would choose uniformly
            if self.space.legal(params) and self.space.key(params) not in seen:
                return params
        return None

    def _any_options(self, rng: np.random.Generator) -> dict[str, Any]:
        return {name: options[int(rng.integers(len(options)))] for name, options in self.space.genes.items()}


class OptunaMirror:
    """An Optuna study in memory that follows a history of trials, for samplers of Optuna to read.

    A trial is created, prepared and then given its choice; whichever process follows a history, each trial is prepared
    when the same others have finished: those of earlier waves, and what was looked up in them.

    Args:
        space: what the choices of the trials mean.
        prepare: called with the study and each trial before its choice is known.
    """

    def __init__(self, space: SearchSpace, prepare: Callable[[Study, FrozenTrial], None]) -> None:
        self._storage = InMemoryStorage()
        self._trials = StoredTrials(self._storage, "mirror", space)
        self._prepare = prepare
        self._no_sampler = RandomSampler(0)
        self._ids: list[int] = []
        self._running: list[int] = []
        self._chosen, self._begin = 0, 0

    def follow(self, history: Sequence[Trial]) -> tuple[Study, FrozenTrial]:
        """The study with these trials, which continue those of the call before, and the trial that comes next."""
        for trial in history[self._chosen :]:
            if trial.number == 0 or trial.wave != history[trial.number - 1].wave:
                self._begin = trial.number
            if trial.wave is None:
                self._trials.add(trial)
                self._ids.append(-1)
            else:
                if trial.number == len(self._ids):
                    self._create(history, trial)
                self._trials.choose(self._ids[trial.number], trial)
                self._running.append(trial.number)
        self._chosen = len(history)
        self._create(history, None)
        return self._study(), self._storage.get_trial(self._ids[-1])

    def _create(self, history: Sequence[Trial], trial: Trial | None) -> None:
        """Create a trial of the history, or the one that comes next, when others have finished as it saw them."""
        for other in [history[number] for number in self._running]:
            seen = trial is None or other.wave != trial.wave or other.known_before(self._begin)
            if other.state is not None and seen:
                self._trials.finish(other)
                self._running.remove(other.number)
        self._ids.append(self._storage.create_new_trial(self._trials.study_id))
        self._prepare(self._study(), self._storage.get_trial(self._ids[-1]))

    def _study(self) -> Study:
        """A new one, because a study remembers trials that it has read until it is asked for one itself."""
        return Study("mirror", self._storage, sampler=self._no_sampler)
