"""A guess of AP over whole policies from the trials so far, and what the portfolio prefers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import norm

from detkds.policy import Policy, Term
from detkds.policy_search.result import State, Trial
from detkds.policy_search.samplers.surrogate import GaussianProcess
from detkds.registry import expression

DECAY = 0.5
"""What is left of the likeness of two terms with each of transforms and distance that differs."""

LENGTH = 1.0
"""How far weights may differ, in factors of ten, for the likeness of two terms to fall to exp(-1/2)."""

NOISE = 0.1
"""Variance of what measuring adds, relative to that of AP."""


class PolicySurrogate(GaussianProcess):
    """A Gaussian process over policies as sets of terms.

    Two terms of one kind of knowledge are alike by ``DECAY`` for each of transforms and distance that differs, times
    ``exp(-d^2 / 2 LENGTH^2)`` for weights that differ by d factors of ten; terms of different kinds are not. Two
    policies correlate by the sum of this over all pairs of their terms, divided by the root of both sums with
    themselves (a normalized set kernel); the plain student's policy is alike itself alone. Where losing candidates stop
    early, all count by their AP at the first rung, which all have. Those that were refused count as the worst.

    Source: set kernels, Gaertner et al., Multi-Instance Kernels (ICML 2002).

    Args:
        history: the trials.
    """

    def __init__(self, history: Sequence[Trial]) -> None:
        measured = [trial for trial in history if trial.state in (State.COMPLETE, State.PRUNED)]
        bad = [trial for trial in history if trial.state is State.FILTERED] if measured else []
        aps = [trial.rungs[0] if trial.rungs else float(trial.fitness[1]) for trial in measured]
        aps += [min(aps, default=0.0)] * len(bad)
        self.best = max(aps, default=0.0)
        running = [trial.policy for trial in history if trial.state is None]
        super().__init__(correlation, NOISE, [trial.policy for trial in measured + bad], aps, running)

    def expected_improvement(self, policies: Sequence[Policy]) -> np.ndarray:
        """How much each is expected to stand above the best so far."""
        expected, spread = self.guess(policies)
        spread = np.maximum(spread, 1e-9)
        z = (expected - self.best) / spread
        return spread * (z * norm.cdf(z) + norm.pdf(z))


def correlation(first: Sequence[Policy], second: Sequence[Policy]) -> np.ndarray:
    """How alike policies are, 0 to 1; shape (first, second)."""
    own = [math.sqrt(_overlap(policy, policy)) for policy in first]
    other = [math.sqrt(_overlap(policy, policy)) for policy in second]
    rows = [
        [
            _overlap(a, b) / (own[i] * other[j]) if len(a) and len(b) else float(len(a) == len(b))
            for j, b in enumerate(second)
        ]
        for i, a in enumerate(first)
    ]
    return np.array(rows).reshape(len(first), len(second))


def _overlap(first: Policy, second: Policy) -> float:
    return sum(likeness(a, b) for a in first for b in second)


def likeness(first: Term, second: Term) -> float:
    """How alike two terms are, 0 to 1."""
    if first.knowledge.name != second.knowledge.name:
        return 0.0
    differ = (first.transforms != second.transforms) + (first.distance != second.distance)
    if first.weighting != second.weighting:  # weights of different meanings say nothing about each other
        return DECAY ** (differ + 1)
    apart = math.log10(max(first.weight, 1e-9) / max(second.weight, 1e-9)) / LENGTH
    return DECAY**differ * math.exp(-(apart**2) / 2)


def preference(policies: Sequence[Policy], portfolio: Sequence[Policy]) -> np.ndarray:
    """How much the pieces of each policy are preferred by a portfolio, best first: relative to the most preferred.

    The mean over its pieces of the logarithm of their Laplace-smoothed frequency among the portfolio's policies, each
    weighted by 1 / rank.
    """
    counts: Counter[str] = Counter()
    for place, policy in enumerate(portfolio, start=1):
        for piece in _pieces(policy):
            counts[piece] += 1 / place  # type: ignore[assignment]
    total = sum(counts.values()) + len(counts) + 1
    logs = [
        float(np.mean([math.log((counts[piece] + 1) / total) for piece in _pieces(policy)] or [0.0]))
        for policy in policies
    ]
    return np.exp(np.array(logs) - max(logs, default=0.0))


def _pieces(policy: Policy) -> Iterator[str]:
    """Kind of knowledge with each distance and transform of a policy."""
    for term in policy:
        for piece in (*term.transforms, term.distance):
            yield f"{term.knowledge.name} {expression(piece)}"
