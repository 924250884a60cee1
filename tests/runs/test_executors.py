"""Who trains a run's tasks, and what a worker is sent: enough to train elsewhere as here."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds import registry
from detkds.config_file import parse_config
from detkds.policy import Policy, Term
from detkds.runs import executors
from detkds.runs.executors import WorkerRecipe, make_trainer, open_executor
from detkds.runs.plan import COMPARISON, SEARCH, Plan, make_plan
from detkds.tasks import processes
from detkds.tasks.executor import Executor, InlineExecutor
from detkds.tasks.pool import PoolExecutor, Seat
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import Trainer

POLICIES = [Policy([Term("global", ["norm(N)"], "l1", 2.0)]), Policy([Term("logits", [], "kl", 1.0)])]
HERE = {"proxy": {"validation": 0.5, "draws": 16, "calibration_batches": 1, "cache": {"mode": "cached"}}}


@pytest.fixture
def plan(tiny_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A run whose images are named relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    for split in tiny_run["data"]["train"], tiny_run["data"]["test"]:
        Path(Path(split["images"]).name).symlink_to(split["images"])
        split["images"] = Path(split["images"]).name
    made = make_plan(parse_config(tiny_run | HERE))
    made.teacher.eval().requires_grad_(False)
    return made


def run(executor: Trainer | Executor) -> list[TaskResult]:
    """Results without the time they took."""
    tasks = {str(place): Task(SEARCH, policy, 0, screened=True) for place, policy in enumerate(POLICIES)}
    results = {outcome.key: outcome.result for outcome in executor.run(tasks, lambda key, done: None)}
    return [replace(results[key], seconds=0.0) for key in tasks]


def test_a_recipe_trains_elsewhere_as_here(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here := tmp_path / "here").mkdir()
    (there := tmp_path / "there").mkdir()
    expected = run(make_trainer(plan, here, print))
    sent = pickle.dumps(WorkerRecipe.of(plan, there))
    monkeypatch.chdir("/")
    trainer = pickle.loads(sent)(Seat(1, 4, "cpu"))
    assert run(trainer) == expected
    assert all(result.ap is not None for result in expected)
    assert list((there / "teacher").rglob("*.safetensors")), "workers keep outputs where the run is"
    limit = plan.config.proxy.cache.disk_gb * 1e9
    assert trainer.teacher_of(SEARCH).files.limit <= limit / 4, "all together as much as one"
    assert trainer.teacher_of(COMPARISON) is None, "other stages run the teacher"


def test_a_machine_without_the_run_folder_keeps_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trainer = WorkerRecipe.of(plan, tmp_path / "absent")(Seat(0, 1, "cpu"))
    assert run(trainer)[0].ap is not None
    assert trainer.teacher_of(SEARCH).decision.way == "shared"  # type: ignore[union-attr]
    assert not (tmp_path / "absent").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_recipe_leaves_the_plan_alone(plan: Plan) -> None:
    before = {name: tensor.clone() for name, tensor in plan.teacher.state_dict().items()}
    recipe = WorkerRecipe.of(plan, plan.config.folder)
    assert recipe.plan.teacher is not plan.teacher
    assert all(torch.equal(before[name], tensor) for name, tensor in recipe.plan.teacher.state_dict().items())
    assert not recipe.plan.teacher.training
    assert not any(parameter.requires_grad for parameter in recipe.plan.teacher.parameters())


def opened(plan: Plan, cores: int, notes: list[str], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Executor:
    """The executor of a machine with so many cores; nothing is started before the first task."""
    monkeypatch.setattr(processes, "machine", lambda: {"CPU": cores, "GPU": 0})
    config = plan.config.model_copy(update={"device": None, **changes})
    return open_executor(replace(plan, config=config), plan.config.folder, notes.append)


def test_a_machine_with_more_than_one_core_has_workers(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "piece_of_main", lambda: None)
    for cores, changes, seats in (
        (1, {"executor": "auto"}, 0),
        (8, {"executor": "inline"}, 0),
        (8, {"executor": "auto"}, 8),
        (8, {"executor": "auto", "threads": 3}, 2),
        (8, {"executor": "auto", "workers": 3}, 3),
        (1, {"executor": "processes"}, 1),
    ):
        executor = opened(plan, cores, [], monkeypatch, **changes)
        if seats:
            assert isinstance(executor, PoolExecutor) and len(executor.workers.seats) == seats
            assert executor.population == plan.config.proxy.population
        else:
            assert isinstance(executor, InlineExecutor)
            assert executor.trainer.population == plan.config.proxy.population
        executor.close()
        counted = replace(plan, config=plan.config.model_copy(update={"device": None, **changes}))
        assert executors.count_workers(counted) == max(1, seats)


def test_entries_of_the_main_script_are_trained_where_they_are(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    with registered_in_main(monkeypatch):
        assert isinstance(opened(plan, 8, notes, monkeypatch, executor="auto"), InlineExecutor)
        assert "distance 'of_main', which the main script defines" in notes[0]
        assert isinstance(opened(plan, 8, notes, monkeypatch, executor="processes"), PoolExecutor)
    assert executors.piece_of_main() is None


@contextmanager
def registered_in_main(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distance as a script that is run defines it."""
    piece = type(
        "OfMain", (), {"__module__": "__main__", "__doc__": "Of the script.", "kinds": frozenset(("feature",))}
    )
    with monkeypatch.context() as patch:
        patch.setattr(registry.DISTANCES, "_entries", {**registry.DISTANCES._entries, "of_main": piece})
        yield
