"""What reading the teacher's outputs saves beside computing them, on the proxy of a run.

The first batches of the proxy are put through each part of a step, one part after the other; medians are reported. The
teacher's weights are those of the configuration, or random: they do not change the time. "Read from disk" asks the
system to forget its copy of a file first. What is saved is

    (forward - read) / (data + forward + K student steps)

for populations of one student and of as many as the configuration trains side by side.

Run it with

    python benchmarks/teacher_cache.py configs/cards.yaml threads=1
    python benchmarks/teacher_cache.py configs/cards.yaml threads=1 --batches 6 data.size=320 \\
        teacher.backbone=resnet50 teacher.options={} student.backbone=resnet18 student.options={}
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from detkds.policy import load_policy
from detkds.runs.plan import SEARCH, absolute, load_run, make_plan
from detkds.training.batch_files import BatchFiles
from detkds.training.digests import fingerprint
from detkds.training.student import StudentTrainer
from detkds.training.teacher import teacher_forward
from detkds.training.teacher_cache import Decision, TeacherCache

ALWAYS = Decision("cached", "", 0.0, 0.0, 0.0, 1, 1, 0, 2)


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = clock()
        result = call()
        times.setdefault(name, []).append(1000 * (clock() - began))
        return result

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        plan = make_plan(load_run(arguments.config, [*arguments.overrides, f"runs={folder}"]))
        setup = plan.setups[SEARCH]
        setup.store.preload()
        teacher = plan.teacher.eval().requires_grad_(False)
        files = BatchFiles(Path(folder), fingerprint(setup, 0), 10**12, print)
        cache = TeacherCache(teacher, files, batches=1, populations=2, decision=ALWAYS)
        policy, student = absolute(load_policy(arguments.policy)), plan.build_student(0, False)
        trainer = StudentTrainer("student", student, policy, teacher, setup.config, 1000, seed=0, device=plan.device)
        batches = islice(setup.batches(0)(0), arguments.batches + 1)
        for index in range(arguments.batches + 1):
            batch = timed("data", lambda: next(batches)).to(plan.device)
            timed("forward", partial(teacher_forward, teacher, batch))
            timed("forward, features only", partial(teacher_forward, teacher, batch, responses=False))
            output = timed("forward and write", partial(cache, 0, index, batch, True))
            timed("read", partial(cache, 0, index, batch, True))
            forget(files.path(0, index))
            timed("read from disk", partial(cache, 0, index, batch, True))
            timed("student step", partial(trainer.train_step, batch, output))
        report(times, plan.config.proxy.population)
        print(f"{files.used / 1e6 / (arguments.batches + 1):.2f} MB for a batch of {setup.config.batch_size} images")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="key=value, as on detkds's command line")
    parser.add_argument("--policy", default="detkds/one-stage")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, for a machine that others share")
    parser.add_argument("--folder", help="where the files lie; by default the system's temporary folder")
    return parser.parse_intermixed_args()


def forget(path: Path) -> None:
    """Write a file out and ask the system to drop its copy in memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report(times: dict[str, list[float]], population: int) -> None:
    """Print the median of every part, the first batch left out, and what reading saves."""
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:<24}{value:9.1f} ms")
    for students in (1, population):
        whole = median["data"] + median["forward"] + students * median["student step"]
        print(f"saved in a population of {students:<3}{(median['forward'] - median['read']) / whole:6.1%}")


if __name__ == "__main__":
    main()
