"""A guess of AP from the trials so far, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from detkds.policy_search.joint import active
from detkds.policy_search.result import State, Trial
from detkds.policy_search.space import Params, SearchSpace

INTERACTION = 0.5
"""The part of the variance that is not of single genes."""

DECAY = 0.5
"""What is left of that part's correlation with each gene that differs."""

NOISE = 0.03
"""Variance of what measuring adds, relative to that of AP."""


class Surrogate:
    """A Gaussian process over choices: what each option adds, and what is special to like choices.

    Two choices that agree in m of G genes correlate by ``(1 - INTERACTION) m / G + INTERACTION DECAY^(G - m)``. AP is
    scaled to mean 0 and deviation 1. In a joint space the genes of a term that is left out have no option.

    A candidate that was pruned counts as the worst of those that were not. One that still runs counts as if it gave
    what is expected of it, so that what is proposed beside it lies elsewhere.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 2.2; running candidates as
    by the believer of Ginsbourger et al., Kriging is well-suited to parallelize optimization (2010), section 4.2. The
    constants were chosen on ``benchmarks/table`` and on synthetic landscapes: few trials are too few to fit them.

    Args:
        space: whose genes are the variables.
        history: the trials; those that were refused or failed say nothing.
    """

    def __init__(self, space: SearchSpace, history: Sequence[Trial]) -> None:
        self._codes = {name: {option: i for i, option in enumerate(options)} for name, options in space.genes.items()}
        whole = [trial for trial in history if trial.state is State.COMPLETE]
        pruned = [trial for trial in history if trial.state is State.PRUNED] if whole else []
        aps = [trial.fitness[1] for trial in whole]
        aps += [min(aps, default=0.0)] * len(pruned)
        self._mean, self._deviation = (float(np.mean(aps)), float(np.std(aps)) or 1.0) if aps else (0.0, 1.0)
        self._learn(self._encode([trial.params for trial in whole + pruned]), np.array(aps))
        if aps and (running := [trial.params for trial in history if trial.state is None]):
            expected, _ = self.predict(running)
            self._learn(np.concatenate((self._known, self._encode(running))), np.concatenate((aps, expected)))

    def predict(self, choices: Sequence[Params]) -> tuple[np.ndarray, np.ndarray]:
        """The AP expected of each choice, and its standard deviation."""
        near = _correlation(self._encode(choices), self._known)
        spread = np.sqrt(np.maximum(0.0, 1.0 - (near.T * self._solve(near.T)).sum(0)))
        return self._mean + self._deviation * (near @ self._weights), self._deviation * spread

    def _learn(self, known: np.ndarray, aps: np.ndarray) -> None:
        """Condition on the APs of encoded choices."""
        self._known = known
        self._factor = cho_factor(_correlation(known, known) + NOISE * np.eye(len(known))) if len(known) else None
        self._weights = self._solve((aps - self._mean) / self._deviation)

    def _solve(self, right: np.ndarray) -> np.ndarray:
        """The inverse of the covariance times these columns."""
        return right if self._factor is None else cho_solve(self._factor, right)

    def _encode(self, choices: Sequence[Params]) -> np.ndarray:
        """One row per choice, one column per gene; -1 for no option."""
        rows = [active(params) for params in choices]
        codes = [[codes[row[name]] if name in row else -1 for name, codes in self._codes.items()] for row in rows]
        return np.array(codes).reshape(len(choices), len(self._codes))


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    genes = first.shape[1]
    same = (first[:, None] == second[None]).sum(-1)
    return (1 - INTERACTION) * same / genes + INTERACTION * DECAY ** (genes - same)
