"""A whole search with Ray workers: the trials of one process, also where the driver is killed in the middle of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from detkds.cli import app

pytest.importorskip("ray", reason="needs ray: pip install 'detkds[ray]'")
SOURCE = Path(__file__).resolve().parents[2] / "src"
WORKERS = ["executor=ray", "workers=2"]
KILLED = """
import os, signal, subprocess, sys
from detkds.config_file import load_config
from detkds.progress import Progress
from detkds.runs.search import run_search

heard = []

def impatient(event):
    heard.extend([event] if event.kind == "finished" and event.stage == "search" else [])
    if len(heard) == 3:
        print(subprocess.check_output(["ps", "-eo", "args"], text=True).count("ray::Worker"), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

run_search(load_config(sys.argv[1], sys.argv[2:]), Progress(impatient))
"""


@pytest.fixture
def run_file(tiny_run: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    budgets = {"method": "divide", "single_budget": 4, "combination_budget": 2, "parallel": 2}
    changes = {
        "search": {**tiny_run["search"], "knowledge": ["global", "logits"], **budgets},
        "proxy": {**tiny_run["proxy"], "draws": 64, "epochs": 2, "halving": {"rungs": [1], "eta": 2}},
        "train": {**tiny_run["train"], "lr": 0.01},
        "final": {"seeds": [0], "policies": []},
        "threads": 1,
    }
    path.write_text(yaml.safe_dump({**tiny_run, **changes}))
    return path


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "RAY_agent_register_timeout_ms": "100000", **variables}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def trials(folder: Path) -> list[dict[str, Any]]:
    """What the search found, without what differs between two runs of the same."""
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def workers(marker: str) -> list[str]:
    """Commands of the workers that inherited a marker in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ").strip()
            if command.startswith("ray::Worker") and marker.encode() in (process / "environ").read_bytes():
                found.append(command)
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_killed_driver_takes_its_workers_along_and_the_search_goes_on(run_file: Path, tmp_path: Path) -> None:
    local = CliRunner().invoke(app, ["search", str(run_file), "name=local", "--json"])
    assert local.exit_code == 0, local.output

    killed = start("-c", KILLED, str(run_file), *WORKERS, DETKDS_MARKER=str(tmp_path))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert int(killed.stdout) >= 2, "there were workers"
    deadline = time.monotonic() + 60
    while left := workers(str(tmp_path)):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)

    resumed = start("-m", "detkds", "search", str(run_file), *WORKERS, "--json")
    assert resumed.returncode == 0, resumed.stderr
    json.loads(resumed.stdout)
    found = trials(tmp_path / "runs" / "tiny")
    assert found == trials(tmp_path / "runs" / "local")
    assert sum(trial["counts"] for trial in found) == 10
    assert {"complete", "pruned"} <= {trial["state"] for trial in found}
