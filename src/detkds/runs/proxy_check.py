"""How well does the proxy rank? Random policies on the proxy and at the full budget, and how far the two orders agree.

The policies are drawn at random from the run's spaces, equally many of every kind of knowledge, and measured on the
proxy as the search would measure them. Each is then trained at the full budget as the search's best are confirmed: on
the proxy's images, with other seeds than the search's, and measured on the validation images. No test image is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from detkds.config import RunConfig
from detkds.files import write_text
from detkds.policy_search.divide_and_conquer import Event, make_sampler, run_side_by_side, study_seed
from detkds.policy_search.result import SearchError, State, Trial
from detkds.policy_search.storage import open_storage
from detkds.policy_search.study import SearchStudy
from detkds.progress import Progress
from detkds.report.agreement import PICTURE, RECORD, agreement_plot
from detkds.runs.candidates import ProxyEvaluator
from detkds.runs.confirmation import at_full_budget
from detkds.runs.datasets import describe_data
from detkds.runs.executors import prepare_workers
from detkds.runs.plan import Plan, make_plan
from detkds.runs.search import tell_stored
from detkds.runs.session import Session, open_session
from detkds.statistics import kendall_tau
from detkds.tasks.scheduler import Scheduler

LEAST = 3
"""Policies without which there is no order to speak of."""


def run_proxy_check(config: RunConfig, policies: int, seeds: int, progress: Progress) -> dict[str, Any]:
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
    prepare_workers(config)
    plan = make_plan(config)
    plan = whole_proxy(plan)
    with open_session(plan, progress) as session:
        session.prepare_teacher()
        with session.scheduler() as scheduler, session.clocked("proxy check"):
            records = _on_the_proxy(session, scheduler, policies)
            done = [record for record in records if record.state is State.COMPLETE]
            progress.stage("full budget", len(done) * seeds)
            numbers = [plan.config.search.seed + 1 + index for index in range(seeds)]
            full = at_full_budget(plan, scheduler, {record.place: record.best_policy for record in done}, numbers)
        check = _summed_up(plan, records, full, seeds)
        write_text(session.folder / RECORD, json.dumps(check, indent=1, allow_nan=False))
        agreement_plot(check, session.folder / PICTURE)
    return check


def whole_proxy(plan: Plan) -> Plan:
    """The plan without halving; where candidates are trained like the full budget, their proxy is the first rung's."""
    if plan.halving is None:
        return plan
    same = plan.proxy_config.epochs == plan.config.train.epochs
    epochs = plan.halving.rungs[0] if same else plan.proxy_config.epochs
    proxy = plan.config.proxy.model_copy(update={"epochs": epochs, "halving": None})
    return replace(plan, halving=None, config=plan.config.model_copy(update={"proxy": proxy}))


def _on_the_proxy(session: Session, scheduler: Scheduler, policies: int) -> list[Trial]:
    """Random trials of every kind of knowledge."""
    plan = session.plan
    session.progress.stage("proxy", policies)
    folder = session.folder / "proxy_check"
    folder.mkdir(exist_ok=True)
    storage, seed = open_storage(folder), plan.config.search.seed
    each, more = divmod(policies, len(plan.spaces))
    studies = []
    for index, (kind, space) in enumerate(plan.spaces.items()):
        sampler = make_sampler("random", space, study_seed(seed, f"proxy check {kind}"), plan.config.search)
        studies.append(SearchStudy(kind, sampler, storage, each + (index < more)))
    evaluator = ProxyEvaluator(plan, scheduler)

    def on_event(event: Event) -> None:
        if event.kind == "round":
            evaluator.labels = [f"{candidate.study}/{candidate.number}" for candidate in event.candidates]
        elif event.kind == "stored" and event.trial is not None:
            tell_stored(session.progress, event.trial)

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
    agreement = kendall_tau([point["proxy_ap"] for point in points], [point["mean"] for point in points])
    numbers = {"tau": agreement.value, "low": agreement.low, "high": agreement.high}
    numbers = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
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
