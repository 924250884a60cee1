"""``detkds train`` and ``detkds distill``: one detector at the full budget."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detkds.config import RunConfig
from detkds.detectors.weights import load_weights
from detkds.distiller import check_pair
from detkds.errors import ConfigError
from detkds.files import write_text
from detkds.policy import Policy, list_policies, load_policy
from detkds.progress import Progress
from detkds.runs.comparison import comparison_task
from detkds.runs.executors import make_trainer
from detkds.runs.plan import COMPARISON, Plan, absolute, make_plan
from detkds.runs.session import TEACHER_FILE, Session, deliver, open_session, teacher_task
from detkds.runs.steps import StepLog
from detkds.tasks.executor import InlineExecutor
from detkds.tasks.store import slug
from detkds.tasks.task import Task
from detkds.training.processes import ALONE, Processes, joined

Which = Literal["student", "teacher"]


@dataclass(frozen=True)
class SingleTraining:
    """What the training of one detector leaves: its weights, the log of its losses, and its metrics (fractions)."""

    weights: Path
    steps: Path
    metrics: dict[str, Any]


def run_train(config: RunConfig, which: Which, seed: int | None, progress: Progress) -> SingleTraining:
    """Train the student or the teacher by its own losses alone and measure it on the test images.

    The teacher of the run's own seed is the one the search will use.

    Raises:
        UserError: every fault in the configuration, or a training that failed.
    """
    plan = make_plan(config)
    seed = config.seed if seed is None else seed
    with open_session(plan, progress) as session:
        target = session.folder / "train" / f"{which}-seed{seed}"
        if which == "teacher":
            return _train(session, teacher_task(plan, seed), target)
        task = replace(comparison_task(plan, Policy(), seed, "student"), inherit=False)
        return _train(session, task, target)


def run_distill(
    config: RunConfig, policy: str | Path | None, seed: int | None, progress: Progress
) -> SingleTraining | None:
    """Train the student with one policy at the full budget; under ``torchrun`` with all its processes together.

    Args:
        policy: a shipped policy's name or a file; None for the policy that the search of this run found.

    Returns:
        What it leaves; None in all processes but the first.

    Raises:
        UserError: every fault in the configuration, no such policy, or a training that failed.
    """
    wanted = resolve_policy(config, policy)
    with joined(config.device) as processes:
        own = config.model_copy(update={"device": processes.device}) if processes.device else config
        plan = make_plan(own)
        check_pair(absolute(wanted), plan.build_student(0, False), plan.teacher)
        plan.setups[COMPARISON].steps(epochs=1, world=processes.world)  # refuses more processes than batches
        seed = config.final.first_seeds[0] if seed is None else seed
        task = comparison_task(plan, wanted, seed, wanted.name or "policy")
        if not processes.first:
            _follow(plan, task, processes)
            return None
        with open_session(plan, progress) as session:
            session.prepare_teacher()
            target = session.folder / "distill" / f"{slug(task.label)}-seed{seed}"
            return _train(session, task, target, processes)


def resolve_policy(config: RunConfig, policy: str | Path | None) -> Policy:
    """The named policy, or the one this run's search found.

    Raises:
        UserError: there is none, or every fault in its file.
    """
    shipped = config.folder / "policy.yaml"
    if policy is not None:
        loaded = load_policy(policy)
        return loaded if loaded.name else replace(loaded, name=Path(policy).stem)
    if not shipped.exists():
        raise ConfigError(
            f"policy: no search of this run has finished (no {shipped}); run detkds search first, or name a policy "
            f"with --policy: a file, or one of {', '.join(list_policies())}"
        )
    return Policy(load_policy(shipped).terms, name="searched")


def _train(session: Session, task: Task, target: Path, processes: Processes = ALONE) -> SingleTraining:
    """Train a task unless it is stored; weights, losses and metrics are put beside ``target``."""
    plan, setup = session.plan, session.plan.setups[task.setup]
    record, weights, steps = (target.with_name(target.name + end) for end in (".json", ".safetensors", ".jsonl"))
    log = StepLog(steps, steps_per_epoch=setup.steps(epochs=1, world=processes.world))
    trainer = make_trainer(plan, session.folder, session.progress.note, processes=processes, observer=log)
    scheduler = session.scheduler_on(InlineExecutor(trainer))
    task = replace(task, world=processes.world)
    key = scheduler.key(task)
    session.progress.stage(f"{task.label}, seed {task.seed}", 1)
    processes.share((key, session.store.weights(key) is None))
    with session.clocked(task.label):
        deliver(scheduler.weights(task), weights)
    result = session.store.get(key)
    assert result is not None
    trained = task.policy.to_dict() if result.policy is None else dict(result.policy)
    facts = {"seed": task.seed, "key": key, "policy": trained, "metrics": dict(result.metrics)}
    write_text(record, json.dumps(facts, indent=1))
    return SingleTraining(weights, steps, dict(result.metrics))


def _follow(plan: Plan, task: Task, processes: Processes) -> None:
    """What the other processes of ``torchrun`` do: wait for the teacher, and share the training where there is one."""
    key, needed = processes.share(None)
    if not needed:
        return
    if not plan.teacher_ready:
        load_weights(plan.teacher, str(plan.config.folder / TEACHER_FILE))
    plan.teacher.to(plan.device).requires_grad_(False).eval()
    trainer = make_trainer(plan, plan.config.folder, lambda note: None, processes=processes)
    list(trainer.run({key: replace(task, world=processes.world)}))
