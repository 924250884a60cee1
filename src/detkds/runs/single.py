"""One detector at a time: trained plainly, distilled with one policy, or evaluated."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detkds.config import RunConfig, TrainConfig
from detkds.detectors.weights import load_weights, save_weights, stored_class_names
from detkds.distiller import check_pair
from detkds.errors import ConfigError
from detkds.policy import Policy, list_policies, load_policy
from detkds.runs.comparison import slug
from detkds.runs.datasets import load_data
from detkds.runs.distributed import Processes, joined
from detkds.runs.folder import open_folder, write_text
from detkds.runs.listening import Listener
from detkds.runs.pipeline import clocked
from detkds.runs.plan import Plan, absolute, choose_device, import_plugins, make_plan, make_teacher
from detkds.runs.steps import StepLog
from detkds.runs.teacher import prepare_teacher
from detkds.runs.weights import absolute_policies
from detkds.training.population import Candidate, Setting, measure, train_candidates

Which = Literal["student", "teacher"]


@dataclass(frozen=True)
class Single:
    """What the training of one detector leaves: its weights, the log of its losses, and its metrics (fractions)."""

    weights: Path
    steps: Path
    metrics: dict[str, Any]


def train_plain(config: RunConfig, which: Which, seed: int | None, listener: Listener) -> Single:
    """Train the student or the teacher by its own losses alone and measure it on the test images.

    A finished training is not repeated. The teacher of the run's own seed is the one the search will use.

    Raises:
        UserError: every fault in the configuration, or a training that failed.
    """
    plan = make_plan(config)
    seed = config.seed if seed is None else seed
    with open_folder(config) as folder:
        target = folder / "train" / f"{which}-seed{seed}"
        if which == "student":
            setting = plan.setting(plan.train_data, plan.test_data, config.train)
            candidate = Candidate("student", Policy(), inherit=False)
            return _train_once(setting, candidate, seed, target, {}, listener)
        train = _teacher_training(plan)
        listener.stage("teacher", train.epochs)
        if seed == config.seed:
            setting = plan.setting(plan.train_data, plan.test_data, train)
            log = StepLog(target.with_suffix(".jsonl"), steps_per_epoch=setting.steps_per_epoch)
            with clocked(folder, "teacher"):
                metrics = prepare_teacher(plan, folder, lambda done: listener.advance(1), log)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / "teacher.safetensors", target.with_suffix(".safetensors"))
            write_text(target.with_suffix(".json"), json.dumps({"seed": seed, "metrics": metrics}, indent=1))
            return Single(target.with_suffix(".safetensors"), target.with_suffix(".jsonl"), metrics)
        setting = Setting(
            None,
            lambda seed, inherit: make_teacher(config.teacher, plan.train_data.class_names, seed, config.data.size),
            plan.train_data,
            plan.test_data,
            train,
            config.data.size,
            plan.device,
            masks=plan.teacher.info.masks,
        )
        return _train_once(setting, Candidate("teacher", Policy()), seed, target, {}, listener)


def distill(config: RunConfig, policy: str | Path | None, seed: int | None, listener: Listener) -> Single:
    """Train the student with one policy at the full budget; under ``torchrun`` with all its processes together.

    Args:
        policy: a shipped policy's name or a file; None for the policy that the search of this run found.

    Raises:
        UserError: every fault in the configuration, no such policy, or a training that failed.
    """
    wanted = find_policy(config, policy)
    seed = config.final.seeds[0] if seed is None else seed
    with joined(config.device) as processes:
        own = config.model_copy(update={"device": processes.device}) if processes.device else config
        plan = make_plan(own)
        check_pair(absolute(wanted), plan.build_student(0, False), plan.teacher)
        setting = plan.setting(plan.train_data, plan.test_data, config.train)
        setting.steps(epochs=1, world=processes.world)  # refuses more processes than batches
        with open_folder(config) if processes.first else nullcontext(config.folder) as folder:
            if processes.first:
                listener.stage("teacher", plan.teacher_epochs)
                with clocked(folder, "teacher"):
                    prepare_teacher(plan, folder, lambda done: listener.advance(1))
            processes.wait()
            if not processes.first:
                prepare_teacher(plan, folder)
            [trained] = absolute_policies(plan, setting, [wanted]) if processes.first else [wanted]
            trained = processes.share(trained)
            name = wanted.name or "policy"
            target = folder / "distill" / f"{slug(name)}-seed{seed}"
            facts = {"policy": trained.to_dict(), "key": trained.key}
            return _train_once(setting, Candidate(name, trained), seed, target, facts, listener, processes)


def evaluate(config: RunConfig, weights: Path, which: Which, split: Literal["test", "train"]) -> dict[str, Any]:
    """Metrics (fractions) of a detector of this run with the weights of a file.

    Raises:
        UserError: every fault in the data, the detector and the weights.
    """
    import_plugins(config.plugins)
    device = choose_device(config.device)
    bare = {"weights": None, "backbone_weights": None}
    described = (config.student if which == "student" else config.teacher).model_copy(update=bare)
    with tempfile.TemporaryDirectory(prefix="detkds-") as scratch:
        if config.data.embedded is not None and not (config.folder / "data").exists():
            config = config.model_copy(update={"runs": Path(scratch)})
        train, test = load_data(config)
        known = stored_class_names(weights) if which == "teacher" else None
        detector = make_teacher(described, known or train.class_names, config.seed, config.data.size)
        load_weights(detector, weights)
        detector.to(device)
        data = test if split == "test" else train
        setting = Setting(
            None,
            lambda seed, inherit: detector,
            data,
            data,
            config.train,
            config.data.size,
            device,
            masks=detector.info.masks,
        )
        return measure(detector, setting).to_dict()


def find_policy(config: RunConfig, policy: str | Path | None) -> Policy:
    """The named policy, or the one this run's search found.

    Raises:
        UserError: there is none, or every fault in its file.
    """
    found = config.folder / "policy.yaml"
    if policy is not None:
        loaded = load_policy(policy)
        return loaded if loaded.name else replace(loaded, name=Path(policy).stem)
    if not found.exists():
        raise ConfigError(
            f"policy: no search of this run has finished (no {found}); run detkds search first, or name a policy "
            f"with --policy: a file, or one of {', '.join(list_policies())}"
        )
    return Policy(load_policy(found).terms, name="searched")


def _teacher_training(plan: Plan) -> TrainConfig:
    if plan.config.teacher.train is None:
        raise ConfigError(
            "teacher.train: expected how to train the teacher, got nothing; its weights are given instead"
        )
    if plan.teacher_ready:
        raise ConfigError(f"teacher.weights: the teacher is loaded from {plan.config.teacher.weights}, not trained; "
                          "leave weights out to train it")  # fmt: skip
    return plan.config.teacher.train


def _train_once(
    setting: Setting,
    candidate: Candidate,
    seed: int,
    target: Path,
    facts: dict[str, Any],
    listener: Listener,
    processes: Processes | None = None,
) -> Single:
    """Train unless the same training lies finished at ``target``; take up an unfinished one."""
    processes = processes or Processes()
    record, weights, steps = (target.with_suffix(end) for end in (".json", ".safetensors", ".jsonl"))
    listener.stage(f"{candidate.name}, seed {seed}", setting.config.epochs)
    same = {"seed": seed, "key": candidate.policy.key}
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() and weights.exists() else {}
    if processes.share({key: before.get(key) for key in same} == same):
        listener.advance(setting.config.epochs)
        return Single(weights, steps, before.get("metrics", {}))
    digest = hashlib.sha256(candidate.policy.key.encode()).hexdigest()[:8]
    state = target.with_name(f"{target.name}-{digest}.state")
    log = StepLog(steps, steps_per_epoch=setting.steps(epochs=1, world=processes.world))
    [trained] = train_candidates(
        setting,
        [candidate],
        seed=seed,
        checkpoint=state,
        distributed=processes.world > 1,
        rank=processes.rank,
        world=processes.world,
        on_step=log if processes.first else None,
        on_epoch=(lambda done: listener.advance(1)) if processes.first else None,
    )
    if trained.failure is not None:
        raise ConfigError(
            f"{candidate.name}: its training failed: {trained.failure}; {state} is kept, delete it to start over"
        )
    metrics = trained.metrics.to_dict() if trained.metrics is not None else {}
    if processes.first:
        save_weights(trained.student, weights)
        write_text(record, json.dumps({**same, **facts, "metrics": metrics}, indent=1))
        state.unlink(missing_ok=True)
    processes.wait()
    return Single(weights, steps, metrics)
