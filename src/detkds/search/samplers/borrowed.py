"""Samplers of Optuna behind the same interface: the same beginning, no repetition, exact resumption."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from detkds.search.samplers.base import PROPOSAL, REDRAWS, Entry, Proposal, SearchSampler
from detkds.search.samplers.population import stratified
from detkds.search.space import draw


class BorrowedSampler(SearchSampler):
    """Base of the samplers that ask Optuna, seeded anew for every trial so that they resume exactly.

    They begin with the same initial choices as evolution. A choice that was made before, or is illegal, is drawn anew;
    after 20 redraws an untried one is drawn at random.
    """

    role: ClassVar[str]
    """What proposals of Optuna's sampler are noted as."""

    @abstractmethod
    def borrow(self, seed: int) -> BaseSampler:
        """Optuna's sampler with this seed."""

    @property
    def population(self) -> int:
        """How many choices are made before Optuna's sampler is asked."""
        return self.settings.population

    def propose(self, history: Sequence[Entry], number: int, rng: np.random.Generator) -> Proposal:
        """The initial choices and a stratified sample, then random untried choices."""
        seen = {entry.key for entry in history}
        count = max(self.population - len(self.initial), 0)
        design = stratified(self.space, count, np.random.default_rng([self.seed, 0, 1])) if count else []
        begun = sum(entry.role == "init" for entry in history)
        for params in (*self.initial, *design)[begun:]:
            if self.space.legal(params) and self.space.key(params) not in seen:
                return Proposal(dict(params), "init", begun)
        params = self.unseen(seen, rng)
        return Proposal(draw(self.space, rng), "exhausted") if params is None else Proposal(params, "random")

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask Optuna's sampler once there is an initial population."""
        history = self.history(study, trial.number)
        if sum(entry.role == "init" for entry in history) < max(self.population, len(self.initial)):
            return super().sample_relative(study, trial, search_space)
        seen = {entry.key for entry in history}
        rng = np.random.default_rng([self.seed, trial.number, 1])
        for seed in np.random.SeedSequence([self.seed, trial.number]).generate_state(REDRAWS):
            found = self.borrow(int(seed)).sample_relative(study, trial, search_space)
            if not found:
                break
            params = {**self._any_options(rng), **found}  # what Optuna leaves open it would choose uniformly
            if self.space.legal(params) and self.space.key(params) not in seen:
                note = {"role": self.role, "iteration": len(history), "parents": []}
                study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, note)
                return params
        return super().sample_relative(study, trial, search_space)

    def _any_options(self, rng: np.random.Generator) -> dict[str, Any]:
        return {name: options[int(rng.integers(len(options)))] for name, options in self.space.genes.items()}
