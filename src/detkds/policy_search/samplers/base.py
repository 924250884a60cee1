"""What every sampler shares: a proposal is a pure function of the seed, its number and the trials before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from detkds.config import SearchConfig
from detkds.policy_search.result import Trial
from detkds.policy_search.space import Option, Params, SearchSpace, draw, points

REDRAWS = 20
"""How often a choice that was already made is drawn anew before the untried ones are listed (Algorithm 1, A1)."""

_ALGORITHM = {"sampler", "population", "sample_ratio", "parents", "newcomer"}


@dataclass(frozen=True)
class Proposal:
    """A choice, what it was made as, and from which trials.

    Roles: ``init``, ``mutant``, ``newcomer``, ``random`` and others of single samplers; ``exhausted`` where every legal
    choice was already made.
    """

    params: dict[str, Option]
    role: str
    iteration: int = 0
    parents: tuple[int, ...] = ()


class SearchSampler(ABC):
    """Base of the samplers: the proposal for trial n is a pure function of seed, n and the trials before n.

    So a search that was killed continues as if it had not been, in whichever process. What a sampler takes besides
    these arguments is keyword-only; a configuration gives it as in ``mcts(c=1.41, amaf=false)``.

    Args:
        space: what to propose from.
        seed: a whole number >= 0.
        config: algorithm parameters.
        initial: choices to begin with.
    """

    uses_budget: ClassVar[bool] = False
    """Whether proposals depend on the budget, so that a longer search does not begin with the shorter one's trials."""

    def __init__(self, space: SearchSpace, seed: int, config: SearchConfig, initial: Sequence[Params] = ()) -> None:
        self.space = space
        self.seed = seed
        self.config = config
        self.initial = tuple(dict(params) for params in initial)

    @abstractmethod
    def propose(self, history: Sequence[Trial], number: int, rng: np.random.Generator) -> Proposal:
        """Choose the next candidate, given all earlier trials in the order of their numbers.

        Those of the same wave are seen as running, whether or not they were measured since.
        """

    def batch_size(self, history: Sequence[Trial], chunk: int) -> int:
        """How many candidates may be proposed now, before any of their results is known.

        ``chunk`` is how many are wanted where no proposal depends on a result.
        """
        return self.config.parallel

    def describe(self) -> dict[str, Any]:
        """Plain data that two samplers share exactly when they propose the same, whatever their budgets are."""
        return {
            "seed": self.seed,
            "sampler": type(self).__name__,
            "settings": self.config.model_dump(mode="json", include=_ALGORITHM),
            "space": self.space.describe(),
            "initial": [self.space.key(params) for params in self.initial],
        }

    def unseen(self, seen: set[str], rng: np.random.Generator) -> dict[str, Option] | None:
        """A random legal choice whose key is not in ``seen``; None where there is none left."""
        for _ in range(REDRAWS):
            params = draw(self.space, rng)
            if self.space.key(params) not in seen:
                return params
        every = list(points(self.space))
        return next((every[i] for i in rng.permutation(len(every)) if self.space.key(every[i]) not in seen), None)
