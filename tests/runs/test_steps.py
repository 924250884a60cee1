"""The log of losses: sparse, in JSON, and overwritten where a resumed training repeats steps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detkds.runs.steps import StepLog


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tell(log: StepLog, steps: range, loss: float) -> None:
    for step in steps:
        student: Any = SimpleNamespace(steps=step, optimizer=SimpleNamespace(param_groups=[{"lr": 0.1 * step}]))
        log.step(student, {"task/box": torch.tensor(loss), "global/l1": torch.tensor(2 * loss)})


def test_the_first_and_every_nth_step_are_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "steps.jsonl"
    tell(StepLog(path, steps_per_epoch=4, every=5), range(1, 12), 0.5)
    lines = lines_of(path)
    assert [(line["step"], line["epoch"]) for line in lines] == [(1, 0), (5, 1), (10, 2)]
    assert lines[1]["losses"] == {"task/box": 0.5, "global/l1": 1.0}
    assert lines[1]["lr"] == pytest.approx(0.5)


def test_a_resumed_training_takes_the_place_of_what_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    tell(StepLog(path, steps_per_epoch=4, every=2), range(1, 8), 1.0)
    tell(StepLog(path, steps_per_epoch=4, every=2), range(5, 9), 3.0)
    assert [(line["step"], line["losses"]["task/box"]) for line in lines_of(path)] == [
        (1, 1.0),
        (2, 1.0),
        (4, 1.0),
        (6, 3.0),
        (8, 3.0),
    ]
