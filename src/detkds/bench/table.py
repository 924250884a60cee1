"""A measured table of candidates: search algorithms are compared on real trainings, in seconds and without a model.

Every policy of a small space was trained once, some of them with further seeds too. Policies that are the same loss up
to a constant share one training; any spelling of them is found by its canonical key.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from detkds.bench.evaluators import TableEvaluator
from detkds.bench.table_file import Measurement, TableFile, read_table
from detkds.config import HalvingConfig
from detkds.errors import ConfigError, DataError
from detkds.policy import Policy
from detkds.policy_search.result import Result, State
from detkds.policy_search.space import Option, Params, Space, points


@dataclass(frozen=True)
class MeasuredSpace:
    """The part of a space that was measured, for any sampler; a choice that was not measured is not legal.

    Attributes:
        whole: the space.
        keys: canonical keys of what was measured.
    """

    whole: Space
    keys: frozenset[str]

    @property
    def genes(self) -> Mapping[str, tuple[Option, ...]]:
        """As in the whole space."""
        return self.whole.genes

    def legal(self, params: Params) -> bool:
        """Whether the choice, or another one that is the same loss, was measured."""
        return self.whole.legal(params) and self.whole.key(params) in self.keys

    def key(self, params: Params) -> str:
        """As in the whole space."""
        return self.whole.key(params)

    def policy(self, params: Params) -> Policy:
        """As in the whole space."""
        return self.whole.policy(params)

    def describe(self) -> dict[str, Any]:
        """The whole space, and a digest of what was measured of it."""
        digest = hashlib.sha256("\n".join(sorted(self.keys)).encode()).hexdigest()
        return {"whole": self.whole.describe(), "measured": digest}


@dataclass(frozen=True)
class Effect:
    """What one gene does to AP, over all legal choices.

    Attributes:
        means: mean AP of the choices with each option, less the mean of all.
        share: fraction of the variance of AP that the gene explains alone, 0 to 1.
    """

    means: Mapping[Option, float]
    share: float


class MeasuredTable:
    """Trainings by policy.

    A search sees the measurement of one seed, the lowest (*the search's seed*), as it would in a run, and its regret is
    counted in the same measurements: the best policy is the one of highest AP with that seed. What other seeds measured
    tells the noise. (A mean over seeds, where only some policies have several, would favour those that have one: the
    luckiest of many keep their luck.)

    Attributes:
        header: the first line of the file: what was measured, how and where.
        rungs: epochs after which AP was measured; the last is the whole training.
        spaces: the whole space of every kind of knowledge.
        seed: the search's.
    """

    def __init__(self, file: TableFile) -> None:
        self.header, self.rungs, self.spaces = file.header, file.rungs, file.spaces
        self.seed = min((training.seed for training in file.measurements), default=0)
        self._by_key: dict[str, dict[str, dict[int, Measurement]]] = {name: {} for name in self.spaces}
        for training in file.measurements:
            seeds = self._by_key[training.knowledge].setdefault(
                self.spaces[training.knowledge].key(training.params), {}
            )
            seeds.setdefault(
                training.seed, training
            )  # duplicates that were trained both, by rules of another version: the first
        self._kind = {key: name for name, by_seed in self._by_key.items() for key in by_seed}
        self._truth = {name: self._final_aps(name) for name in self.spaces}

    @classmethod
    def load(cls, path: str | Path) -> MeasuredTable:
        """Read a table; see :mod:`detkds.bench.table_file` for its format.

        Raises:
            DataError: listing every fault of the file, or a kind of knowledge of which nothing was completed.
        """
        table = cls(read_table(path))
        empty = [name for name, truth in table._truth.items() if not truth]
        if empty:
            raise DataError(f"{path}: {name}: no training with seed {table.seed} was completed" for name in empty)
        return table

    def space(self, knowledge: str) -> MeasuredSpace:
        """What can be searched: everything measured with the search's seed, refused and failed candidates too."""
        keys = (key for key, seeds in self._by_key[knowledge].items() if self.seed in seeds)
        return MeasuredSpace(self.spaces[knowledge], frozenset(keys))

    def results(self, knowledge: str, rungs: Sequence[int] = ()) -> dict[str, Result]:
        """What a search is told of every policy, by canonical key: as measured with its seed, with AP at some rungs.

        Raises:
            ConfigError: a rung (in epochs) was not measured, or is the last one.
        """
        if not set(rungs) <= set(self.rungs[:-1]):
            raise ConfigError(f"rungs: expected epochs out of {list(self.rungs[:-1])}, got {list(rungs)}")
        by_key = self._by_key[knowledge]
        return {key: self._result(seeds[self.seed], rungs) for key, seeds in by_key.items() if self.seed in seeds}

    def evaluator(self, knowledge: str, halving: HalvingConfig | None = None) -> TableEvaluator:
        """Looks candidates up, and stops losing ones early where ``halving`` says when.

        Raises:
            ConfigError: a rung of ``halving`` was not measured.
        """
        return TableEvaluator(self.results(knowledge, halving.rungs if halving else ()), halving=halving)

    @cached_property
    def best(self) -> Mapping[str, Policy]:
        """The policy of highest AP of every kind of knowledge."""
        best = {name: max(truth, key=lambda key: truth[key]) for name, truth in self._truth.items()}
        return {name: self._policy(key) for name, key in best.items()}

    @cached_property
    def median(self) -> Mapping[str, Policy]:
        """The policy in the middle by AP (of an even number the lower one) of every kind of knowledge."""
        ranked = {name: sorted(truth, key=lambda key: truth[key]) for name, truth in self._truth.items()}
        return {name: self._policy(keys[(len(keys) - 1) // 2]) for name, keys in ranked.items()}

    def ap(self, policy: Policy) -> float:
        """AP at the last rung with the search's seed.

        Raises:
            ConfigError: it was not measured, or not completed.
        """
        kind = self._kind.get(policy.key)
        if kind is None or policy.key not in self._truth[kind]:
            raise ConfigError(f"policy: expected one that was measured, got {policy}")
        return self._truth[kind][policy.key]

    def regret(self, policy: Policy) -> float:
        """AP that the best policy of the same kind of knowledge has more; 0 for the best.

        Raises:
            ConfigError: the policy was not measured, or not completed.
        """
        ap = self.ap(policy)
        return max(self._truth[self._kind[policy.key]].values()) - ap

    @cached_property
    def noise(self) -> float:
        """Standard deviation between seeds of one policy at the last rung, without the shift common to all.

        nan where fewer than two policies were measured with several seeds.
        """
        differences: defaultdict[int, list[float]] = defaultdict(list)
        for by_key in self._by_key.values():
            for seeds in by_key.values():
                own = seeds.get(self.seed)
                for seed, training in seeds.items():
                    if own is not None and seed != self.seed and own.state is training.state is State.COMPLETE:
                        differences[seed].append(training.ap[-1] - own.ap[-1])
        squares = sum(float(np.sum((np.array(values) - np.mean(values)) ** 2)) for values in differences.values())
        freedom = sum(len(values) - 1 for values in differences.values())
        # A difference has the noise of two trainings.
        return math.sqrt(squares / freedom / 2) if freedom > 0 else math.nan

    def aps(self, knowledge: str) -> dict[str, tuple[float, ...]]:
        """AP at every rung with the search's seed, by canonical key, of what was completed."""
        return {key: self._by_key[knowledge][key][self.seed].ap for key in self._truth[knowledge]}

    def measurements(self, knowledge: str) -> list[Measurement]:
        """All trainings of distinct losses of one kind of knowledge."""
        return [training for seeds in self._by_key[knowledge].values() for training in seeds.values()]

    def rank_correlation(self, knowledge: str) -> dict[tuple[int, int], float]:
        """Kendall's tau between AP at each two rungs (in epochs) of the same trainings."""
        columns = np.array(list(self.aps(knowledge).values())).T
        pairs = combinations(range(len(self.rungs)), 2)
        return {(self.rungs[a], self.rungs[b]): kendall(columns[a], columns[b]) for a, b in pairs}

    def effects(self, knowledge: str) -> dict[str, Effect]:
        """The main effect of every gene, over all legal choices that were completed, as they are written."""
        space, truth = self.space(knowledge), self._truth[knowledge]
        chosen = [params for params in points(space) if space.key(params) in truth]
        values = np.array([truth[space.key(params)] for params in chosen])
        effects = {}
        for gene in space.genes:
            by_option: defaultdict[Option, list[float]] = defaultdict(list)
            for params, value in zip(chosen, values - values.mean(), strict=True):
                by_option[params[gene]].append(value)
            means = {option: float(np.mean(by_option[option])) for option in space.genes[gene] if by_option[option]}
            between = sum(len(by_option[option]) * mean**2 for option, mean in means.items())
            effects[gene] = Effect(means, float(between / max(np.sum((values - values.mean()) ** 2), 1e-12)))
        return effects

    def _result(self, training: Measurement, rungs: Sequence[int]) -> Result:
        if training.state is not State.COMPLETE:
            return Result(
                training.state, reason=training.reason, trained=training.state is State.FAILED, seconds=training.seconds
            )
        metrics, epochs = {"AP50": training.ap50[-1]}, float(self.rungs[-1])
        reached = tuple(training.ap[self.rungs.index(rung)] for rung in rungs)
        return Result(State.COMPLETE, training.ap[-1], metrics, seconds=training.seconds, rungs=reached, epochs=epochs)

    def _policy(self, key: str) -> Policy:
        training = next(iter(self._by_key[self._kind[key]][key].values()))
        return self.spaces[training.knowledge].policy(training.params)

    def _final_aps(self, knowledge: str) -> dict[str, float]:
        """AP at the last rung with the search's seed, by key, of what was completed."""
        seeds = {key: by_seed.get(self.seed) for key, by_seed in self._by_key[knowledge].items()}
        return {
            key: training.ap[-1]
            for key, training in seeds.items()
            if training is not None and training.state is State.COMPLETE
        }


def kendall(first: Any, second: Any) -> float:
    """Kendall's tau-b of two lists of numbers; nan where one of them is constant or shorter than 2."""
    return float(stats.kendalltau(first, second).statistic) if len(first) > 1 else math.nan  # type: ignore[attr-defined]
