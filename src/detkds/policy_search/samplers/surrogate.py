"""A guess of AP from the trials so far, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


class GaussianProcess:
    """A Gaussian process of AP, scaled to mean 0 and deviation 1, over whatever a function can compare.

    What is still running counts as if it gave what is expected of it, so that what is proposed beside it lies
    elsewhere.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 2.2; running candidates as
    by the believer of Ginsbourger et al., Kriging is well-suited to parallelize optimization (2010), section 4.2.

    Args:
        correlation: from two sequences of n and m things to how alike they are, shape (n, m).
        noise: variance of what measuring adds, relative to that of AP.
        known, aps: what was measured.
        running: what is being measured; it says nothing where nothing is known.
    """

    def __init__(
        self,
        correlation: Callable[[Sequence[Any], Sequence[Any]], np.ndarray],
        noise: float,
        known: Sequence[Any],
        aps: Sequence[float],
        running: Sequence[Any] = (),
    ) -> None:
        self._correlation, self._noise = correlation, noise
        self._mean, self._deviation = (float(np.mean(aps)), float(np.std(aps)) or 1.0) if aps else (0.0, 1.0)
        self._learn(list(known), np.array(aps))
        if aps and running:
            expected, _ = self.guess(running)
            self._learn([*known, *running], np.concatenate((aps, expected)))

    def guess(self, things: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """The AP expected of each, and its standard deviation."""
        near = self._correlation(things, self._known)
        spread = np.sqrt(np.maximum(0.0, 1.0 - (near.T * self._solve(near.T)).sum(0)))
        return self._mean + self._deviation * (near @ self._weights), self._deviation * spread

    def _learn(self, known: list[Any], aps: np.ndarray) -> None:
        self._known = known
        own = self._correlation(known, known) + self._noise * np.eye(len(known)) if known else None
        self._factor = None if own is None else cho_factor(own)
        self._weights = self._solve((aps - self._mean) / self._deviation)

    def _solve(self, right: np.ndarray) -> np.ndarray:
        """The inverse of the covariance times these columns."""
        return right if self._factor is None else cho_solve(self._factor, right)


class Surrogate(GaussianProcess):
    """A Gaussian process over choices: what each option adds, and what is special to like choices.

    Two choices that agree in m of G genes correlate by ``(1 - INTERACTION) m / G + INTERACTION DECAY^(G - m)``. In a
    joint space the genes of a term that is left out have no option. A candidate that was pruned counts as the worst of
    those that were not. The constants were chosen on ``benchmarks/table`` and on synthetic landscapes: few trials are
    too few to fit them.

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
        running = [trial.params for trial in history if trial.state is None]
        known = self._encode([trial.params for trial in whole + pruned])
        super().__init__(self._alike, NOISE, known, aps, self._encode(running))

    def predict(self, choices: Sequence[Params]) -> tuple[np.ndarray, np.ndarray]:
        """The AP expected of each choice, and its standard deviation."""
        return self.guess(self._encode(choices))

    def _alike(self, first: Sequence[Any], second: Sequence[Any]) -> np.ndarray:
        one_row_each = (np.array(rows, dtype=int).reshape(len(rows), len(self._codes)) for rows in (first, second))
        return _correlation(*one_row_each)

    def _encode(self, choices: Sequence[Params]) -> list[list[int]]:
        """One row per choice, one column per gene; -1 for no option."""
        rows = [active(params) for params in choices]
        return [[codes[row[name]] if name in row else -1 for name, codes in self._codes.items()] for row in rows]


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    genes = first.shape[1]
    same = (first[:, None] == second[None]).sum(-1)
    return (1 - INTERACTION) * same / genes + INTERACTION * DECAY ** (genes - same)
