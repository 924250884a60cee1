"""How many candidates an hour? One at a time with a live teacher, side by side, and side by side with halving.

One at a time, a candidate costs a student step S, a teacher forward T and the loading of a batch D, times its steps; of
K side by side each costs S + (T + D) / K. So the most that sharing can gain is

    (S + T + D) / (S + (T + D) / K)

with S, T and D measured in the same run; S includes the distillation loss. The policies are random single terms of the
default space, the same in all parts, and so must be their APs. Candidates per hour count all that a search does for
one: filter, calibration, training and measuring.

With halving, who trains on costs S for the epochs it trains, and the teacher serves all. By default the rung is after a
third of the training, as in ``benchmarks/table``, where ``benchmarks/samplers.py --halving`` says what it costs in AP.

Run it with

    python benchmarks/search_throughput.py
    python benchmarks/search_throughput.py --cpu-time --teacher narrow32 --out runs/throughput.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkds.config import HalvingConfig, TrainConfig
from detkds.data.coco import load_coco
from detkds.data.digits import make_digits
from detkds.detectors import Detector, build_detector
from detkds.policy import Policy
from detkds.policy_search.result import HalvingGroup, State
from detkds.policy_search.space import draw, load_spaces
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import Trainer
from detkds.training.calibrate import calibrate, probe_terms, unit
from detkds.training.loop import Clock, TrainingObserver, train
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer, seeded
from detkds.training.teacher import live

SETUP = "search"


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(arguments, Path(folder), device)
        policies = usable(setup, arguments.candidates, arguments.seed)
        figures = measure_all(setup, policies, arguments)
    report(figures, arguments)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line; by default a teacher's forward costs more than a student's step, as with ResNet-101 and -18."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--detector", default="retinanet")
    parser.add_argument("--teacher", default="narrow64", help="backbone of the teacher")
    parser.add_argument("--student", default="narrow8", help="backbone of the student")
    parser.add_argument("--teacher-neck", type=int, default=64)
    parser.add_argument("--student-neck", type=int, default=32)
    parser.add_argument("--size", type=int, default=96, help="pixels of an image side")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--validation", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--draws", type=int, default=64, help="images of an epoch")
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--population", type=int, default=8)
    parser.add_argument("--rungs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--eta", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, for a machine that others share")
    parser.add_argument("--amp", default=None, help="bf16 or fp16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.cpu_time and (arguments.threads > 1 or arguments.device != "cpu"):
        parser.error("--cpu-time: expected one thread of the CPU, where processor time is what a search waits for")
    return arguments


def make_setup(arguments: argparse.Namespace, folder: Path, device: torch.device) -> TrainingSetup:
    """An untrained pair on digits; what a step costs does not depend on what the teacher knows."""
    paths = make_digits(folder, train=arguments.images, val=arguments.validation, size=arguments.size, seed=0)
    train_data, test_data = (load_coco(*split) for split in paths)

    def build(backbone: str, neck: int, seed: int) -> Detector:
        with seeded(seed, torch.device("cpu")):
            options = {"neck_channels": neck, "head_convs": 1}
            return build_detector(arguments.detector, train_data.class_names, backbone=backbone, **options)

    teacher = build(arguments.teacher, arguments.teacher_neck, 0).eval().to(device)
    if arguments.channels_last:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = TrainConfig(
        epochs=arguments.epochs,
        draws=arguments.draws,
        batch_size=arguments.batch_size,
        optimizer="adamw",
        lr=0.002,
        warmup_steps=10,
        clip_norm=10.0,
        amp=arguments.amp,
        channels_last=arguments.channels_last,
    )
    return TrainingSetup(
        teacher=teacher.requires_grad_(False),
        build_student=lambda seed, inherit: build(arguments.student, arguments.student_neck, seed),
        train_data=train_data,
        test_data=test_data,
        config=config,
        size=arguments.size,
        device=device,
    )


def usable(setup: TrainingSetup, count: int, seed: int) -> list[Policy]:
    """Random policies of all kinds of knowledge in turn that the filter lets through."""
    rng = np.random.default_rng(seed)
    spaces = list(load_spaces("default", "gradient").values())
    policies: list[Policy] = []
    while len(policies) < count:
        space = spaces[len(policies) % len(spaces)]
        policy = space.policy(draw(space, rng))
        if screened(setup, [policy]):
            policies.append(policy)
    return policies


def screened(setup: TrainingSetup, policies: list[Policy]) -> list[Policy]:
    """Those that the filter lets through, with absolute weights."""
    assert setup.teacher is not None
    batches = [batch.to(setup.device) for batch in islice(setup.batches(0)(0), 4)]
    student = setup.build_student(0, True).to(setup.device)
    probes = probe_terms([term for policy in policies for term in policy], student, setup.teacher, batches, seed=0)
    return [calibrate(policy, probes) for policy in policies if not any(probes[unit(t)].refusal(t) for t in policy)]


def measure_all(setup: TrainingSetup, policies: list[Policy], arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts, one after the other."""
    setup.store.preload()
    now = time.process_time if arguments.cpu_time else time.perf_counter
    trainer = Trainer({SETUP: setup}, population=arguments.population)
    timed(trainer, policies[:1], 1, now)  # warms up
    ready = screened(setup, policies)
    alone, alone_watch, together_watch = 0.0, watch(now), watch(now)
    results: list[TaskResult] = []
    k = arguments.population
    for start in range(0, len(policies), k):
        chunk = slice(start, start + k)
        for policy, calibrated in zip(policies[chunk], ready[chunk], strict=True):
            seconds, own = timed(trainer, [policy], 1, now)
            alone += seconds
            results += own
            train_only(setup, [calibrated], alone_watch)
        train_only(setup, ready[chunk], together_watch)
    together, same = timed(trainer, policies, k, now)
    halving = HalvingConfig(rungs=tuple(arguments.rungs), eta=arguments.eta)
    halver = Trainer({SETUP: setup}, halving=halving)
    halved, pruned = timed(halver, policies, len(policies), now)
    clock, steps = alone_watch.clock, alone_watch.clock.steps
    s, t, d = (seconds / steps for seconds in (clock.students, clock.teacher, clock.data))
    bound = (s + t + d) / (s + (t + d) / k)
    gained = busy(clock) / busy(together_watch.clock)
    images = steps * setup.config.batch_size
    return {
        "setup": {key: value for key, value in vars(arguments).items() if key != "out"},
        "torch": torch.__version__,
        "milliseconds": {"student": 1000 * s, "teacher": 1000 * t, "data": 1000 * d},
        "images_per_second": {"alone": images / busy(clock), "together": images / busy(together_watch.clock)},
        "bound": bound,
        "training": {"gain": gained, "of_bound": gained / bound},
        "candidates_per_hour": {
            "alone": 3600 * len(policies) / alone,
            "together": 3600 * len(policies) / together,
            "halving": 3600 * len(policies) / halved,
        },
        "same_aps": [result.ap for result in same] == [result.ap for result in results],
        "epochs": sum(result.epochs for result in pruned) / len(policies) / arguments.epochs,
        "pruned": sum(result.state is State.PRUNED for result in pruned),
    }


def watch(now: Callable[[], float]) -> TrainingObserver:
    """Sums up the seconds of the trainings it is given to."""
    observer = TrainingObserver()
    observer.clock.now = now
    return observer


def timed(
    trainer: Trainer, policies: list[Policy], population: int, now: Callable[[], float]
) -> tuple[float, list[TaskResult]]:
    """Seconds and results of one call."""
    trainer.population = population
    peers = HalvingGroup() if trainer.halving is not None else None
    tasks = {str(i): Task(SETUP, policy, 0, screened=True, group=peers) for i, policy in enumerate(policies)}
    started = now()
    results = {outcome.key: outcome.result for outcome in trainer.run(tasks)}
    return now() - started, [results[key] for key in tasks]


def train_only(setup: TrainingSetup, policies: list[Policy], observer: TrainingObserver) -> None:
    """The parts of training alone, added to the observer's clock."""
    assert setup.teacher is not None
    steps = setup.steps(epochs=setup.config.epochs)
    students = [
        StudentTrainer(
            str(i),
            setup.build_student(0, True),
            policy,
            setup.teacher,
            setup.config,
            steps,
            seed=0,
            device=setup.device,
        )
        for i, policy in enumerate(policies)
    ]
    train(students, setup.batches(0), setup.config, live(setup.teacher), observer=observer)


def busy(clock: Clock) -> float:
    """All seconds of a clock."""
    return clock.data + clock.teacher + clock.students


def report(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the figures."""
    cost = ", ".join(f"{name} {value:.1f} ms" for name, value in figures["milliseconds"].items())
    print(f"a step of one candidate: {cost}")
    training = figures["training"]
    print(
        f"training, {arguments.population} side by side: {training['gain']:.2f} times the candidates of one at a time; "
        f"bound {figures['bound']:.2f}, {training['of_bound']:.0%} of it"
    )
    rates = figures["candidates_per_hour"]
    for name, rate in rates.items():
        print(f"{name:<10}{rate:8.0f} candidates an hour, {rate / rates['alone']:.2f} times")
    print(f"APs side by side {'equal' if figures['same_aps'] else 'DIFFER FROM'} those one at a time")
    print(
        f"halving stopped {figures['pruned']} of {arguments.candidates}; {figures['epochs']:.0%} of the epochs trained"
    )


if __name__ == "__main__":
    main()
