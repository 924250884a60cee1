"""Measure every policy of a small closed space, so that search algorithms can be compared on it in seconds.

The space is one term each: all transforms and distances of ``global`` at one strength, and the whole of
``localization``. Policies that are the same loss up to a constant are trained once. All candidates of a seed share
initial weights, batches and augmentation; AP is measured on the validation images at every rung of one and the same
training. The random order makes any beginning of the list a random sample.

Results are appended as they come and the run resumes where it was left; a second process may work from the end of the
list towards the first. Run it with

    python benchmarks/table/measure.py --out runs/table
    python benchmarks/table/measure.py --out runs/table --backwards
    python benchmarks/table/measure.py --out runs/table --pack benchmarks/table/digits.jsonl.gz

"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import detkds
from detkds.config import RunConfig
from detkds.policy import Policy, Term
from detkds.policy_search.space import Params, Space, load_spaces, points
from detkds.progress import Progress
from detkds.runs.plan import SEARCH, Plan, load_run, make_plan
from detkds.runs.session import open_session
from detkds.training.calibrate import TermProbe, calibrate, probe_terms, unit
from detkds.training.loop import TrainingObserver, train
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer
from detkds.training.teacher import live

HERE = Path(__file__).parent
RUNGS = (3, 9)
"""Epochs after which AP is measured; the last is the whole training."""


@dataclass(frozen=True)
class Job:
    """One training: a choice of the space and a seed."""

    knowledge: str
    params: Params
    policy: Policy
    seed: int

    @property
    def line(self) -> dict[str, Any]:
        """What names it in the file."""
        return {"knowledge": self.knowledge, "params": dict(self.params), "seed": self.seed}


def main() -> None:
    """Measure what is missing, or pack what there is."""
    arguments = parse_arguments()
    config = load_run(HERE / "digits.yaml", [f"runs={arguments.out}", *arguments.overrides])
    arguments.out.mkdir(parents=True, exist_ok=True)
    spaces = table_spaces(config, arguments.strength)
    path = arguments.out / "digits.jsonl"
    if not path.exists():
        path.write_text(json.dumps(header(config, spaces)) + "\n", encoding="utf-8")
    if arguments.pack is not None:
        pack(arguments.out, arguments.pack)
        return
    wanted = jobs(spaces, arguments.repeats)
    if arguments.backwards:
        path = arguments.out / "digits-backwards.jsonl"
        wanted.reverse()
    plan = make_teacher(make_plan(config))
    setup = plan.setups[SEARCH]
    with path.open("a", encoding="utf-8") as file:
        while chunk := next_chunk(wanted, arguments.out, config.proxy.population):
            records = measured(setup, chunk, config.proxy.calibration_batches)
            file.write("".join(json.dumps(record) + "\n" for record in records))
            file.flush()
            left = len(wanted) - len(finished(arguments.out))
            print(f"{left} of {len(wanted)} left, {records[0]['seconds']:.2f} s each", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--pack", type=Path, default=None, help="write the results there as one file, and stop")
    parser.add_argument("--backwards", action="store_true", help="begin at the end of the list")
    parser.add_argument("--strength", type=float, default=10.0, help="ratio of gradients of the global terms")
    parser.add_argument("--repeats", type=int, default=100, help="policies that are measured with a second seed too")
    parser.add_argument("overrides", nargs="*", help="key=value for the configuration")
    return parser.parse_args()


def table_spaces(config: RunConfig, strength: float) -> dict[str, Space]:
    """Both spaces; the weight of ``global`` is fixed."""
    spaces = load_spaces("default", "gradient", config.search.knowledge)
    one = spaces["global"]
    return {**spaces, "global": Space("global", {**one.genes, "weight": (strength,)}, "gradient")}


def jobs(spaces: dict[str, Space], repeats: int) -> list[Job]:
    """Every distinct policy once, in random order, and the first ``repeats`` of them with a second seed as well."""
    distinct: dict[str, Job] = {}
    for knowledge, space in spaces.items():
        for params in points(space):
            distinct.setdefault(space.key(params), Job(knowledge, params, space.policy(params), 0))
    listed = list(distinct.values())
    shuffled = [listed[i] for i in np.random.default_rng(0).permutation(len(listed))]
    again = [Job(job.knowledge, job.params, job.policy, 1) for job in shuffled[:repeats]]
    half = len(shuffled) // 2
    return shuffled[:half] + again + shuffled[half:]


def make_teacher(plan: Plan) -> Plan:
    """The plan of the proxy: its teacher, too, is trained without the images that AP is measured on."""
    small = replace(plan, train_data=plan.proxy_data, test_data=plan.validation_data)
    with open_session(small, Progress()) as session:
        print("teacher:", session.prepare_teacher()["ap"], flush=True)
    return small


def next_chunk(wanted: Sequence[Job], out: Path, size: int) -> list[Job]:
    """The next trainings that nobody has finished, all of one seed."""
    done = {_name(line) for line in finished(out)}
    rest = [job for job in wanted if _name(job.line) not in done]
    return [job for job in rest if job.seed == rest[0].seed][:size]


def measured(setup: TrainingSetup, chunk: Sequence[Job], calibration_batches: int) -> list[dict[str, Any]]:
    """Filter, calibrate and train a population; one record per training."""
    started = time.perf_counter()
    probes = probed(setup, chunk, calibration_batches)
    refusals = [[r for term in job.policy if (r := probes[unit(term)].refusal(term))] for job in chunk]
    policies = {i: calibrate(job.policy, probes) for i, job in enumerate(chunk) if not refusals[i]}
    trained = train_with_rungs(setup, policies, chunk[0].seed)
    seconds = round((time.perf_counter() - started) / len(chunk), 3)
    return [
        {**job.line, **(trained[i] if i in trained else refused(refusals[i])), "seconds": seconds}
        for i, job in enumerate(chunk)
    ]


def probed(setup: TrainingSetup, chunk: Sequence[Job], calibration_batches: int) -> dict[Term, TermProbe]:
    """What is known of the terms of a population before its training."""
    assert setup.teacher is not None
    seed = chunk[0].seed
    batches = [batch.to(setup.device) for batch in islice(setup.batches(seed)(0), calibration_batches)]
    student = setup.build_student(seed, True).to(setup.device)
    return probe_terms([term for job in chunk for term in job.policy], student, setup.teacher, batches, seed=seed)


class RungObserver(TrainingObserver):
    """AP and AP50 in percent at every rung, by student's key."""

    def __init__(self, setup: TrainingSetup, keys: Iterable[str]) -> None:
        super().__init__()
        self.records: dict[str, dict[str, Any]] = {
            key: {"state": "complete", "ap": [], "ap50": [], "reason": ""} for key in keys
        }
        self._setup = setup

    def epoch(self, done: int, students: Sequence[StudentTrainer]) -> None:
        if done in RUNGS:
            for student in students:
                metrics = self._setup.measure(student.student)
                self.records[student.key]["ap"].append(round(100 * metrics.ap, 4))
                self.records[student.key]["ap50"].append(round(100 * metrics.ap50, 4))


def train_with_rungs(setup: TrainingSetup, policies: dict[int, Policy], seed: int) -> dict[int, dict[str, Any]]:
    """Train side by side; the record of each, by index."""
    if not policies:
        return {}
    assert setup.teacher is not None
    steps = setup.steps(epochs=setup.config.epochs)
    students = [
        StudentTrainer(
            str(i),
            setup.build_student(seed, True),
            policy,
            setup.teacher,
            setup.config,
            steps,
            seed=seed,
            device=setup.device,
        )
        for i, policy in policies.items()
    ]
    observer = RungObserver(setup, [student.key for student in students])
    train(students, setup.batches(seed), setup.config, live(setup.teacher), observer=observer)
    for student in students:
        if student.failure is not None:
            observer.records[student.key].update(state="failed", reason=student.failure)
    return {int(key): record for key, record in observer.records.items()}


def refused(reasons: Sequence[str]) -> dict[str, Any]:
    """The record of a policy that the filter refused."""
    return {"state": "filtered", "ap": [], "ap50": [], "reason": "; ".join(reasons)}


def header(config: RunConfig, spaces: dict[str, Space]) -> dict[str, Any]:
    """The first line: what was measured, how and where."""
    return {
        "format": 1,
        "name": "digits",
        "command": "python benchmarks/table/measure.py",
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "version": detkds.__version__,
        "torch": torch.__version__,
        "machine": f"{_processor()}, {config.threads} thread, {platform.system()} {platform.machine()}",
        "rungs": list(RUNGS),
        "spaces": {name: space.describe() for name, space in spaces.items()},
        "setting": config.model_dump(mode="json", include={"data", "teacher", "student", "inherit", "train", "proxy"}),
    }


def pack(out: Path, target: Path) -> None:
    """Compress the results, sorted so that the same results give the same file."""
    first = read_lines(out / "digits.jsonl")[0]
    lines = sorted({_name(line): line for line in finished(out)}.values(), key=_name)
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in [first, *lines])
    target.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{target}: {len(lines)} trainings, {target.stat().st_size / 1024:.0f} KiB")


def finished(out: Path) -> list[dict[str, Any]]:
    """The records of all processes."""
    lines = [line for path in sorted(out.glob("digits*.jsonl")) for line in read_lines(path)]
    return [line for line in lines if "params" in line]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a kill tore is left out."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def _name(line: dict[str, Any]) -> str:
    return json.dumps([line["knowledge"], line["params"], line["seed"]], sort_keys=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False).stdout.strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
