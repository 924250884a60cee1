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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkds.config import HalvingConfig, TrainConfig
from detkds.data.coco import load_coco
from detkds.data.digits import make_digits
from detkds.detectors import Detector, build_detector
from detkds.policy import Policy
from detkds.search.evaluators.population import PopulationEvaluator
from detkds.search.result import Result, State
from detkds.search.space import draw, load_spaces
from detkds.training.loop import Clock, train
from detkds.training.member import Member, seeded
from detkds.training.population import Setting


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        setting = make_setting(arguments, Path(folder), device)
        policies = usable(setting, arguments.candidates, arguments.seed)
        figures = measure_all(setting, policies, arguments)
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


def make_setting(arguments: argparse.Namespace, folder: Path, device: torch.device) -> Setting:
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
    return Setting(
        teacher=teacher.requires_grad_(False),
        build_student=lambda seed, inherit: build(arguments.student, arguments.student_neck, seed),
        train_data=train_data,
        test_data=test_data,
        config=config,
        size=arguments.size,
        device=device,
    )


def usable(setting: Setting, count: int, seed: int) -> list[Policy]:
    """Random policies of all kinds of knowledge in turn that the filter lets through."""
    rng = np.random.default_rng(seed)
    spaces = list(load_spaces("default", "gradient").values())
    evaluator = PopulationEvaluator(setting)
    found: list[Policy] = []
    while len(found) < count:
        space = spaces[len(found) % len(spaces)]
        policy = space.policy(draw(space, rng))
        if isinstance(evaluator.screen([policy])[0], Policy):
            found.append(policy)
    return found


def measure_all(setting: Setting, policies: list[Policy], arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts, one after the other."""
    _, _ = setting.store, setting.test_store
    evaluator = PopulationEvaluator(setting, population=arguments.population)
    now = time.process_time if arguments.cpu_time else time.perf_counter
    timed(evaluator, policies[:1], 1, now)  # warms up
    screened = [policy for policy in evaluator.screen(policies) if isinstance(policy, Policy)]
    alone, alone_clock, together_clock = 0.0, Clock(now=now), Clock(now=now)
    results: list[Result] = []
    k = arguments.population
    for start in range(0, len(policies), k):
        chunk = slice(start, start + k)
        for policy, ready in zip(policies[chunk], screened[chunk], strict=True):
            seconds, found = timed(evaluator, [policy], 1, now)
            alone += seconds
            results += found
            train_only(setting, [ready], alone_clock)
        train_only(setting, screened[chunk], together_clock)
    together, same = timed(evaluator, policies, k, now)
    halving = HalvingConfig(rungs=tuple(arguments.rungs), eta=arguments.eta)
    halver = PopulationEvaluator(setting, halving=halving)
    halved, pruned = timed(halver, policies, len(policies), now)
    steps = alone_clock.steps
    s, t, d = (seconds / steps for seconds in (alone_clock.students, alone_clock.teacher, alone_clock.data))
    bound = (s + t + d) / (s + (t + d) / k)
    gained = busy(alone_clock) / busy(together_clock)
    images = steps * setting.config.batch_size
    return {
        "setting": {key: value for key, value in vars(arguments).items() if key != "out"},
        "torch": torch.__version__,
        "milliseconds": {"student": 1000 * s, "teacher": 1000 * t, "data": 1000 * d},
        "images_per_second": {"alone": images / busy(alone_clock), "together": images / busy(together_clock)},
        "bound": bound,
        "training": {"gain": gained, "of_bound": gained / bound},
        "candidates_per_hour": {
            "alone": 3600 * len(policies) / alone,
            "together": 3600 * len(policies) / together,
            "halving": 3600 * len(policies) / halved,
        },
        "same_aps": [one.ap for one in same] == [one.ap for one in results],
        "epochs": sum(one.epochs for one in pruned) / len(policies) / arguments.epochs,
        "pruned": sum(one.state is State.PRUNED for one in pruned),
    }


def timed(
    evaluator: PopulationEvaluator, policies: list[Policy], population: int, now: Callable[[], float]
) -> tuple[float, list[Result]]:
    """Seconds and results of one call."""
    evaluator.population = population
    started = now()
    results = evaluator.evaluate(policies)
    return now() - started, results


def train_only(setting: Setting, policies: list[Policy], clock: Clock) -> None:
    """The parts of training alone, added to the clock."""
    steps = setting.steps(epochs=setting.config.epochs)
    members = [
        Member(
            str(i),
            setting.build_student(0, True),
            policy,
            setting.teacher,
            setting.config,
            steps,
            seed=0,
            device=setting.device,
        )
        for i, policy in enumerate(policies)
    ]
    train(members, setting.teacher, setting.batches(0), setting.config, device=setting.device, clock=clock)


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
