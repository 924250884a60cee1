"""Every example runs as it stands."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


def test_there_are_examples():
    assert any(path.name == "plain_loop.py" for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs_and_prints(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(path)])
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert (path.read_text(encoding="utf-8").split('"""')[1]).strip(), "an example says what it shows and how to run it"


def test_the_plain_loop_distils(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with torch.random.fork_rng():
        runpy.run_path(str(next(path for path in EXAMPLES if path.stem == "plain_loop")))["main"](steps=2)
    first, second = capsys.readouterr().out.splitlines()
    values = [float(line.rpartition("global/l1 ")[2]) for line in (first, second)]
    assert all("classification" in line for line in (first, second)) and values[0] > 0 and values[1] > 0
