"""A guess of AP from the trials so far: what each option of each gene adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkds.search.joint import active
from detkds.search.result import State
from detkds.search.samplers.base import Entry
from detkds.search.space import Params, SearchSpace

_PENALTY = 1.0


class Surrogate:
    """Ridge regression of AP on the options of the genes, one indicator each (main effects, no interactions).

    In a joint space the genes of a term that is left out are left out too.
    The penalty of 1 lets an option that was tried once speak half as loud as it would alone.

    Args:
        space: whose genes are the variables.
        history: trials; those that were completed are learned from.
    """

    def __init__(self, space: SearchSpace, history: Sequence[Entry]) -> None:
        columns = [(name, option) for name, options in space.genes.items() for option in options]
        self._column = {pair: i for i, pair in enumerate(columns)}
        done = [entry for entry in history if entry.state is State.COMPLETE]
        rows = np.array([self._encode(entry.params) for entry in done]).reshape(len(done), len(columns))
        aps = np.array([entry.fitness[1] for entry in done])
        self._mean = float(aps.mean()) if done else 0.0
        self._effects = np.linalg.solve(rows.T @ rows + _PENALTY * np.eye(len(columns)), rows.T @ (aps - self._mean))

    def predict(self, params: Params) -> float:
        """The AP expected of a choice."""
        return self._mean + float(self._encode(params) @ self._effects)

    def _encode(self, params: Params) -> np.ndarray:
        row = np.zeros(len(self._column))
        for pair in active(params).items():
            row[self._column[pair]] = 1.0
        return row
