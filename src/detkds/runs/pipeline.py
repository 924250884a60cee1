"""The main job: teacher, search, final comparison, summary; each part is kept and taken up where it was left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkds.config import RunConfig
from detkds.policy import Policy
from detkds.report import write_report
from detkds.report.agreement import read_check
from detkds.runs.comparison import compare, contenders, slug
from detkds.runs.confirmation import Confirmed, confirm, to_confirm
from detkds.runs.evaluators import open_evaluator
from detkds.runs.folder import append_line, open_folder, read_lines
from detkds.runs.listening import Listener, Meter
from detkds.runs.plan import Plan, make_plan
from detkds.runs.summary import summarise, write_summary
from detkds.runs.teacher import prepare_teacher
from detkds.runs.teacher_outputs import describe
from detkds.runs.verdict import SEARCHED, Row
from detkds.runs.weights import relative_policies
from detkds.search.divide_and_conquer import Event, SearchOutcome, search
from detkds.search.halving import expected_shares
from detkds.search.result import State


@dataclass(frozen=True)
class Finished:
    """What a run leaves: its folder, the summary, and the pieces the summary was made from."""

    folder: Path
    plan: Plan
    summary: dict[str, Any]
    rows: list[Row]
    outcome: SearchOutcome


def run(config: RunConfig, listener: Listener) -> Finished:
    """Search on the proxy, confirm the best, and compare the chosen with the plain student and hand-designed policies.

    Raises:
        UserError: every fault in the configuration, before anything is trained.
    """
    plan = make_plan(config)
    with open_folder(config) as folder:
        teacher = ready_teacher(plan, folder, listener)
        with clocked(folder, "search"):
            outcome = find_policy(plan, folder, listener)
        with clocked(folder, "confirmation"):
            confirmed = _confirmation(plan, folder, outcome, listener)
        found = [one.policy for one in confirmed[: config.final.top]]
        with clocked(folder, "comparison"):
            rows = compare_at_full_budget(plan, folder, found, listener)
        summary = summarise(plan, teacher, rows, outcome.trials, confirmed, total_seconds(folder))
        summary["teacher_outputs"] = describe(plan, folder)
        summary["proxy_check"] = read_check(folder)
        write_summary(folder, summary, outcome.trials, found[0])
        write_report(folder / "report.html", summary, outcome.trials, read_lines(folder / "final.jsonl"))
        _ship_student(folder, rows, config.final.seeds[0])
    return Finished(folder, plan, summary, rows, outcome)


def find_policy(plan: Plan, folder: Path, listener: Listener) -> SearchOutcome:
    """Search on the proxy; the study is kept in the run folder (or in ``search.storage``) and resumed from it."""
    config = plan.config
    settings = plan.config.search
    epochs = plan.proxy_config.epochs
    shares = expected_shares(plan.halving, epochs) if plan.halving else ()
    meter = Meter(listener, epochs, config.proxy.population, shares)
    listener.stage("search", settings.trainings(len(plan.spaces)))
    for kind, reason in plan.refused.items():
        listener.note(f"{kind} is not searched: {reason}")

    def on_event(event: Event) -> None:
        record = event.trial
        if event.kind == "round":
            meter.begin(len(event.candidates))
        elif event.kind == "trial" and record is not None:
            completed = record.state is State.COMPLETE and record.ap is not None
            value = f"AP {record.ap:.1f}" if completed else f"{record.state}: {record.reason}"
            meter.result(record.counts, f"{record.place}  {value}  {record.policy}")
        elif event.kind == "study" and record is not None:
            listener.note(f"best of {event.study}: AP {record.ap:.1f}  {record.best_policy}")
        elif event.message:
            listener.note(f"{event.study}: {event.message}")

    store = config.search.storage or folder
    begin = plan.warm_start
    if config.search.weighting == "gradient":
        setting = plan.setting(plan.proxy_data, plan.validation_data, plan.proxy_config)
        begin = relative_policies(plan, setting, begin)
    with open_evaluator(plan, folder, listener, meter) as evaluator:
        return search(
            evaluator, plan.spaces, settings, store, config.search.seed, on_event, begin,
            population=config.proxy.population, finalists=config.final.top,
        )  # fmt: skip


def ready_teacher(plan: Plan, folder: Path, listener: Listener) -> dict[str, Any]:
    """Load or train the teacher; its metrics on the test images, AP as fractions, where there is one to measure."""
    listener.stage("teacher", plan.teacher_epochs)
    with clocked(folder, "teacher"):
        metrics = prepare_teacher(plan, folder, lambda done: listener.advance(1))
    if metrics:
        shown = {"mask": "mask AP", "box": "box AP"}[metrics.get("kind", "box")]
        listener.note(f"teacher: {shown} {100 * metrics['ap']:.1f} on the test images")
    else:
        listener.note("teacher: the moving average of each student's own weights")
    return metrics


def _confirmation(plan: Plan, folder: Path, outcome: SearchOutcome, listener: Listener) -> list[Confirmed]:
    count = len(to_confirm(outcome, plan.config.search.confirm))
    hooks = full_budget_hooks(plan, listener, "confirmation", count, plan.config.search.confirm_seeds)
    confirmed = confirm(plan, folder, outcome, **hooks)
    listener.note(f"chosen: {confirmed[0].record.place}  {confirmed[0].policy}")
    return confirmed


def compare_at_full_budget(plan: Plan, folder: Path, found: list[Policy], listener: Listener) -> list[Row]:
    """The plain students, the hand-designed policies and those that a search found, over all seeds."""
    entries = contenders(plan, found)
    hooks = full_budget_hooks(plan, listener, "comparison", len(entries), len(plan.config.final.seeds))
    return compare(plan, folder, entries, **hooks)


def full_budget_hooks(plan: Plan, listener: Listener, stage: str, entries: int, seeds: int) -> dict[str, Any]:
    """Callbacks that tell the listener of trainings at the full budget."""
    listener.stage(stage, entries * seeds)
    meter = Meter(listener, plan.config.train.epochs, plan.config.proxy.population)

    def on_result(name: str, seed: int, ap: float | None) -> None:
        meter.result(1, f"{name}, seed {seed}: " + (f"AP {100 * ap:.1f}" if ap is not None else "failed"))

    def on_seed(seed: int, missing: int) -> None:
        listener.advance(entries - missing)
        meter.begin(missing)

    return {"on_seed": on_seed, "on_result": on_result, "on_epoch": meter.epoch}


def _ship_student(folder: Path, rows: list[Row], seed: int) -> None:
    """``student.safetensors``: the student of the searched policy's first seed."""
    for row in rows:
        if row.name == SEARCHED and seed in row.ap:
            shutil.copyfile(
                folder / "students" / f"{slug(row.name)}-seed{seed}.safetensors", folder / "student.safetensors"
            )


@contextmanager
def clocked(folder: Path, stage: str) -> Iterator[None]:
    """Add the wall time of a stage to ``timing.jsonl``, also where it ends early."""
    started = time.perf_counter()
    try:
        yield
    finally:
        append_line(folder / "timing.jsonl", {"stage": stage, "seconds": round(time.perf_counter() - started, 3)})


def total_seconds(folder: Path) -> dict[str, float]:
    """Seconds spent in each stage, over all processes that worked on this run."""
    seconds: dict[str, float] = {}
    for record in read_lines(folder / "timing.jsonl"):
        seconds[record["stage"]] = seconds.get(record["stage"], 0.0) + record["seconds"]
    return seconds
