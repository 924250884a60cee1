"""Uniform random search without repetition: what every other sampler has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkds.policy_search.result import Trial
from detkds.policy_search.samplers.base import Proposal, SearchSampler
from detkds.policy_search.space import draw
from detkds.registry import SAMPLERS


@SAMPLERS.register("random")
class RandomSearch(SearchSampler):
    """Uniform choices from the space, each distinct loss at most once; the initial choices come first."""

    def propose(self, history: Sequence[Trial], number: int, rng: np.random.Generator) -> Proposal:
        """The next untried initial choice, or a random untried one."""
        seen = {trial.key for trial in history}
        for params in self.initial:
            if self.space.key(params) not in seen:
                return Proposal(dict(params), "init")
        params = self.unseen(seen, rng)
        return Proposal(draw(self.space, rng), "exhausted") if params is None else Proposal(params, "random")

    def batch_size(self, history: Sequence[Trial], chunk: int) -> int:
        """No proposal depends on a result, so a whole chunk may be measured at once."""
        return max(chunk, self.config.parallel)
