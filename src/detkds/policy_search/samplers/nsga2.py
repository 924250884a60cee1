"""Optuna's NSGA-II on AP alone, which is what the released code of the paper runs."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.samplers import NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy_search.samplers.optuna_sampler import OptunaSampler
from detkds.policy_search.space import Params, SearchSpace
from detkds.registry import SAMPLERS


@SAMPLERS.register("nsga2")
class GeneticAlgorithm(OptunaSampler):
    """NSGA-II: generations of completed trials; a child crosses two winners of tournaments, each gene may mutate.

    With one objective its sorting by dominance is sorting by AP. The released code leaves Optuna's population of 50
    as it is and spends 20 or 30 trials, so that no selection ever happens; ``nsga2(population=50)`` is that.

    Source: Deb et al. (2002), as in Optuna: crossover with probability 0.9, mutation of a gene with 1 / genes.

    Args:
        population: members of a generation, at least 2; None for the population of the configuration.

    Raises:
        ConfigError: the population is no whole number >= 2.
    """

    role = "child"

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        config: SearchConfig,
        initial: Sequence[Params] = (),
        *,
        population: int | None = None,
    ) -> None:
        whole = isinstance(population, int) and not isinstance(population, bool)
        if population is not None and (not whole or population < 2):
            raise ConfigError(f"nsga2: population: expected a whole number >= 2 or none, got {population!r}")
        super().__init__(space, seed, config, initial)
        self._population = config.population if population is None else population

    @property
    def population(self) -> int:
        """Members of a generation; the first is the initial population."""
        return self._population

    def optuna_sampler(self, seed: int) -> NSGAIISampler:
        """NSGA-II with its usual rates."""
        return NSGAIISampler(population_size=self.population, seed=seed)

    def prepare(self, study: Study, trial: FrozenTrial) -> None:
        """Note the trial's generation and its parents.

        Optuna orders parents by rank when it finds them, and by number when it reads them back; noted first, they are
        read back by every draw.
        """
        sampler = self.optuna_sampler(0)
        sampler.get_parent_population(study, sampler.get_trial_generation(study, trial))
