"""Between search and comparison: the best candidates again, longer and with other seeds, still without the test images.

The winner of a long search on a short proxy is partly the luckiest candidate, and a short training rewards imitation
more than a long one. So the best few are trained at the full budget on the proxy's images and measured on the
validation images, with seeds the search did not use; the best mean is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detkds.policy import Policy
from detkds.policy_search.divide_and_conquer import COMBINATION, SearchOutcome
from detkds.policy_search.result import Trial, rank
from detkds.runs.plan import CONFIRMATION, Plan
from detkds.statistics import mean_and_spread
from detkds.tasks.scheduler import Scheduler
from detkds.tasks.task import Task


@dataclass(frozen=True)
class Confirmed:
    """A candidate of the search, and its AP by seed at the full budget on the validation images."""

    record: Trial
    ap: dict[int, float]

    @property
    def policy(self) -> Policy:
        """With absolute weights."""
        return self.record.best_policy

    @property
    def mean(self) -> float:
        """Over the seeds; the proxy's AP where it was not trained again."""
        return mean_and_spread(list(self.ap.values()))[0] if self.ap else self.record.ap or 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"trial": self.record.place, "policy": str(self.policy), "proxy_ap": self.record.ap, "ap": self.ap}


def to_confirm(outcome: SearchOutcome, count: int) -> list[Trial]:
    """The best distinct candidates, half of them single terms: a long training may want less than a short one.

    Where there are too few of one half, the other fills up.
    """
    ranked = rank(outcome.trials)
    singles = [record for record in ranked if record.study != COMBINATION][: count // 2]
    names = {record.place for record in singles}
    others = [record for record in ranked if record.place not in names]
    chosen = others[: count - len(singles)] + singles
    return sorted(chosen, key=ranked.index)


def confirm(plan: Plan, scheduler: Scheduler, outcome: SearchOutcome) -> list[Confirmed]:
    """The best candidates, best mean first; at least as many as ``final.top``."""
    search = plan.config.search
    if search.confirm == 0:
        return [Confirmed(record, {}) for record in outcome.finalists]
    records = to_confirm(outcome, max(search.confirm, plan.config.final.top))
    scheduler.progress.stage(CONFIRMATION, len(records) * search.confirm_seeds)
    policies = {record.place: record.best_policy for record in records}
    aps = at_full_budget(plan, scheduler, policies, search.confirm_seeds)
    confirmed = [Confirmed(record, aps[record.place]) for record in records if aps[record.place]]
    if not confirmed:
        return [Confirmed(record, {}) for record in outcome.finalists]
    return sorted(confirmed, key=lambda candidate: candidate.mean, reverse=True)


def at_full_budget(
    plan: Plan, scheduler: Scheduler, policies: Mapping[str, Policy], seeds: int
) -> dict[str, dict[int, float]]:
    """AP (0-100) by policy's name and seed on the validation images, after the full budget on the proxy's images.

    Failed trainings are left out.

    Args:
        policies: with absolute weights, by name.
        seeds: how many, of those that follow the search's own.
    """
    numbers = [plan.config.search.seed + 1 + index for index in range(seeds)]
    tasks = {
        (name, seed): Task(CONFIRMATION, policy, seed, label=name)
        for seed in numbers
        for name, policy in policies.items()
    }
    aps: dict[str, dict[int, float]] = {name: {} for name in policies}
    for (name, seed), result in zip(tasks, scheduler.run(list(tasks.values())), strict=True):
        if result.ap is not None:
            aps[name][seed] = result.ap
    return aps
