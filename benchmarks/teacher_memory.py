"""How much memory does a teacher add to a training? Its weights and one forward pass, and nothing more.

Each part runs in a process of its own, with the same student, batch and policy, and reports its peak: on a CPU the
resident size above that of the imports, on a GPU what the allocator gave out. ``student`` trains without a teacher;
``teacher`` makes one forward pass of the frozen teacher and keeps its output; ``both`` distils. What a teacher adds is
``both`` less ``student``, and should not exceed ``teacher``.

Run it with

    python benchmarks/teacher_memory.py
    python benchmarks/teacher_memory.py --teacher resnext101 --size 800 --device cuda

"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from detkds.config import TrainConfig
from detkds.detectors import Detector, build_detector
from detkds.policy import Policy, load_policy
from detkds.runs.pair_check import random_batch
from detkds.runs.plan import absolute
from detkds.training.student import StudentTrainer
from detkds.training.teacher import teacher_forward

CLASSES = [f"class {number}" for number in range(20)]
PARTS = ("student", "teacher", "both")
STEPS = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every part in its own process and print what the teacher adds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--teacher", default="resnet50", help="backbone of the teacher")
    parser.add_argument("--student", default="resnet18", help="backbone of the student")
    parser.add_argument("--size", type=int, default=320, help="pixels of an image side; a batch has two")
    parser.add_argument("--policy", default="detkds/one-stage")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", choices=PARTS, help="measure this part alone and print it as JSON")
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(measure(options)))
        return
    peaks: dict[str, float] = {}
    for part in PARTS:
        command = [sys.executable, __file__, *(arguments or sys.argv[1:]), "--part", part]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peaks[part] = found["peak"]
        print(f"{part:8} {found['peak']:8.1f} MB", f"(weights {found['weights']:.1f} MB)" if found["weights"] else "")
    added = peaks["both"] - peaks["student"]
    print(f"the teacher adds {added:.1f} MB; alone, its weights and one forward pass take {peaks['teacher']:.1f} MB")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The peak of one part above the imports, and the teacher's weights, in 10^6 bytes."""
    torch.set_num_threads(1)
    device = torch.device(options.device)
    batch = random_batch(len(CLASSES), options.size, 0).to(device)
    before = _peak(device)
    teacher = _detector(options.teacher, device) if options.part != "student" else None
    weights = 0 if teacher is None else sum(one.nbytes for one in teacher.state_dict().values())
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    if options.part == "teacher":
        kept: Any = [teacher_forward(teacher, batch) for _ in range(STEPS)][-1]  # type: ignore[arg-type]
        del kept
    else:
        policy = Policy() if teacher is None else absolute(load_policy(options.policy))
        student = _detector(options.student, device)
        trainer = StudentTrainer("student", student, policy, teacher, TrainConfig(lr=1e-6), 100, seed=0, device=device)
        for _ in range(STEPS):
            trainer.train_step(batch, None if teacher is None else teacher_forward(teacher, batch))
    return {"peak": (_peak(device) - before) / 1e6, "weights": weights / 1e6}


def _detector(backbone: str, device: torch.device) -> Detector:
    torch.manual_seed(0)
    return build_detector("retinanet", CLASSES, backbone=backbone).to(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
