"""Evaluators without training, to compare searches in seconds: measured policies, and synthetic landscapes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from detkds.config import HalvingConfig
from detkds.policy import Policy, Term
from detkds.policy_search.halving import apply_halving
from detkds.policy_search.result import HalvingGroup, Result, State
from detkds.registry import expression


class TableEvaluator:
    """Looks policies up.

    Args:
        table: AP (or a whole result) by canonical key, or a function of the policy that gives either.
        missing: the AP of a policy that is not in the table; None makes it ``FILTERED``.
        halving: stops losing candidates by the rung APs of their results; None gives results as they stand.
    """

    def __init__(
        self,
        table: Mapping[str, float | Result] | Callable[[Policy], float | Result],
        missing: float | None = None,
        halving: HalvingConfig | None = None,
    ) -> None:
        self._table = table
        self._missing = missing
        self._halving = halving
        self.calls: list[list[str]] = []

    def evaluate(self, policies: Sequence[Policy], groups: Sequence[HalvingGroup] = ()) -> list[Result]:
        """One result per policy; ``calls`` keeps the keys that were asked for."""
        self.calls.append([policy.key for policy in policies])
        results = [self._look_up(policy) for policy in policies]
        return results if self._halving is None else apply_halving(self._halving, policies, groups, results)

    def _look_up(self, policy: Policy) -> Result:
        if callable(self._table):
            measured: float | Result | None = self._table(policy)
        else:
            measured = self._table.get(policy.key, self._missing)
        if measured is None:
            return Result(State.FILTERED, reason="not in the table", trained=False)
        return measured if isinstance(measured, Result) else Result(State.COMPLETE, float(measured))


@dataclass(frozen=True)
class SyntheticLandscape:
    """A random fitness landscape over policies, the same on every machine.

    A term's quality is a sum of Gaussian main effects of its options (deviation 1) and of interactions of each pair
    of them (deviation ``interaction``), scaled to ``spread`` AP. A policy gains the root of the summed squares of
    its terms' positive qualities, plus their negative ones: terms help each other less than they add up.

    Attributes:
        seed: which landscape.
        base: AP of the plain student.
        spread: deviation of a term's quality, in AP.
        interaction: deviation of the pairwise effects relative to the main ones; 0 is separable.
        noise: deviation of what measuring adds, in AP; the same each time a policy is measured.
        rejected: fraction of policies that are filtered.
        filter: whether they are; without it their training fails.
        halving: stops losing candidates; the noise doubles with every rung before the end.
    """

    seed: int = 0
    base: float = 30.0
    spread: float = 0.75
    interaction: float = 0.6
    noise: float = 0.15
    rejected: float = 0.1
    filter: bool = True
    halving: HalvingConfig | None = None
    _effects: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def evaluate(self, policies: Sequence[Policy], groups: Sequence[HalvingGroup] = ()) -> list[Result]:
        """Measure policies: true AP plus noise, or filtered."""
        results = [self._measure(policy) for policy in policies]
        return results if self.halving is None else apply_halving(self.halving, policies, groups, results)

    def true_ap(self, policy: Policy) -> float:
        """The AP without noise."""
        qualities = [self.quality(term) for term in policy.canonical().terms]
        gain = math.sqrt(sum(quality**2 for quality in qualities if quality > 0))
        return self.base + gain + sum(quality for quality in qualities if quality < 0)

    def quality(self, term: Term) -> float:
        """What the term is worth alone, in AP; may be negative."""
        options = {getattr(piece, "stage", "transform"): expression(piece) for piece in term.transforms}
        genes = [f"{stage}={option}" for stage, option in sorted(options.items())]
        kind = expression(term.knowledge)
        genes = [f"{kind}:{gene}" for gene in (*genes, f"distance={expression(term.distance)}", f"w={term.weight:g}")]
        pairs = [f"{a}&{b}" for i, a in enumerate(genes) for b in genes[i + 1 :]] if self.interaction else []
        total = sum(map(self._normal, genes)) + self.interaction * sum(map(self._normal, pairs))
        return self.spread * total / math.sqrt(len(genes) + self.interaction**2 * len(pairs))

    def _measure(self, policy: Policy) -> Result:
        key = policy.key
        if self._generator(f"reject {key}").random() < self.rejected:
            state = State.FILTERED if self.filter else State.FAILED
            return Result(state, reason="synthetic: rejected", trained=not self.filter)
        count = len(self.halving.rungs) if self.halving is not None else 0
        draws = self._generator(f"noise {key}").standard_normal(count + 1)
        ap, *rungs = (self.true_ap(policy) + self.noise * 2**step * float(draw) for step, draw in enumerate(draws))
        return Result(State.COMPLETE, ap, {"AP50": 1.5 * ap}, rungs=tuple(reversed(rungs)))

    def _normal(self, text: str) -> float:
        if text not in self._effects:
            self._effects[text] = float(self._generator(text).standard_normal())
        return self._effects[text]

    def _generator(self, text: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(text.encode())])
