"""Optuna's tree-structured Parzen estimator, to compare with."""

from __future__ import annotations

from optuna.samplers import BaseSampler, TPESampler

from detkds.policy_search.samplers.optuna_sampler import OptunaSampler
from detkds.registry import SAMPLERS


@SAMPLERS.register("tpe")
class ParzenEstimator(OptunaSampler):
    """Multivariate TPE with running trials counted as losing, seeded anew for every trial so that it resumes exactly.

    It begins with the same initial choices as evolution, and a choice that was made before is drawn anew.
    """

    role = "estimate"

    def optuna_sampler(self, seed: int) -> BaseSampler:
        """A multivariate estimator without random trials of its own."""
        return TPESampler(n_startup_trials=0, multivariate=True, constant_liar=True, seed=seed)
