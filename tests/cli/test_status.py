"""``detkds status``: a run seen from another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from tests.cli.conftest import Invoke

from detkds import progress
from detkds.progress import Progress
from detkds.progress_sinks import ProgressFile

HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``runs/cards`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "cards"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Progress:
    """A search that has done a quarter in ten minutes."""
    now = [0.0]
    run = Progress(ProgressFile(folder / "progress.json"), clock=lambda: now[0])
    run.stage("search", 4)
    run.note("logits are [not] searched")
    run.training("a", 0.0)
    now[0] = 600.0
    run.finished("a", "global/0", 31.25)
    return run


@pytest.mark.parametrize("name", ["cards", "runs/cards"])
def test_a_running_run(invoke: Invoke, folder: Path, run: Progress, name: str) -> None:
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        shown = invoke("status", name)
        data = json.loads(invoke("status", name, "--json").stdout)
        holder.communicate()
    assert shown.exit_code == 0, shown.output
    first, *lines = shown.stdout.splitlines()
    assert first.startswith("runs/cards: running, last event ")
    assert lines == [
        "  stage      search, 1 of 4",
        "  best       AP 31.2  global/0",
        "  elapsed    10 min",
        "  remaining  about 30 min",
        "  last note  logits are [not] searched",
    ]
    assert (data["state"], data["stage"], data["done"], data["best"]) == ("running", "search", 1, 31.25)
    assert (data["elapsed"], data["remaining"], data["last_note"]) == (600, 1800, "logits are [not] searched")


def test_a_killed_a_stopped_and_a_finished_run(invoke: Invoke, folder: Path, run: Progress) -> None:
    (folder / ".lock").touch()
    killed = invoke("status", "cards").stdout
    assert "cards: stopped" in killed
    assert "its process ended without closing it (killed?); run the same command again" in killed
    assert "remaining" not in killed
    run.close("KeyboardInterrupt")
    assert "reason     KeyboardInterrupt; run the same" in invoke("status", "cards").stdout
    other = Progress(ProgressFile(folder / "progress.json"))
    other.stage("comparison", 0)
    other.close()
    assert json.loads(invoke("status", "cards", "--json").stdout)["state"] == "finished"
    assert "reason" not in invoke("status", "cards").stdout


def test_looking_does_not_keep_a_run_from_beginning(invoke: Invoke, folder: Path, run: Progress) -> None:
    (folder / ".lock").touch()
    assert invoke("status", "cards").exit_code == 0
    with FileLock(folder / ".lock", timeout=0):
        assert json.loads(invoke("status", "cards", "--json").stdout)["state"] == "running"


def test_a_wall_clock_that_jumped_back(
    invoke: Invoke, folder: Path, run: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress.time, "time", lambda: 1.0)
    assert json.loads(invoke("status", "cards", "--json").stdout)["age"] == 0


def test_what_is_no_run_is_said(invoke: Invoke, folder: Path) -> None:
    missing = invoke("status", "digits")
    assert missing.exit_code == 2
    assert "there is none at digits or runs/digits" in missing.stderr
    empty = invoke("status", "cards")
    assert empty.exit_code == 2
    assert "progress.json: not found" in empty.stderr
    (folder / "progress.json").write_text('{"kind": "sta')
    torn = invoke("status", "cards")
    assert torn.exit_code == 2
    assert "expected the last event of a run" in torn.stderr
