"""One training at a time: kept, resumed, and the same in the search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from detkds.runs.single import distill, find_policy, train_plain
from safetensors.torch import load_file

from detkds.config_file import parse_config
from detkds.errors import ConfigError, UserError
from detkds.policy import Policy, Term
from detkds.runs import single
from detkds.training import loop

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what has been trained."""
    names: list[str] = []
    real = single.train_candidates

    def counted(setting: Any, candidates: Any, **options: Any) -> Any:
        names.extend(candidate.name for candidate in candidates)
        return real(setting, candidates, **options)

    monkeypatch.setattr(single, "train_candidates", counted)
    return names


def test_a_finished_training_is_not_repeated(tiny_run: dict[str, Any], heard: Any, trainings: list[str]) -> None:
    config = parse_config(tiny_run)
    first = distill(config, "pkd", None, heard)
    again = distill(config, "pkd", None, heard)
    assert trainings == ["pkd"]
    assert again.metrics == first.metrics
    assert first.weights.exists()
    assert not list(first.weights.parent.glob("*.state"))
    distill(config, "pkd", 5, heard)
    assert trainings == ["pkd", "pkd"]
    assert heard.stages[0] == ("teacher", 1)
    assert heard.stages[-1] == ("pkd, seed 5", 1)


def test_another_policy_of_the_same_name_is_trained_anew(
    tiny_run: dict[str, Any], heard: Any, trainings: list[str], tmp_path: Path
) -> None:
    config = parse_config(tiny_run)
    path = tmp_path / "mine.yaml"
    for weight in (1.0, 2.0):
        path.write_text(Policy([Term("global", (), "l2", weight)]).to_yaml())
        done = distill(config, path, 0, heard)
        record = json.loads(done.weights.with_suffix(".json").read_text())
        assert record["key"] == f"global: - | l2 x {weight:g}"
        assert record["policy"]["terms"][0]["weight"] == weight
    assert trainings == ["mine", "mine"]


def test_an_interrupted_training_goes_on_and_ends_the_same(
    tiny_run: dict[str, Any], heard: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_run["train"] = {**tiny_run["train"], "epochs": 3}
    whole = distill(parse_config({**tiny_run, "name": "whole"}), "pkd", 0, heard)
    config = parse_config(tiny_run)
    real = loop.save_state

    def killed_after_the_second(path: Path, members: Any, epochs_done: int) -> None:
        real(path, members, epochs_done)
        if path.parent.name == "distill" and epochs_done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", killed_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        distill(config, "pkd", 0, heard)
    monkeypatch.setattr(loop, "save_state", real)
    assert not list((tmp_path / "runs/tiny/distill").glob("*.safetensors"))
    resumed = distill(config, "pkd", 0, heard)
    assert resumed.metrics == whole.metrics
    ours, theirs = load_file(resumed.weights), load_file(whole.weights)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert resumed.steps.read_text() == whole.steps.read_text()


def test_a_relative_weight_is_turned_into_an_absolute_one(tiny_run: dict[str, Any], heard: Any) -> None:
    done = distill(parse_config(tiny_run), "fitnets-gradient", 0, heard)
    (term,) = json.loads(done.weights.with_suffix(".json").read_text())["policy"]["terms"]
    assert term["weight"] > 0
    assert "weighting" not in term


def test_the_policy_of_the_search_is_the_default(tiny_run: dict[str, Any]) -> None:
    config = parse_config(tiny_run)
    with pytest.raises(ConfigError, match="run detkds search first"):
        find_policy(config, None)
    config.folder.mkdir(parents=True)
    (config.folder / "policy.yaml").write_text(Policy([Term("global", (), "l1", 3.0)]).to_yaml())
    found = find_policy(config, None)
    assert (found.name, found.key) == ("searched", "global: - | l1 x 3")


@pytest.mark.parametrize(
    ("teacher", "said"),
    [({"train": None, "weights": "some.safetensors"}, "some.safetensors"), ({"train": None}, "expected weights")],
)
def test_a_teacher_that_is_not_to_be_trained(tiny_run: dict[str, Any], heard: Any, teacher: Any, said: str) -> None:
    tiny_run["teacher"] = {**tiny_run["teacher"], **teacher}
    with pytest.raises(UserError, match=said):
        train_plain(parse_config(tiny_run), "teacher", None, heard)


def test_the_student_of_another_seed_is_another(tiny_run: dict[str, Any], heard: Any) -> None:
    config = parse_config(tiny_run)
    one, other = (train_plain(config, "student", seed, heard) for seed in (0, 1))
    assert one.weights.read_bytes() != other.weights.read_bytes()
    assert [stage for stage, _ in heard.stages] == ["student, seed 0", "student, seed 1"]
    assert heard.done == [1, 1]


@pytest.mark.slow
def test_two_processes_distil_one_student_together(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    """Under torchrun each process takes its own batches; the first one alone writes."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run))
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "detkds", "distill"]
    run = subprocess.run(
        [sys.executable, "-m", *command, str(path), "--policy", "pkd", "--json"],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    done = json.loads(run.stdout)
    assert load_file(done["weights"])
    lines = [json.loads(line) for line in Path(done["steps"]).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1]  # 2 batches of 4 images, one for each process
    assert "global/l2" in lines[0]["losses"]
    assert 0 <= done["metrics"]["ap"] <= 1
