"""Kill commands at random moments, start them again, and compare what they end with to an uninterrupted run.

For every executor and stage, a tiny run on the embedded digits is taken to where that stage begins. From there the
driving process alone is killed (SIGKILL; its workers are left to notice), again and again at moments drawn over the
stage's length, every fifth while it still starts, until the command ends by itself. The run folder must then hold the
numbers of an uninterrupted run in this process, bit for bit: the comparison's rows and metrics, policy, trials,
confirmation, the shipped student's weights, what ``distill`` leaves, the points of the proxy's check, and each stored
result. Nothing half-written, no training state and no process may stay. States are saved after every pass, so that
trainings are taken up in their midst. Linux only: processes are forked from this one, which has imported everything.

Run it with

    python benchmarks/kills.py --executor inline --kills 60
    python benchmarks/kills.py --executor inline processes ray --kills 5 --seed 1

It exits with 1 where anything differs; with ``--out`` the folders of such runs are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from detkds.cli import app
from detkds.progress_sinks import PROGRESS_FILE
from detkds.runs import preload
from detkds.runs.executors import start_importing

HEAD = {"neck_channels": 16, "head_convs": 1, "anchor_scales": [2.0], "anchor_ratios": [1.0]}
TRAIN = {"epochs": 2, "draws": 8, "batch_size": 4, "optimizer": "adamw", "lr": 0.004, "warmup_steps": 2}
RUN = {
    "name": "run",
    "threads": 1,
    "device": "cpu",
    "plugins": ["every_pass"],
    "data": {"embedded": "digits", "embedded_images": [16, 6], "embedded_classes": 3, "size": 64},
    "teacher": {"detector": "retinanet", "backbone": "narrow8", "options": HEAD, "train": TRAIN},
    "student": {"detector": "retinanet", "backbone": "narrow4", "options": HEAD},
    "train": TRAIN,
    "proxy": {"validation": 0.5, "epochs": 2, "draws": 8, "population": 2, "calibration_batches": 1},
    "search": {"knowledge": ["global", "logits"], "candidates": 8, "portfolio": 4, "race": [3, 2]},
    "final": {"seeds": [0, 1], "policies": ["pkd"]},
}
PLUGIN = """from detkds.training.checkpoint import StateFiles

StateFiles.__init__.__defaults__ = (0.0,)  # seconds between two saves
"""
SEARCH, DISTILL = ("search",), ("distill", "--policy", "pkd")
PROXY_CHECK = ("proxy-check", "--policies", "6", "--seeds", "1")
STAGES = {
    "teacher": (SEARCH, "teacher"),
    "search": (SEARCH, "search"),
    "confirmation": (SEARCH, "confirmation"),
    "comparison": (SEARCH, "comparison"),
    "distill": (DISTILL, "pkd, seed 0"),
    "proxy": (PROXY_CHECK, "proxy"),
    "full budget": (PROXY_CHECK, "full budget"),
}
"""The command that goes through a stage, and what its progress calls it."""

TIMED = {"seconds", "teacher_outputs"}
"""What two runs of the same differ in."""

KILLS_PER_RUN = 12
"""After which a run is left to end, so that kills fall on all parts of a stage."""

PATIENCE = {"ray": 120.0}
"""Seconds after which no process may be left, where not 20: Ray's own agents outlive a killed Ray by up to 71 s."""

MARK = "DETKDS_KILLS"


@dataclass
class Line:
    """One line of the table."""

    stage: str
    executor: str
    kills: int = 0
    in_stage: int = 0
    runs: int = 0
    differences: int = 0


class Laboratory:
    """Starts commands in run folders below ``home``, and kills them."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        self.random = random.Random(seed)
        os.environ[MARK] = home.name
        os.environ["PYTHONPATH"] = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")])
        sys.path.append(str(home))
        (home / "every_pass.py").write_text(PLUGIN)
        start_importing(preload.__name__)  # one server of workers for all drivers, so that workers start at once
        self._own = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]

    def start(self, place: str, executor: str, command: Sequence[str]) -> Run:
        """Start a command in the run folder ``home/place/run``."""
        folder = self.home / place / "run"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRESS_FILE).unlink(missing_ok=True)
        config = {**RUN, "runs": str(folder.parent), "executor": executor}
        config |= {"workers": 2} if executor in ("processes", "ray") else {}
        path = self.home / f"{place}.yaml"
        path.write_text(yaml.safe_dump(config))
        log = self.home / f"{place}.log"
        process = multiprocessing.get_context("fork").Process(
            target=drive, args=([command[0], str(path), *command[1:], "--progress", "text"], log)
        )
        process.start()
        return Run(process, folder, log, time.monotonic())

    def orphans(self, seconds: float) -> list[int]:
        """Processes that still run after so long, beside those that serve all."""
        until = time.monotonic() + seconds
        while (left := [number for number in marked(self.home.name) if number not in self._own]) and (
            time.monotonic() < until
        ):
            time.sleep(0.1)
        return left


@dataclass
class Run:
    """A command at work."""

    process: BaseProcess
    folder: Path
    log: Path
    started: float

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process.exitcode is not None

    @property
    def stage(self) -> str:
        """Where it is; nothing before its first stage."""
        try:
            return json.loads((self.folder / PROGRESS_FILE).read_text())["stage"]
        except (OSError, ValueError):
            return ""

    def wait(self, stage: str) -> float:
        """Until it has come to a stage, or has ended; seconds since it was started."""
        while not self.ended and self.stage != stage:
            time.sleep(0.005)
        return time.monotonic() - self.started

    def wait_while(self, stage: str, seconds: float = math.inf) -> bool:
        """So long, or until it leaves a stage or ends; whether it is still there."""
        until = time.monotonic() + seconds
        while (there := not self.ended and self.stage in ("", stage)) and time.monotonic() < until:
            time.sleep(0.005)
        return there

    def kill(self) -> None:
        """End the driver, and nobody else."""
        self.process.kill()
        self.process.join()


def drive(arguments: Sequence[str], log: Path) -> None:
    """What a driver does: a command of the command line, as the leader of a group of its own."""
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    servers: tuple[Any, ...] = (forkserver, forkserver._forkserver)  # type: ignore[attr-defined]
    for server in servers:
        server.ensure_running = lambda: None  # that of the parent serves
    app(arguments, prog_name="detkds")


def marked(mark: str) -> Iterator[int]:
    """The processes that were started by this one, by those that it started, and so on."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:
            pass


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on kills or executors, by file."""
    kept: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors" and not name.startswith("teacher/"):
            kept[name] = path.read_bytes()
        elif name in ("summary.json", "proxy_check.json", "trainings.json") or name.startswith("distill/"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            kept[name] = [untimed(json.loads(line)) for line in lines]
        elif name in ("trials.jsonl", "results.jsonl"):
            records = [untimed(json.loads(line)) for line in path.read_text().splitlines()]
            kept[name] = sorted(json.dumps({**record, "sum": None}, sort_keys=True) for record in records)
        elif name == "policy.yaml":
            kept[name] = path.read_text()
    return kept


def untimed(data: Any) -> Any:
    """The same data without times."""
    if isinstance(data, dict):
        return {key: untimed(value) for key, value in data.items() if key not in TIMED}
    return [untimed(value) for value in data] if isinstance(data, list) else data


def differences(run: Run, expected: dict[str, Any]) -> list[str]:
    """What an ended run leaves that it should not, and what differs."""
    if run.process.exitcode:
        last = run.log.read_text(errors="replace").splitlines()[-3:]
        return [f"exit code {run.process.exitcode}: {' / '.join(last)}"]
    seen = outcome(run.folder)
    faults = [
        f"{name}: {'other numbers' if name in seen and name in expected else 'missing' if name in expected else 'new'}"
        for name in sorted(seen.keys() | expected.keys())
        if seen.get(name) != expected.get(name)
    ]
    unfinished = [path for end in ("*.part", "*.tmp", "*.state", "states") for path in run.folder.rglob(end)]
    return faults + [f"left behind: {path.relative_to(run.folder)}" for path in unfinished]


def torment(laboratory: Laboratory, executor: str, stage: str, kills: int, references: dict[Any, Any]) -> Line:
    """Kill a stage so many times; a line of the table."""
    command, name = STAGES[stage]
    line = Line(stage, executor)

    def judge(run: Run) -> None:
        line.runs += 1
        faults = differences(run, references[command]) + [
            f"process {number} is left: {Path(f'/proc/{number}/cmdline').read_bytes()[:80]!r}"
            for number in laboratory.orphans(PATIENCE.get(executor, 20.0))
        ]
        line.differences += len(faults)
        for fault in faults:
            print(f"{executor}, {stage}, run {line.runs}, after {line.kills} kills: {fault}", flush=True)
        if faults:
            shutil.copytree(run.folder.parent, laboratory.home / f"kept-{executor}-{stage}-{line.runs}")

    def restore() -> None:
        shutil.rmtree(laboratory.home / place, ignore_errors=True)
        (laboratory.home / f"{place}.log").unlink(missing_ok=True)
        if snapshot.exists():
            shutil.copytree(snapshot, laboratory.home / place)

    place, snapshot = "killed", laboratory.home / f"snapshot-{stage}"
    if command not in references:
        run = laboratory.start("reference", "inline", command)
        run.process.join()
        if run.process.exitcode:
            sys.exit(f"the uninterrupted run failed:\n{run.log.read_text()}")
        references[command] = outcome(run.folder)
        shutil.rmtree(run.folder)
    if not snapshot.exists():
        restore()
        run = laboratory.start(place, "inline", command)
        run.wait(name)
        run.kill()
        shutil.copytree(run.folder.parent, snapshot)
    restore()
    run = laboratory.start(place, executor, command)
    entry = run.wait(name)
    run.wait_while(name)
    length = time.monotonic() - run.started - entry
    run.process.join()
    judge(run)
    restore()
    remaining, inflicted = length, 0
    while line.kills < kills:
        run = laboratory.start(place, executor, command)
        if inflicted == KILLS_PER_RUN:
            killed = False
        elif line.kills % 5 == 4:
            run.process.join(laboratory.random.uniform(0, entry))
            killed = not run.ended
        else:
            run.wait(name)
            delay = laboratory.random.uniform(0, max(length / 8, remaining))
            killed = run.wait_while(name, delay)
            remaining -= delay
        if killed:
            line.in_stage += run.stage == name
            line.kills += 1
            inflicted += 1
            run.kill()
        if not killed or line.kills == kills:
            if killed:
                run = laboratory.start(place, executor, command)
            run.process.join()
            judge(run)
            restore()
            remaining, inflicted = length, 0
    return line


def main() -> None:
    """Kill, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", nargs="+", default=["inline"], choices=["inline", "processes", "ray"])
    parser.add_argument("--stage", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--kills", type=int, default=60, help="in all, of each stage with each executor")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="where run folders lie; by default a folder that is removed")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="kills-", dir=arguments.out))
    laboratory, references, lines = Laboratory(home, arguments.seed), {}, []
    print(f"{'stage':14}{'executor':12}{'kills':>8}{'in stage':>10}{'runs':>8}{'differences':>13}{'minutes':>9}")
    for executor in arguments.executor:
        for stage in arguments.stage:
            began = time.monotonic()
            line = torment(laboratory, executor, stage, arguments.kills, references)
            numbers = f"{line.kills:8}{line.in_stage:10}{line.runs:8}{line.differences:13}"
            print(f"{stage:14}{executor:12}{numbers}{(time.monotonic() - began) / 60:9.1f}", flush=True)
            lines.append(line)
    if arguments.out is None:
        shutil.rmtree(home)
    sys.exit(any(line.differences for line in lines))


if __name__ == "__main__":
    main()
