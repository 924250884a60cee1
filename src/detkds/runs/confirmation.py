"""Between search and comparison: a race of the best candidates at the full budget, still without the test images.

The winner of a search on a short proxy is partly the luckiest candidate, and a short training rewards imitation more
than a long one. So the best few, hand-designed ones among them, are trained at the full budget on the proxy's images
and measured on the validation images, with seeds the search did not use: one seed a round, and fewer candidates in
each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detkds.policy import Policy
from detkds.policy_search.divide_and_conquer import SearchOutcome
from detkds.policy_search.result import Trial, rank
from detkds.policy_search.whole import PORTFOLIO
from detkds.runs.plan import CONFIRMATION, Plan
from detkds.statistics import mean_and_spread
from detkds.tasks.scheduler import Scheduler
from detkds.tasks.task import Task

AGREEMENT = 0.6
"""Correlation of AP on the proxy and at the full budget among the candidates of a race."""

NOISE = 0.75
"""Standard deviation, in AP, of what a training differs by beyond its policy's and its seed's mean."""


@dataclass(frozen=True)
class Confirmed:
    """A candidate of the search, and its AP by seed at the full budget on the validation images.

    Attributes:
        expected: the AP that is expected of it by what the proxy and the race say, see :func:`posterior_means`.
    """

    record: Trial
    ap: dict[int, float] = field(default_factory=dict)
    expected: float = 0.0

    @property
    def policy(self) -> Policy:
        """With absolute weights."""
        return self.record.best_policy

    @property
    def hand_designed(self) -> bool:
        """Whether it is of the portfolio."""
        return self.record.role == PORTFOLIO and len(self.policy) > 0

    @property
    def mean(self) -> float:
        """Over the seeds; the proxy's AP where it was not trained again."""
        return mean_and_spread(list(self.ap.values()))[0] if self.ap else self.record.ap or 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "trial": self.record.place,
            "policy": str(self.policy),
            "name": self.record.policy.name,
            "hand_designed": self.hand_designed,
            "proxy_ap": self.record.ap,
            "ap": self.ap,
            "expected": self.expected,
        }


def entrants(outcome: SearchOutcome, count: int) -> list[Trial]:
    """Who begins a race: the best distinct candidates, a third of them, rounded up, hand-designed where there are so
    many.
    """
    ranked = rank(outcome.trials, stopped=True)
    hand = [trial for trial in ranked if Confirmed(trial).hand_designed][: math.ceil(count / 3)]
    places = {trial.place for trial in hand}
    others = [trial for trial in ranked if trial.place not in places]
    return sorted(others[: count - len(hand)] + hand, key=ranked.index)


def confirm(plan: Plan, scheduler: Scheduler, outcome: SearchOutcome) -> list[Confirmed]:
    """Race the best candidates; those that got furthest first, and among them the most promising first.

    After each round the most promising ones by :func:`posterior_means` go on to the next, with another seed. Without a
    race, or where no training succeeded, the order is the proxy's.
    """
    rounds, seed = plan.config.search.race, plan.config.search.seed
    racing = [Confirmed(trial, {}, trial.ap or 0.0) for trial in outcome.finalists]
    if not rounds:
        return racing
    alive = [Confirmed(trial) for trial in entrants(outcome, max(rounds[0], plan.config.final.top))]
    scheduler.progress.stage(CONFIRMATION, sum(rounds))
    out: list[Confirmed] = []
    for number, size in enumerate(rounds, start=1):
        alive, left = alive[:size] if number > 1 else alive, alive[size:] if number > 1 else []
        out = left + out
        policies = {racer.record.place: racer.policy for racer in alive}
        aps = at_full_budget(plan, scheduler, policies, [seed + number])
        alive = [
            Confirmed(racer.record, {**racer.ap, **measured})
            for racer in alive
            if (measured := aps[racer.record.place])
        ]
        expected = posterior_means([racer.record.ap or 0.0 for racer in alive], [racer.ap for racer in alive])
        alive = sorted(
            (Confirmed(racer.record, racer.ap, value) for racer, value in zip(alive, expected, strict=True)),
            key=lambda racer: racer.expected,
            reverse=True,
        )
    return [*alive, *out] or racing


def posterior_means(proxy: Sequence[float], full: Sequence[Mapping[int, float]]) -> list[float]:
    """The AP at the full budget that is expected of each candidate, all of which were trained with the same seeds.

    The proxy gives the prior: normal about the candidates' common mean plus :data:`AGREEMENT` times their spread times
    the proxy's standard score. With mean m0 and variance v0 of the prior, and n seeds of noise :data:`NOISE`, it is
    ``(m0 s^2 / n + mean v0) / (s^2 / n + v0)``.

    >>> [round(value, 2) for value in posterior_means([10.0, 20.0], [{0: 30.0}, {0: 30.0}])]
    [29.81, 30.19]
    """
    means = np.array([mean_and_spread(list(aps.values()))[0] for aps in full])
    if len(means) < 2:
        return [float(mean) for mean in means]
    seeds = min(len(aps) for aps in full)
    noise = NOISE**2 / seeds
    variance = max(float(means.var(ddof=1)) - noise, noise)  # of the candidates, beyond what their noise gives
    proxy_aps = np.array(proxy)
    scores = (proxy_aps - proxy_aps.mean()) / (proxy_aps.std(ddof=1) or 1.0)
    prior = means.mean() + AGREEMENT * math.sqrt(variance) * scores
    rest = variance * (1 - AGREEMENT**2)
    return [float(value) for value in (prior * noise + means * rest) / (noise + rest)]


def at_full_budget(
    plan: Plan, scheduler: Scheduler, policies: Mapping[str, Policy], seeds: Sequence[int]
) -> dict[str, dict[int, float]]:
    """AP (0-100) by policy's name and seed on the validation images, after the full budget on the proxy's images.

    Failed trainings are left out.

    Args:
        policies: with absolute weights, by name.
        seeds: others than the search's own.
    """
    tasks = {
        (name, seed): Task(CONFIRMATION, policy, seed, label=name)
        for seed in seeds
        for name, policy in policies.items()
    }
    aps: dict[str, dict[int, float]] = {name: {} for name in policies}
    for (name, seed), result in zip(tasks, scheduler.run(list(tasks.values())), strict=True):
        if result.ap is not None:
            aps[name][seed] = result.ap
    return aps
