"""``detkds search``: teacher, search, confirmation, comparison, and the student to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkds.config import RunConfig
from detkds.policy import Policy, load_policy
from detkds.policy_search.divide_and_conquer import Event, SearchOutcome, search
from detkds.policy_search.result import SearchError, Trial, rank
from detkds.policy_search.storage import open_storage
from detkds.policy_search.whole import PORTFOLIO
from detkds.progress import Progress
from detkds.report import write_report
from detkds.report.agreement import read_check
from detkds.runs.candidates import ProxyEvaluator, relative_policies
from detkds.runs.comparison import compare, comparison_task, contenders, teacherless
from detkds.runs.confirmation import Confirmed, confirm
from detkds.runs.executors import prepare_workers
from detkds.runs.plan import RIVALS, SEARCH, Plan, make_plan
from detkds.runs.session import Session, deliver, open_session
from detkds.runs.spending import within_budget
from detkds.runs.summary import summarize, write_summary
from detkds.runs.teacher_outputs import describe
from detkds.runs.verdict import LEARNED, PLAIN, SEARCHED, Row
from detkds.tasks.scheduler import Scheduler


@dataclass(frozen=True)
class Finished:
    """What a run leaves: its folder, the summary, and the pieces the summary was made from."""

    folder: Path
    plan: Plan
    summary: dict[str, Any]
    rows: list[Row]
    outcome: SearchOutcome


def run_search(config: RunConfig, progress: Progress) -> Finished:
    """Search on the proxy, confirm the best, and compare the chosen with the plain student and hand-designed policies.

    Raises:
        UserError: every fault in the configuration, before anything is trained.
    """
    prepare_workers(config)
    plan = within_budget(make_plan(config))
    open_storage(config.search.storage)  # refuses what cannot be opened before anything is trained
    with open_session(plan, progress) as session:
        teacher = session.prepare_teacher(beside=teacherless(plan))
        with session.scheduler() as scheduler:
            with session.clocked("search"):
                outcome = find_policy(session, scheduler)
            with session.clocked("confirmation"):
                confirmed = confirm(plan, scheduler, outcome)
                progress.note(f"chosen: {confirmed[0].record.place}  {confirmed[0].policy}")
            chosen = [candidate.policy for candidate in confirmed[: config.final.top]]
            hand = rivals(plan, confirmed, outcome)
            opponent = next((name for name in hand_designed(confirmed) if name in hand), None)
            with session.clocked("comparison"):
                comparison = compare(plan, scheduler, contenders(plan, chosen, hand), opponent)
            ship(session, scheduler, comparison.rows, chosen)
        summary = summarize(plan, teacher, comparison.rows, outcome.trials, confirmed, session.seconds(), opponent)
        summary["teacher_outputs"] = describe(plan, session.folder)
        summary["proxy_check"] = read_check(session.folder)
        write_summary(session.folder, summary, outcome.trials, chosen[0], comparison.trainings)
        write_report(session.folder / "report.html", summary, outcome.trials, comparison.trainings)
    return Finished(session.folder, plan, summary, comparison.rows, outcome)


def find_policy(session: Session, scheduler: Scheduler) -> SearchOutcome:
    """Search on the proxy; the study is kept in the run folder (or in ``search.storage``) and resumed from it."""
    plan, progress = session.plan, session.progress
    config = plan.config
    progress.stage(SEARCH, config.search.trainings(len(plan.spaces)))
    for kind, reason in plan.refused.items():
        progress.note(f"{kind} is not searched: {reason}")
    evaluator = ProxyEvaluator(plan, scheduler)
    begun: list[Trial] = []

    def on_event(event: Event) -> None:
        record = event.trial
        if record is not None and record.role == PORTFOLIO:
            begun.append(record)
            if len(begun) == len(begin):
                check_proxy(plan, begun)
        if event.kind == "round":
            evaluator.labels = [f"{candidate.study}/{candidate.number}" for candidate in event.candidates]
        elif event.kind == "stored" and record is not None:
            tell_stored(progress, record)
        elif event.kind == "study" and record is not None:
            progress.note(f"best of {event.study}: AP {record.ap:.1f}  {record.best_policy}")
        elif event.message:
            progress.note(f"{event.study}: {event.message}")

    begin: Sequence[Policy] = plan.warm_start
    if config.search.weighting == "gradient":
        begin = relative_policies(plan, begin)
    if config.search.method == "policies":
        begin = [Policy(name=PLAIN), *begin, *portfolio_forms(plan)]
    return search(
        evaluator,
        plan.spaces,
        config.search,
        config.search.storage or session.folder,
        config.search.seed,
        on_event,
        begin,
        population=config.proxy.population,
        finalists=config.final.top,
    )


def check_proxy(plan: Plan, begun: Sequence[Trial]) -> None:
    """Make sure that the proxy tells anything, before more is spent on it.

    Raises:
        SearchError: none of the policies that the search begins with learned anything on it.
    """
    best = max((trial.ap for trial in begun if trial.ap is not None), default=None)
    if best is not None and best < LEARNED:
        epochs, full = plan.proxy_config.epochs, plan.config.train.epochs
        raise SearchError(
            f"proxy: after {epochs} of {full} passes the best of {len(begun)} policies has {best:.1f} AP on the"
            " validation images, so that candidates cannot be told apart; train it for longer"
            f" (proxy.epochs={min(full, 2 * epochs)}, in a run of another name), or first make sure that the student"
            " learns the data at all: detkds train"
        )


def portfolio_forms(plan: Plan) -> list[Policy]:
    """The policies of the portfolio that the search begins with, their weights as ratios to the task's
    gradient."""
    entries = plan.portfolio[: plan.config.search.portfolio]
    shipped = [load_policy(entry.policy) for entry in entries]
    relative = relative_policies(plan, shipped)
    return [entry.form(relative_form) for entry, relative_form in zip(entries, relative, strict=True)]


def hand_designed(confirmed: Sequence[Confirmed]) -> dict[str, Policy]:
    """The hand-designed policies of a race by name, the best by validation first."""
    return {racer.record.policy.name: racer.policy for racer in confirmed if racer.hand_designed}


def rivals(plan: Plan, confirmed: Sequence[Confirmed], outcome: SearchOutcome) -> dict[str, Policy]:
    """The hand-designed policies to stand beside the searched one: those that are named, or the best in race and
    search."""
    if plan.config.final.policies is not None or plan.config.search.method != "policies":
        return dict(plan.policies)
    ranked = hand_designed([*confirmed, *(Confirmed(trial) for trial in rank(outcome.trials, stopped=True))])
    return dict(list(ranked.items())[:RIVALS])


def tell_stored(progress: Progress, trial: Trial) -> None:
    """Count a trial that an earlier process measured."""
    if trial.counts:
        progress.finished(trial.place, trial.place, trial.ap, str(trial.best_policy), stored=True)


def ship(session: Session, scheduler: Scheduler, rows: Sequence[Row], chosen: Sequence[Policy]) -> None:
    """``student.safetensors``: the student of the chosen policy's first seed that did not fail."""
    shipped = next(row for row in rows if row.name == SEARCHED)
    seeds = list(shipped.ap)
    target = session.folder / "student.safetensors"
    target.unlink(missing_ok=True)
    if seeds:
        task = comparison_task(session.plan, chosen[0], seeds[0], SEARCHED)
        deliver(scheduler.weights(task), target)
