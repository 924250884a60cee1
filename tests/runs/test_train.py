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
from safetensors.torch import load_file

from detkds.config import RunConfig
from detkds.config_file import parse_config
from detkds.errors import ConfigError, UserError
from detkds.policy import Policy, Term
from detkds.progress import Progress
from detkds.runs.train import SingleTraining, resolve_policy, run_distill, run_train
from detkds.training.checkpoint import StateFiles

SOURCE = Path(__file__).resolve().parents[2] / "src"


def distill(config: RunConfig, policy: str | Path, seed: int | None, progress: Progress) -> SingleTraining:
    done = run_distill(config, policy, seed, progress)
    assert done is not None
    return done


def record_of(done: SingleTraining) -> dict[str, Any]:
    return json.loads(done.weights.with_suffix(".json").read_text())


def test_a_finished_training_is_not_repeated(tiny_run: dict[str, Any], heard: Any, trainings: Any) -> None:
    config = parse_config(tiny_run)
    first = distill(config, "pkd", None, heard)
    again = distill(config, "pkd", None, heard)
    assert trainings == [("teacher", 0), ("pkd", 0)]
    assert again == first
    assert first.weights.exists()
    assert not list(config.folder.rglob("*.state"))
    distill(config, "pkd", 5, heard)
    assert trainings[2:] == [("pkd", 5)]
    assert heard.stages[0] == ("teacher", 1)
    assert heard.stages[-1] == ("pkd, seed 5", 1)


def test_another_policy_of_the_same_name_is_trained_anew(
    tiny_run: dict[str, Any], heard: Any, trainings: Any, tmp_path: Path
) -> None:
    config = parse_config(tiny_run)
    path = tmp_path / "mine.yaml"
    records = []
    for weight in (1.0, 2.0, 1.0):
        path.write_text(Policy([Term("global", (), "l2", weight)]).to_yaml())
        done = distill(config, path, 0, heard)
        records.append((record_of(done), load_file(done.weights)))
        assert records[-1][0]["policy"]["terms"][0]["weight"] == weight
    assert trainings[1:] == [("mine", 0), ("mine", 0)]
    (first, weights), (second, others), (third, again) = records
    assert first["key"] != second["key"] and first == third
    assert all(weights[name].equal(again[name]) for name in weights)
    assert not all(weights[name].equal(others[name]) for name in weights)


def test_an_interrupted_training_goes_on_and_ends_the_same(
    tiny_run: dict[str, Any], heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run["train"] = {**tiny_run["train"], "epochs": 3}
    whole = distill(parse_config({**tiny_run, "name": "whole"}), "pkd", 0, heard)
    config = parse_config(tiny_run)
    real = StateFiles.save

    def killed_after_the_second(self: StateFiles, students: Any, epochs: int, *, last: bool = False) -> None:
        real(self, students, epochs, last=True)
        if epochs == 2 and students[0].distils:
            raise KeyboardInterrupt

    monkeypatch.setattr(StateFiles, "save", killed_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        distill(config, "pkd", 0, heard)
    monkeypatch.setattr(StateFiles, "save", real)
    assert not list(config.folder.glob("distill/*.safetensors")) and len(list(config.folder.rglob("*.2.state"))) == 1
    resumed = distill(config, "pkd", 0, heard)
    assert resumed.metrics == whole.metrics
    ours, theirs = load_file(resumed.weights), load_file(whole.weights)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert resumed.steps.read_text() == whole.steps.read_text()


def test_a_relative_weight_is_turned_into_an_absolute_one(tiny_run: dict[str, Any], heard: Any) -> None:
    done = distill(parse_config(tiny_run), "fitnets-gradient", 0, heard)
    (term,) = record_of(done)["policy"]["terms"]
    assert term["weight"] > 0
    assert "weighting" not in term


def test_the_policy_of_the_search_is_the_default(tiny_run: dict[str, Any]) -> None:
    config = parse_config(tiny_run)
    with pytest.raises(ConfigError, match="run detkds search first"):
        resolve_policy(config, None)
    config.folder.mkdir(parents=True)
    (config.folder / "policy.yaml").write_text(Policy([Term("global", (), "l1", 3.0)]).to_yaml())
    found = resolve_policy(config, None)
    assert (found.name, found.key) == ("searched", "global: - | l1 x 3")


@pytest.mark.parametrize(
    ("teacher", "said"),
    [({"train": None, "weights": "some.safetensors"}, "some.safetensors"), ({"train": None}, "expected weights")],
)
def test_a_teacher_that_is_not_to_be_trained(tiny_run: dict[str, Any], heard: Any, teacher: Any, said: str) -> None:
    tiny_run["teacher"] = {**tiny_run["teacher"], **teacher}
    with pytest.raises(UserError, match=said):
        run_train(parse_config(tiny_run), "teacher", None, heard)


def test_the_student_of_another_seed_is_another(tiny_run: dict[str, Any], heard: Any) -> None:
    config = parse_config(tiny_run)
    one, other = (run_train(config, "student", seed, heard) for seed in (0, 1))
    ours, theirs = load_file(one.weights), load_file(other.weights)
    assert not all(ours[name].equal(theirs[name]) for name in ours)
    assert [stage for stage, _ in heard.stages] == ["student, seed 0", "student, seed 1"]
    assert heard.done == [1, 1]
    again = run_train(config, "student", 1, heard)
    assert again == other


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
