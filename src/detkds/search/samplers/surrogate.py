"""A guess of AP from the trials so far, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkds.search.joint import active
from detkds.search.result import State
from detkds.search.samplers.base import Entry
from detkds.search.space import Params, SearchSpace

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

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 2.2. The constants were
    chosen on ``benchmarks/table`` and on synthetic landscapes, where few trials are too few to fit them.

    Args:
        space: whose genes are the variables.
        history: trials; those that were completed are learned from.
    """

    def __init__(self, space: SearchSpace, history: Sequence[Entry]) -> None:
        self._codes = {name: {option: i for i, option in enumerate(options)} for name, options in space.genes.items()}
        done = [entry for entry in history if entry.state is State.COMPLETE]
        aps = np.array([entry.fitness[1] for entry in done])
        self._known = self._encode([entry.params for entry in done])
        self._mean, self._deviation = (float(aps.mean()), float(aps.std()) or 1.0) if done else (0.0, 1.0)
        covariance = _correlation(self._known, self._known) + NOISE * np.eye(len(done))
        self._precision = np.linalg.inv(covariance)
        self._weights = self._precision @ ((aps - self._mean) / self._deviation)

    def predict(self, choices: Sequence[Params]) -> tuple[np.ndarray, np.ndarray]:
        """The AP expected of each choice, and its standard deviation."""
        near = _correlation(self._encode(choices), self._known)
        spread = np.sqrt(np.maximum(0.0, 1.0 - ((near @ self._precision) * near).sum(1)))
        return self._mean + self._deviation * (near @ self._weights), self._deviation * spread

    def _encode(self, choices: Sequence[Params]) -> np.ndarray:
        """One row per choice, one column per gene; -1 for no option."""
        rows = [active(params) for params in choices]
        codes = [[codes[row[name]] if name in row else -1 for name, codes in self._codes.items()] for row in rows]
        return np.array(codes).reshape(len(choices), len(self._codes))


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    genes = first.shape[1]
    same = (first[:, None] == second[None]).sum(-1)
    return (1 - INTERACTION) * same / genes + INTERACTION * DECAY ** (genes - same)
