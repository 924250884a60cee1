"""What distillation adds to a training step, beside the student's step and the teacher's forward pass.

Every repetition times all parts once, one after the other, so that a machine that slows down slows all of them; medians
are reported. A student's step is the whole of it: forward, backward, clipping and the optimiser. A policy's overhead is

    (step with the policy) - (step of the plain student)

as a fraction of the plain student's step and one teacher forward pass with its responses. What a policy adds is mostly
a fixed number of small operations, so its share is largest where the detectors are smallest.

Run it with

    python benchmarks/step_overhead.py
    python benchmarks/step_overhead.py --teacher narrow32 --student narrow16 --neck-channels 64 --head-convs 2 \\
        --classes 10 --size 128 --batch-size 16
    python benchmarks/step_overhead.py --detector fcos --policies detkds/released-anchor-free --repetitions 20
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from detkds.config import TrainConfig
from detkds.detectors import Detector, build_detector
from detkds.distiller import Distiller
from detkds.policy import Policy, load_policy
from detkds.runs.plan import absolute
from detkds.structures import Batch, DetectorOutput, Target
from detkds.training.student import StudentTrainer
from detkds.training.teacher import teacher_forward

TARGETS = {"detkds/released-global": 0.10, "detkds/one-stage": 0.25}
"""The most a policy may add, as a fraction of the student's step and the teacher's forward pass."""


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    options = {"neck_channels": arguments.neck_channels, "head_convs": arguments.head_convs}
    names = [f"class {index}" for index in range(arguments.classes)]
    teacher = build_detector(arguments.detector, names, backbone=arguments.teacher, **options).eval()
    teacher.requires_grad_(False)
    batch = random_batch(arguments.batch_size, arguments.size, arguments.classes, arguments.objects)
    answer = teacher_forward(teacher, batch)
    config = TrainConfig(batch_size=arguments.batch_size, warmup_steps=0, lr=1e-4)

    def trainer(policy: Policy) -> StudentTrainer:
        student = build_detector(arguments.detector, names, backbone=arguments.student, **options)
        steps = 100 * arguments.repetitions
        return StudentTrainer(policy.name, student, policy, teacher, config, steps, seed=0, device=torch.device("cpu"))

    trainers = {name: trainer(absolute(load_policy(name))) for name in arguments.policies}
    parts: dict[str, Callable[[], object]] = {
        "student": partial(trainer(Policy()).train_step, batch, None),
        "teacher": partial(teacher_forward, teacher, batch),
        "teacher, features only": partial(teacher_forward, teacher, batch, responses=False),
        **{name: partial(one.train_step, batch, answer) for name, one in trainers.items()},
    }
    report(measure(parts, arguments), arguments.policies)
    for one in trainers.values():
        report_terms(one.model.distiller.policy, one.student, teacher, answer, batch, arguments)


def parse_arguments() -> argparse.Namespace:
    """The command line; the defaults are a usual pair at a size that a processor can train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--detector", default="retinanet")
    parser.add_argument("--teacher", default="resnet50", help="backbone of the teacher")
    parser.add_argument("--student", default="resnet18", help="backbone of the student")
    parser.add_argument("--neck-channels", type=int, default=256)
    parser.add_argument("--head-convs", type=int, default=4)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--size", type=int, default=320, help="pixels of an image side")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--objects", type=int, default=6, help="most objects of an image; images hold 0 to this many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, for a machine that others share")
    parser.add_argument("--policies", nargs="+", default=list(TARGETS))
    return parser.parse_args()


def random_batch(images: int, size: int, classes: int, most_objects: int) -> Batch:
    """Noise with 0 to ``most_objects`` random boxes an image, of a seventh to two fifths of the image side."""
    generator = torch.Generator().manual_seed(0)
    targets: list[Target] = []
    for image in range(images):
        objects = image % (most_objects + 1)
        sides = size * (1 / 7 + (2 / 5 - 1 / 7) * torch.rand(objects, 2, generator=generator))
        corners = (size - sides) * torch.rand(objects, 2, generator=generator)
        labels = torch.randint(classes, (objects,), generator=generator)
        targets.append(Target(boxes=torch.cat([corners, corners + sides], 1), labels=labels))
    pixels = torch.rand(images, 3, size, size, generator=generator)
    return Batch(pixels, torch.tensor([[size, size]] * images), tuple(range(images)), targets)


def measure(parts: dict[str, Callable[[], object]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each part, one figure per repetition, after one round to warm up."""
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in parts}
    for repetition in range(arguments.repetitions + 1):
        for name, run in parts.items():
            started = clock()
            run()
            if repetition:
                times[name].append(1000 * (clock() - started))
    return times


def report(times: dict[str, list[float]], policies: list[str]) -> None:
    """Print the median of every part, and what each policy adds as a fraction of student and teacher."""
    median = {name: statistics.median(values) for name, values in times.items()}
    for name in ("student", "teacher", "teacher, features only"):
        print(f"{name:<28}{median[name]:8.1f} ms")
    whole = median["student"] + median["teacher"]
    for name in policies:
        added = statistics.median(own - alone for own, alone in zip(times[name], times["student"], strict=True))
        limit = f", target at most {TARGETS[name]:.0%}" if name in TARGETS else ""
        print(f"{name:<28}{added:8.1f} ms added = {added / whole:.1%} of student + teacher{limit}")


def report_terms(
    policy: Policy,
    student: Detector,
    teacher: Detector,
    answer: DetectorOutput,
    batch: Batch,
    arguments: argparse.Namespace,
) -> None:
    """Print the milliseconds of each term alone, down to the student's features and responses."""
    output = leaves(student(batch))

    def alone(distiller: Distiller) -> None:
        [loss] = distiller(output, answer, batch.targets).values()
        loss.backward()

    parts: dict[str, Callable[[], object]] = {
        str(term): partial(alone, Distiller(Policy([term]), student=student, teacher=teacher)) for term in policy
    }
    print(f"\n{policy.name}: each term alone, forward and backward")
    for term, values in measure(parts, arguments).items():
        print(f"{statistics.median(values):8.1f} ms  {term}")


def leaves(output: DetectorOutput) -> DetectorOutput:
    """The output cut off from the detector: its tensors are where the gradient ends."""
    names = ("features", "logits", "regression", "boxes")
    cut = {name: {k: v.detach().requires_grad_() for k, v in getattr(output, name).items()} for name in names}
    return replace(output, **cut)


if __name__ == "__main__":
    main()
