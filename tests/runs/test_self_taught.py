"""Runs whose students are taught by their own moving average: no teacher is built, trained or measured."""

from __future__ import annotations

from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.errors import ConfigError
from detkds.runs.plan import make_plan
from detkds.runs.search import run_search
from detkds.runs.train import run_distill


@pytest.fixture
def own_run(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """A tiny run without a teacher."""
    train = {**tiny_run["train"], "ema": 0.9}
    return {**tiny_run, "teacher": {"detector": "self"}, "train": train, "student": tiny_run["student"]}


def test_a_student_is_distilled_without_a_teacher(own_run: dict[str, Any], heard: Any) -> None:
    config = parse_config(own_run)
    found = run_distill(config, "pkd", 0, heard)
    assert found is not None
    assert 0 <= found.metrics["ap"] <= 1 and found.weights.exists()
    assert not (config.folder / "teacher.safetensors").exists()


def test_a_whole_search_without_a_teacher(own_run: dict[str, Any], heard: Any) -> None:
    config = parse_config({**own_run, "final": {"seeds": [0], "policies": ["pkd"]}})
    finished = run_search(config, heard)
    names = [row["name"] for row in finished.summary["rows"]]
    assert names == ["plain", "pkd", "searched"]  # nothing is inherited, and there is no teacher's row
    assert "teacher: the moving average of each student's own weights" in heard.notes
    assert (config.folder / "report.html").exists()


def test_what_does_not_belong_to_it_is_refused(tiny_run: dict[str, Any]) -> None:
    teacher = {"detector": "self", "backbone": "narrow8"}
    with pytest.raises(ConfigError) as caught:
        make_plan(parse_config({**tiny_run, "teacher": teacher}))
    assert "takes no backbone" in str(caught.value) and "train.ema" in str(caught.value)
