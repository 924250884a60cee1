"""Optuna's tree-structured Parzen estimator, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from detkds.registry import SAMPLERS
from detkds.search.samplers.base import PROPOSAL, REDRAWS, Entry, Proposal, SearchSampler
from detkds.search.samplers.population import stratified
from detkds.search.space import draw


@SAMPLERS.register("tpe")
class ParzenEstimator(SearchSampler):
    """Multivariate TPE with running trials counted as losing, seeded anew for every trial so that it resumes exactly.

    It begins with the same initial choices as evolution, and a choice that was made before is drawn anew.
    """

    def propose(self, history: Sequence[Entry], number: int, rng: np.random.Generator) -> Proposal:
        """The initial choices and a stratified sample, then random untried choices."""
        seen = {entry.key for entry in history}
        count = max(self.settings.population - len(self.initial), 0)
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
        """Ask the estimator once there is an initial population."""
        history = self.history(study, trial.number)
        if sum(entry.role == "init" for entry in history) < max(self.settings.population, len(self.initial)):
            return super().sample_relative(study, trial, search_space)
        seen = {entry.key for entry in history}
        for seed in np.random.SeedSequence([self.seed, trial.number]).generate_state(REDRAWS):
            estimator = TPESampler(n_startup_trials=0, multivariate=True, constant_liar=True, seed=int(seed))
            params = estimator.sample_relative(study, trial, search_space)
            if params and self.space.legal(params) and self.space.key(params) not in seen:
                note = {"role": "estimate", "iteration": len(history), "parents": []}
                study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, note)
                return params
        return super().sample_relative(study, trial, search_space)
