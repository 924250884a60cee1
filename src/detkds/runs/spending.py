"""What a search costs in units of one full training, and how a cost that was asked for is spent."""

from __future__ import annotations

from dataclasses import replace

from detkds.policy_search.halving import expected_shares
from detkds.runs.plan import COMPARISON, CONFIRMATION, SEARCH, Plan

RACE_SHARE = 0.35
"""Of the cost that is asked for, what the race may take."""


def unit_costs(plan: Plan) -> tuple[float, float]:
    """The cost of a candidate, of which losing ones stop early, and of a training of the race, in full trainings."""
    steps = {name: plan.setups[name].steps(epochs=plan.setups[name].config.epochs) for name in plan.setups}
    shares = expected_shares(plan.halving, plan.proxy_config.epochs) if plan.halving is not None else (1.0,)
    candidate = steps[SEARCH] * sum(shares) / len(shares)
    return candidate / steps[COMPARISON], steps[CONFIRMATION] / steps[COMPARISON]


def search_cost(plan: Plan) -> float:
    """Search and race, in full trainings."""
    candidate, racing = unit_costs(plan)
    return plan.config.search.trainings(len(plan.spaces)) * candidate + sum(plan.config.search.race) * racing


def within_budget(plan: Plan) -> Plan:
    """The plan with candidates and race that cost ``search.budget``, where that is set."""
    search = plan.config.search
    if search.budget is None:
        return plan
    candidate, racing = unit_costs(plan)
    cost = float(search.budget.removesuffix("x"))
    race = race_of(int(RACE_SHARE * cost / racing))
    candidates = max(1, int((cost - sum(race) * racing) / candidate))
    changed = search.model_copy(update={"candidates": candidates, "race": race})
    return replace(plan, config=plan.config.model_copy(update={"search": changed}))


def race_of(trainings: int) -> tuple[int, ...]:
    """The broadest race of at most this many trainings: in each round three of seven go on, and two to the last.

    >>> race_of(6), race_of(12), race_of(4)
    ((4, 2), (7, 3, 2), (2, 2))
    """
    best: tuple[int, ...] = ()
    for first in range(1, trainings + 1):
        rounds = [first]
        while rounds[-1] > 2:
            rounds.append(max(2, round(3 * rounds[-1] / 7)))
        if sum(rounds) <= trainings:
            best = (*rounds, *[2] * ((trainings - sum(rounds)) // 2 if first > 1 else 0))
    return best
