"""Between search and comparison: the best candidates again, longer and with other seeds, still without the test images.

The winner of a long search on a short proxy is partly the luckiest candidate, and a short training rewards imitation
more than a long one. So the best few are trained at the full budget on the proxy's images and measured on the
validation images, with seeds the search did not use; the best mean is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkds.policy import Policy
from detkds.runs.comparison import Contender, Ledger
from detkds.runs.plan import Plan
from detkds.runs.verdict import mean_and_spread
from detkds.search.divide_and_conquer import COMBINATION, SearchOutcome
from detkds.search.result import Trial, rank
from detkds.training.loop import OnEpoch


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


def confirm(
    plan: Plan,
    folder: Path,
    outcome: SearchOutcome,
    *,
    on_seed: Callable[[int, int], None] | None = None,
    on_result: Callable[[str, int, float | None], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[Confirmed]:
    """The best candidates, best mean first; at least as many as ``final.top``. Finished trainings are not repeated.

    Callbacks are those of :func:`detkds.runs.comparison.compare`.
    """
    search = plan.config.search
    if search.confirm == 0:
        return [Confirmed(record, {}) for record in outcome.finalists]
    records = to_confirm(outcome, max(search.confirm, plan.config.final.top))
    found = at_full_budget(
        plan,
        Ledger(folder / "confirmation.jsonl", states=folder / "states"),
        {record.place: record.best_policy for record in records},
        search.confirm_seeds,
        on_seed=on_seed,
        on_result=on_result,
        on_epoch=on_epoch,
    )
    confirmed = [Confirmed(record, found[record.place]) for record in records if found[record.place]]
    if not confirmed:
        return [Confirmed(record, {}) for record in outcome.finalists]
    return sorted(confirmed, key=lambda one: one.mean, reverse=True)


def at_full_budget(
    plan: Plan,
    ledger: Ledger,
    policies: Mapping[str, Policy],
    seeds: int,
    *,
    on_seed: Callable[[int, int], None] | None = None,
    on_result: Callable[[str, int, float | None], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> dict[str, dict[int, float]]:
    """AP (0-100) by policy's name and seed on the validation images, after the full budget on the proxy's images.

    Failed trainings are left out. Callbacks are those of :func:`detkds.runs.comparison.compare`.

    Args:
        policies: with absolute weights, by name.
        seeds: how many, of those that follow the search's own.
    """
    setting = plan.setting(plan.proxy_data, plan.validation_data, plan.config.train)
    entries = [Contender(name, "searched", policy) for name, policy in policies.items()]
    numbers = [plan.config.search.seed + 1 + index for index in range(seeds)]
    size = plan.config.proxy.population
    kept = ledger.train(setting, entries, numbers, size, on_seed=on_seed, on_result=on_result, on_epoch=on_epoch)
    found: dict[str, dict[int, float]] = {name: {} for name in policies}
    for line in kept:
        if line["metrics"] and line["seed"] in numbers:
            found[line["name"]][line["seed"]] = 100 * line["metrics"]["ap"]
    return found
