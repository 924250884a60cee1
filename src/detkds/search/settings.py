"""How a search is run: algorithm parameters and budgets, counted in candidate trainings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from detkds.errors import ConfigError, Faults

SMALL_BUDGET = 60
"""Trainings per study up to which a small population is the better one (measured on synthetic landscapes)."""


@dataclass(frozen=True)
class SearchSettings:
    """Parameters of divide-and-conquer evolution (Algorithm 1 of the paper).

    Attributes:
        sampler: a registered sampler, with its own arguments where wanted, as in ``mcts(c=1.41, amaf=false)``; the
            combination stage uses ``weights`` where this is ``evolution``.
        population: P, the members kept.
        sample_ratio: r, the fraction of members that parents may be chosen from in one iteration.
        parents: k, the best of that sample, one of which is mutated.
        newcomer: whether a random newcomer competes with the mutant: ``never``, ``always`` or ``every:4``.
        crossover: probability of crossing two parents before mutation (single stage; the combination always does).
        single_budget: candidate trainings for each kind of knowledge.
        combination_budget: candidate trainings for the combination.
        divide: whether every kind of knowledge is searched alone first; else all together in one joint space, with as
            many trainings in all.
        parallel: iterations of one study that run side by side.
        cohort: candidates of one study that are compared with one another where losing ones stop early; at most as many
            as the evaluator trains side by side.
        initial_chunk: members of the initial population that are measured in one round.
        finalists: how many of the best distinct policies are handed to the final comparison.

    Raises:
        ConfigError: listing every fault.
    """

    sampler: str = "evolution"
    population: int = 8
    sample_ratio: float = 0.9
    parents: int = 3
    newcomer: str = "never"
    crossover: float = 0.0
    single_budget: int = 20
    combination_budget: int = 40
    divide: bool = True
    parallel: int = 1
    initial_chunk: int = 4
    cohort: int = 8
    finalists: int = 3

    def __post_init__(self) -> None:
        faults = Faults("search")
        for name, least in (("population", 2), ("parents", 1), ("single_budget", 1), ("combination_budget", 0),
                            ("parallel", 1), ("initial_chunk", 1), ("cohort", 1),
                            ("finalists", 1)):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                faults.add(f"{name}: expected a whole number >= {least}, got {value!r}")
        if not 0 < self.sample_ratio <= 1:
            faults.add(f"sample_ratio: expected a number above 0 and at most 1, got {self.sample_ratio!r}")
        if not 0 <= self.crossover <= 1:
            faults.add(f"crossover: expected a probability, got {self.crossover!r}")
        kind, _, period = str(self.newcomer).partition(":")
        if (kind, period) not in (("never", ""), ("always", "")) and not (
            kind == "every" and period.isdecimal() and int(period) > 0
        ):
            faults.add(f"newcomer: expected 'never', 'always' or 'every:<number>', got {self.newcomer!r}")
        if not isinstance(self.divide, bool):
            faults.add(f"divide: expected true or false, got {self.divide!r}")
        faults.raise_as(ConfigError)

    def trainings(self, kinds: int) -> int:
        """Candidate trainings of a whole search; with one kind of knowledge there is nothing to combine."""
        return self.single_budget * kinds + (self.combination_budget if kinds > 1 else 0)

    def has_newcomer(self, iteration: int) -> bool:
        """Whether iteration ``iteration`` (from 0) evaluates a random newcomer as well."""
        kind, _, period = self.newcomer.partition(":")
        return kind == "always" or (kind == "every" and (iteration + 1) % int(period) == 0)

    @classmethod
    def paper(cls) -> SearchSettings:
        """The paper's settings (section 4.1): P = 20, T = 40, r = 0.9, k = 5, a newcomer in every iteration.

        An iteration then costs two trainings: P + 2 T per kind of knowledge, P + T for the combination.
        """
        return cls(population=20, parents=5, newcomer="always", single_budget=100, combination_budget=60)

    @classmethod
    def for_budget(cls, trainings: int, knowledge: int, **changes: Any) -> SearchSettings:
        """Settings for a total number of trainings: equal shares for every kind and a double one for the combination.

        Up to 60 trainings per study the population is small (8, k = 3), above it the paper's (20, k = 5).
        """
        shares = knowledge + (2 if knowledge > 1 else 0)
        single = trainings // shares if shares else 0
        if single < 1:
            raise ConfigError(f"search: expected a budget of at least {shares} trainings, got {trainings}")
        size = {"population": 8, "parents": 3} if single <= SMALL_BUDGET else {"population": 20, "parents": 5}
        rest = trainings - single * knowledge if knowledge > 1 else 0
        return cls(**{**size, "single_budget": single, "combination_budget": rest, **changes})

    def algorithm(self) -> dict[str, Any]:
        """The parameters that a stored study keeps; budgets and what runs side by side may change on resume.

        A divided search and a joint one have studies of other names, so a store may hold both.
        """
        free = ("single_budget", "combination_budget", "divide", "finalists", "parallel", "initial_chunk", "cohort")
        return {name: value for name, value in asdict(self).items() if name not in free}
