"""How well does the proxy rank? Random policies on the proxy and at the full budget, and how far the two orders agree.

The policies are drawn at random from the run's spaces, equally many of every kind of knowledge, and measured on the
proxy as the search would measure them. Each is then trained at the full budget as the search's best are confirmed: on
the proxy's images, with other seeds than the search's, and measured on the validation images. No test image is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detkds.config import RunConfig
from detkds.report.agreement import PICTURE, RECORD, agreement_plot
from detkds.runs.comparison import Ledger
from detkds.runs.confirmation import at_full_budget
from detkds.runs.datasets import describe_data
from detkds.runs.evaluators import open_evaluator
from detkds.runs.folder import open_folder, write_text
from detkds.runs.listening import Listener, Meter
from detkds.runs.pipeline import clocked, full_budget_hooks, ready_teacher
from detkds.runs.plan import Plan, make_plan
from detkds.search.divide_and_conquer import Event, make_sampler, run_side_by_side, study_seed
from detkds.search.result import SearchError, State, Trial
from detkds.search.storage import open_storage
from detkds.search.study import SearchStudy

LEAST = 3
"""Policies without which there is no order to speak of."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b between two measurements of the same policies, with its 95% bootstrap interval over policies.

    All are nan where one of the measurements does not tell the policies apart.
    """

    tau: float
    low: float
    high: float


def agreement(first: Sequence[float], second: Sequence[float]) -> Agreement:
    """Kendall's tau-b, and the percentile interval of resampled policies, the same each time."""
    ours, theirs = (np.sign(np.subtract.outer(values, values)) for values in (first, second))

    def tau(chosen: np.ndarray) -> float:
        a, b = ours[np.ix_(chosen, chosen)], theirs[np.ix_(chosen, chosen)]
        untied = math.sqrt(np.abs(a).sum() * np.abs(b).sum())
        return float((a * b).sum()) / untied if untied else math.nan

    count = len(first)
    taus = np.array([tau(draw) for draw in np.random.default_rng(0).integers(count, size=(RESAMPLES, count))])
    usable = taus[np.isfinite(taus)]  # a draw of one policy alone has no order
    low, high = np.quantile(usable, [0.025, 0.975]) if len(usable) else (math.nan, math.nan)
    return Agreement(tau(np.arange(count)), float(low), float(high))


def check_proxy(config: RunConfig, policies: int, seeds: int, listener: Listener) -> dict[str, Any]:
    """Measure ``policies`` random policies with both budgets, and say how far the two orders agree.

    What was measured is kept in ``proxy_check`` in the run folder and not measured again; a check of more policies
    or seeds adds to it.

    Args:
        policies: candidate trainings on the proxy, shared out equally among the kinds of knowledge.
        seeds: trainings of each policy at the full budget.

    Returns:
        What ``proxy_check.json`` holds.

    Raises:
        UserError: every fault in the configuration, or fewer than three policies could be measured.
    """
    plan = make_plan(config)
    with open_folder(config) as folder:
        ready_teacher(plan, folder, listener)
        place = folder / "proxy_check"
        place.mkdir(exist_ok=True)
        with clocked(folder, "proxy check"):
            records = _on_the_proxy(plan, folder, place, policies, listener)
            done = [record for record in records if record.state is State.COMPLETE]
            hooks = full_budget_hooks(plan, listener, "full budget", len(done), seeds)
            wanted = {record.place: record.best_policy for record in done}
            full = at_full_budget(plan, Ledger(place / "full.jsonl", folder / "states"), wanted, seeds, **hooks)
        check = _summed_up(plan, records, full, seeds)
        write_text(folder / RECORD, json.dumps(check, indent=1, allow_nan=False))
        agreement_plot(check, folder / PICTURE)
    return check


def _on_the_proxy(plan: Plan, folder: Path, place: Path, policies: int, listener: Listener) -> list[Trial]:
    """Random trials of every kind of knowledge, trained to the end also where the search would stop losing ones."""
    listener.stage("proxy", policies)
    meter = Meter(listener, plan.proxy_config.epochs, plan.config.proxy.population)
    storage, seed = open_storage(place), plan.config.search.seed
    each, more = divmod(policies, len(plan.spaces))
    studies = []
    for index, (kind, space) in enumerate(plan.spaces.items()):
        sampler = make_sampler("random", space, study_seed(seed, f"proxy check {kind}"), plan.config.search)
        studies.append(SearchStudy(kind, sampler, storage, each + (index < more)))

    def on_event(event: Event) -> None:
        record = event.trial
        if event.kind == "round":
            meter.begin(len(event.candidates))
        elif record is not None:
            value = f"AP {record.ap:.1f}" if record.ap is not None else f"{record.state}: {record.reason}"
            meter.result(record.counts, f"{record.place}  {value}  {record.policy}")

    listener.advance(sum(study.trained for study in studies))
    with open_evaluator(replace(plan, halving=None), folder, listener, meter) as evaluator:
        run_side_by_side(studies, evaluator, on_event)
    return [record for study in studies for record in study.trials if not record.duplicate_of]


def _summed_up(
    plan: Plan, records: Sequence[Trial], full: Mapping[str, Mapping[int, float]], seeds: int
) -> dict[str, Any]:
    """Plain data; policies of which a training failed are counted and left out of the comparison."""
    points = [
        {
            "trial": record.place,
            "knowledge": record.study,
            "policy": str(record.best_policy),
            "proxy_ap": record.ap,
            "ap": dict(full[record.place]),
            "mean": sum(full[record.place].values()) / len(full[record.place]),
        }
        for record in records
        if record.ap is not None and len(full.get(record.place, ())) == seeds
    ]
    states = {state.value: sum(record.state is state for record in records) for state in State}
    unfinished = states[State.COMPLETE.value] - len(points)
    if len(points) < LEAST:
        reasons = sorted({record.reason for record in records if record.reason})
        counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        raise SearchError(
            f"proxy check: expected at least {LEAST} policies that can be trained, got {len(points)}; on the proxy: "
            f"{counts}, then {unfinished} failed at the full budget" + "".join(f"; {reason}" for reason in reasons[:1])
        )
    found = agreement([point["proxy_ap"] for point in points], [point["mean"] for point in points])
    numbers = {name: value if math.isfinite(value) else None for name, value in vars(found).items()}
    return {
        **numbers,
        "policies": len(points),
        "seeds": sorted(points[0]["ap"]),
        "states": states,
        "failed_at_full_budget": unfinished,
        "images": {"train": describe_data(plan.proxy_data), "validation": describe_data(plan.validation_data)},
        "epochs": {"proxy": plan.proxy_config.epochs, "full": plan.config.train.epochs},
        "points": points,
    }
