"""What a run will cost, from a few real steps on real batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from detkds.config import TrainConfig
from detkds.data.coco import CocoDataset
from detkds.data.loader import evaluation_batches
from detkds.detectors.base import Detector
from detkds.evaluation.predict import evaluating
from detkds.policy import Policy, Term
from detkds.policy_search.halving import expected_shares
from detkds.policy_search.space import points
from detkds.runs.executors import count_workers
from detkds.runs.plan import COMPARISON, TEACHING, Plan, absolute
from detkds.runs.preview import comparisons, confirmations, populations, trainings
from detkds.structures import Batch
from detkds.training.batch_files import BatchFiles
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer
from detkds.training.teacher import teacher_forward
from detkds.training.teacher_cache import TeacherCache

_BATCHES = 3
"""Batches that are timed; the first one warms up and is left out."""


@dataclass(frozen=True)
class Speed:
    """Seconds of each part of a training step, and of evaluating one image with the student or the teacher.

    ``teacher_search`` is what the teacher's outputs for a step of the search take, on the mean over its populations;
    None: a forward pass each time.
    """

    data: float
    student_step: float
    distillation: float
    teacher_forward: float
    teacher_step: float
    student_predict: float
    teacher_predict: float
    teacher_search: float | None = None


def measure_speed(plan: Plan) -> Speed:
    """Time a few steps; nothing of the run is changed, and what is written goes into a temporary folder."""
    setup = plan.setups[COMPARISON]
    if not plan.teacher_ready:
        setup = replace(setup, masks=setup.masks or plan.teacher.info.masks)
    began = time.perf_counter()
    batches = [batch.to(plan.device) for batch in islice(setup.batches(plan.config.seed)(0), _BATCHES)]
    data = (time.perf_counter() - began) / len(batches)
    student = plan.build_student(plan.config.seed, True)
    every_kind = [term for space in plan.spaces.values() for term in space.policy(next(points(space)))]
    plain = _trainer(setup, student, Policy())
    distilled = _trainer(setup, plan.build_student(plan.config.seed, True), absolute(Policy(_light(every_kind))))
    outputs = {id(batch): teacher_forward(plan.teacher, batch) for batch in batches}
    step = _timed(lambda batch: plain.train_step(batch, None), batches, plan.device)
    full = _timed(lambda batch: distilled.train_step(batch, outputs[id(batch)]), batches, plan.device)
    alone = plan.config.self_taught  # no teacher is shared: its cost is part of every distilled step
    forward = 0.0 if alone else _timed(lambda batch: teacher_forward(plan.teacher, batch), batches, plan.device)
    teacher_step = 0.0
    if not plan.teacher_ready:
        scratch = _scratch_teacher(plan)
        teacher_step = _timed(lambda batch: scratch.train_step(batch, None), batches, plan.device)
    return Speed(
        data=data,
        student_step=step,
        distillation=max(0.0, full - step) / max(1, len(every_kind)),
        teacher_forward=forward,
        teacher_step=teacher_step,
        student_predict=_predict(student, setup),
        teacher_predict=0.0 if alone else _predict(plan.teacher, setup),
        teacher_search=0.0 if alone else _search_answer(plan, batches[0]),
    )


def estimate(plan: Plan, speed: Speed | None = None) -> dict[str, float]:
    """Minutes of each stage, from scratch, and ``total``. Untrained detectors predict slowly or fast: a rough guide."""
    speed = speed or measure_speed(plan)
    config, kinds = plan.config, len(plan.spaces)
    teacher = _teacher_seconds(plan, speed)
    proxy = _steps(plan, plan.proxy_config, plan.proxy_data)
    check = len(plan.validation_data) * speed.student_predict
    spent, total = trainings(plan), plan.config.search.trainings(kinds)
    shared = speed.data + speed.teacher_forward
    stepped, checked = _expected(plan)
    terms_of_all = spent.single + (spent.combination + spent.joint + spent.policies) * kinds
    steps_of_all = total * speed.student_step + terms_of_all * speed.distillation
    search = stepped * proxy * steps_of_all + checked * check * total
    answer = speed.teacher_forward if speed.teacher_search is None else speed.teacher_search
    search += populations(plan) * proxy * (speed.data + answer)
    steps = _steps(plan, config.train, plan.proxy_data)
    confirmation = confirmations(plan) * (steps * (speed.student_step + kinds * speed.distillation) + check)
    confirmation += -(-confirmations(plan) // config.proxy.population) * steps * shared
    comparison = _comparison_seconds(plan, speed, plan.config.final.top)
    workers = count_workers(plan)
    seconds = {"search": search, "confirmation": confirmation, "comparison": comparison}
    return _minutes({"teacher": teacher} | {name: value / workers for name, value in seconds.items() if value})


def estimate_comparison(plan: Plan) -> dict[str, float]:
    """Minutes of a comparison without a search, and ``total``."""
    speed = measure_speed(plan)
    comparison = _comparison_seconds(plan, speed, 0) / count_workers(plan)
    return _minutes({"teacher": _teacher_seconds(plan, speed), "comparison": comparison})


def _comparison_seconds(plan: Plan, speed: Speed, found: int) -> float:
    """Of the plain students, the hand-designed policies and ``found`` others of all kinds, over all seeds."""
    config = plan.config
    steps = _steps(plan, config.train, plan.train_data)
    terms = sum(map(len, plan.policies.values())) + found * len(plan.spaces)
    entries = 1 + bool(plan.inherited) + len(plan.policies) + found
    one_seed = steps * (entries * speed.student_step + terms * speed.distillation)
    one_seed += -(-entries // config.proxy.population) * steps * (speed.data + speed.teacher_forward)
    one_seed += entries * len(plan.test_data) * speed.student_predict
    return comparisons(plan, found) / entries * one_seed


def estimate_training(plan: Plan, which: str, policy: Policy | None = None) -> dict[str, float]:
    """Minutes of one training (``train`` and ``distill``), and ``total``."""
    speed = measure_speed(plan)
    stages: dict[str, float] = {}
    if which == "teacher" or policy is not None:
        stages["teacher"] = _teacher_seconds(plan, speed)
    if which == "student":
        steps = _steps(plan, plan.config.train, plan.train_data)
        distilling = speed.teacher_forward + len(policy) * speed.distillation if policy else 0.0
        stages["student"] = steps * (speed.data + speed.student_step + distilling)
        stages["student"] += len(plan.test_data) * speed.student_predict
    return _minutes(stages)


def _expected(plan: Plan) -> tuple[float, float]:
    """The part of its steps that a candidate of the search takes, and how often it is measured, on the mean."""
    if plan.halving is None:
        return 1.0, 1.0
    shares = expected_shares(plan.halving, plan.proxy_config.epochs)
    return sum(shares) / len(shares), sum(shares[rung - 1] for rung in plan.halving.rungs) + shares[-1]


def estimate_proxy_check(plan: Plan, policies: int, seeds: int) -> dict[str, float]:
    """Minutes of a check of the proxy with so many policies, and ``total``."""
    speed = measure_speed(plan)

    def trained(config: TrainConfig) -> float:
        steps, groups = _steps(plan, config, plan.proxy_data), -(-policies // plan.config.proxy.population)
        one = steps * (speed.student_step + speed.distillation) + len(plan.validation_data) * speed.student_predict
        return policies * one + groups * steps * (speed.data + speed.teacher_forward)

    workers = count_workers(plan)
    full = seeds * trained(plan.config.train) / workers
    proxy = trained(plan.proxy_config) / workers
    return _minutes({"teacher": _teacher_seconds(plan, speed), "proxy": proxy, "full budget": full})


def _minutes(seconds: Mapping[str, float]) -> dict[str, float]:
    """Of each stage, and ``total``."""
    stages = {name: value / 60 for name, value in seconds.items()}
    return {**stages, "total": sum(stages.values())}


def _teacher_seconds(plan: Plan, speed: Speed) -> float:
    """To train the teacher where it has no weights, and to measure it."""
    train = plan.config.teacher.train
    steps = _steps(plan, train, plan.train_data) if train is not None and not plan.teacher_ready else 0
    return steps * (speed.data + speed.teacher_step) + len(plan.test_data) * speed.teacher_predict


def _steps(plan: Plan, config: TrainConfig, data: CocoDataset) -> int:
    return plan.setup(data, plan.test_data, config).steps(epochs=config.epochs)


def _trainer(setup: TrainingSetup, student: Detector, policy: Policy) -> StudentTrainer:
    return StudentTrainer(
        "estimate",
        student,
        policy,
        setup.teacher,
        setup.config,
        1000,
        seed=0,
        device=setup.device,
        self_taught=setup.self_taught and len(policy) > 0,
    )


def _scratch_teacher(plan: Plan) -> StudentTrainer:
    return _trainer(plan.setups[TEACHING], deepcopy(plan.teacher).requires_grad_(True), Policy())


def _light(terms: Sequence[Term]) -> list[Term]:
    """The terms at a weight that cannot make a step fail."""
    return [replace(term, weight=1e-3) for term in terms]


def _timed(step: Callable[[Batch], object], batches: Sequence[Batch], device: torch.device) -> float:
    """Seconds of one call, the first left out where there are more."""
    seconds = []
    for batch in batches:
        _wait(device)
        began = time.perf_counter()
        step(batch)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    kept = seconds[1:] or seconds
    return sum(kept) / len(kept)


def _search_answer(plan: Plan, batch: Batch) -> float | None:
    """Mean seconds of the teacher's outputs for a step of the search, as the search would decide here and now."""
    cache, steps = plan.config.proxy.cache, _steps(plan, plan.proxy_config, plan.proxy_data)
    if cache.mode == "live":
        return None
    with tempfile.TemporaryDirectory(prefix="detkds-") as folder:
        files = BatchFiles(Path(folder), "estimate", int(cache.disk_gb * 1e9), lambda note: None)
        answers = TeacherCache(plan.teacher, files, batches=steps, populations=populations(plan), mode=cache.mode)
        answers(0, 0, batch, True)
        return None if answers.decision is None else answers.decision.mean


def _predict(detector: Detector, setup: TrainingSetup) -> float:
    """Seconds to read and evaluate one image."""
    batches = evaluation_batches(setup.test_data, size=setup.size, batch_size=setup.config.batch_size)
    with evaluating(detector), torch.inference_mode():
        began = time.perf_counter()
        images = 0
        for batch in islice(batches, 2):
            detector.predict(batch.to(setup.device))
            images += len(batch.images)
        _wait(setup.device)
    return (time.perf_counter() - began) / max(1, images)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
