"""What a worker is sent: enough to measure candidates elsewhere as they are measured here."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detkds.runs.evaluators import WorkerRecipe, local_evaluator, open_evaluator
from detkds.runs.listening import Meter, Silence
from detkds.search.evaluators.population import PopulationEvaluator
from detkds.search.evaluators.ray import Seat

from detkds.config_file import parse_config
from detkds.policy import Policy, Term
from detkds.runs.plan import Plan, make_plan

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


def test_a_recipe_measures_elsewhere_as_here(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here := tmp_path / "here").mkdir()
    (there := tmp_path / "there").mkdir()
    expected = local_evaluator(plan, here, Silence()).evaluate(POLICIES)
    sent = pickle.dumps(WorkerRecipe.of(plan, there))
    monkeypatch.chdir("/")
    evaluator = pickle.loads(sent)(Seat(1, 4, "cpu"))
    found = evaluator.evaluate(POLICIES)
    assert [replace(one, seconds=0.0) for one in found] == [replace(one, seconds=0.0) for one in expected]
    assert all(one.ap is not None for one in found)
    assert list((there / "workers" / "1" / "teacher").rglob("*.safetensors")), "each worker keeps its own outputs"
    limit = plan.config.proxy.cache.disk_gb * 1e9
    assert evaluator.ask_teacher.files.limit <= limit / 4, "all together as much as one"


def test_a_machine_without_the_run_folder_keeps_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    evaluator = WorkerRecipe.of(plan, tmp_path / "absent")(Seat(0, 1, "cpu"))
    assert evaluator.evaluate(POLICIES)[0].ap is not None
    assert evaluator.ask_teacher.decision.way == "shared"
    assert not (tmp_path / "absent").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_recipe_leaves_the_plan_alone(plan: Plan) -> None:
    before = {name: tensor.clone() for name, tensor in plan.teacher.state_dict().items()}
    recipe = WorkerRecipe.of(plan, plan.config.folder)
    assert recipe.plan.teacher is not plan.teacher
    assert all(torch.equal(before[name], tensor) for name, tensor in recipe.plan.teacher.state_dict().items())
    assert not recipe.plan.teacher.training
    assert not any(parameter.requires_grad for parameter in recipe.plan.teacher.parameters())


def test_without_ray_this_process_measures(plan: Plan, tmp_path: Path) -> None:
    with open_evaluator(plan, tmp_path, Silence(), Meter(Silence(), 1, 8)) as evaluator:
        assert isinstance(evaluator, PopulationEvaluator)
        assert evaluator.population == plan.config.proxy.population
