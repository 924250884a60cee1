"""Equal keys mean equal results: what changes a number changes the key, and nothing else does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds.config import Section, TrainConfig
from detkds.config_changes import effect_of
from detkds.data.coco import load_coco
from detkds.detectors.weights import save_weights
from detkds.policy import Policy, Term
from detkds.policy_search.result import HalvingGroup
from detkds.runs.plan import COMPARISON, CONFIRMATION, SEARCH, TEACHING, Plan
from detkds.tasks.content import detector_content, files_of, setup_digest
from detkds.tasks.task import Task

POLICY = Policy([Term("global", (), "l2", 2.0)])
RELATIVE = Policy([Term("global", (), "l2", 2.0, "gradient")])
TASK = Task("search", POLICY, 3)


# ------------------------------------------------------------------------------------------------------------ key


@pytest.mark.parametrize(
    "change",
    [
        {"policy": Policy([Term("global", (), "l2", 2.5)])},
        {"policy": Policy([Term("global", (), "l2", 2.0, schedule="warmup(10)")])},
        {"policy": RELATIVE},
        {"seed": 4},
        {"inherit": False},
        {"screened": True},
        {"group": HalvingGroup()},
        {"group": HalvingGroup("", {"other": (1.0, 2.0)})},
        {"world": 2},
    ],
)
def test_what_makes_another_training_makes_another_key(change: dict[str, Any]) -> None:
    assert replace(TASK, **change).key("digest") != TASK.key("digest")
    assert TASK.key("digest") != TASK.key("other digest")


@pytest.mark.parametrize(
    "change",
    [
        {"label": "another name"},
        {"keep_weights": True},
        {"setup": "the digest says what it is"},
        {"calibration_seed": 9},  # nothing is calibrated
        {"policy": Policy([Term("global", ("scale(1)",), "l2", 2.0)], name="the same loss")},
    ],
)
def test_what_is_the_same_training_has_the_same_key(change: dict[str, Any]) -> None:
    assert replace(TASK, **change).key("digest") == TASK.key("digest")


def test_where_something_is_calibrated_its_seed_counts() -> None:
    for task in (replace(TASK, screened=True), replace(TASK, policy=RELATIVE)):
        assert task.calibrated and replace(task, calibration_seed=9).key("") != task.key("")
    assert not TASK.calibrated


def test_where_candidates_stop_each_other_all_of_them_count() -> None:
    task = replace(TASK, group=HalvingGroup("a", {"x": (1.0,), "y": (2.0,)}), members=("p", "q"))
    same = replace(task, group=HalvingGroup("another name of the group", {"y": (2.0,), "x": (1.0,)}))
    assert same.key("") == task.key("")
    assert replace(task, members=("p", "r")).key("") != task.key("")
    assert replace(task, group=HalvingGroup("a", {"x": (1.0,), "y": (2.5,)})).key("") != task.key("")


# ---------------------------------------------------------------------------------------------------------- setup


@pytest.fixture
def plan(plan_of: Any) -> Plan:
    return plan_of()


def digest(plan: Plan, **changes: Any) -> str:
    return setup_digest(replace(plan.setups[COMPARISON], **changes), plan.config.student)


OTHER: dict[str, Any] = {
    "epochs": 7,
    "draws": 7,
    "batch_size": 7,
    "optimizer": "sgd",
    "lr": 0.123,
    "momentum": 0.123,
    "weight_decay": 0.123,
    "warmup_steps": 7,
    "schedule": "step",
    "milestones": (0.123,),
    "step_factor": 0.123,
    "clip_norm": 1.23,
    "ema": 0.123,
    "amp": "bf16",
    "channels_last": True,
    "validate_every": 7,
    "keep": "best",
    "workers": 7,
    "augmentation.flip": 0.123,
    "augmentation.scale": (0.5, 1.5),
    "augmentation.crop": True,
    "augmentation.brightness": 0.123,
    "augmentation.contrast": 0.123,
    "augmentation.saturation": 0.123,
    "augmentation.hue": 0.123,
}
"""Another value for every field of a training."""


def fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every field of a section and those below it, dotted, with what a change of it means."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, effect_of(section, name)


def test_every_field_of_a_training_has_another_value_here() -> None:
    assert OTHER.keys() == dict(fields(TrainConfig)).keys()


@pytest.mark.parametrize("name", OTHER)
def test_a_field_counts_exactly_where_a_change_of_it_is_another_experiment(name: str, plan: Plan) -> None:
    config = plan.config.train
    outer, _, inner = name.partition(".")
    value = config.augmentation.model_copy(update={inner: OTHER[name]}) if inner else OTHER[name]
    changed = digest(plan, config=config.model_copy(update={outer: value})) != digest(plan)
    assert changed == (dict(fields(TrainConfig))[name] == "numbers")


def test_what_a_training_is_made_from_counts(plan: Plan) -> None:
    ids = plan.train_data.image_ids
    before = digest(plan)
    assert before == digest(plan)
    for change in (
        {"train_data": plan.train_data.subset(ids[1:])},
        {"test_data": plan.validation_data},
        {"size": 96},
        {"masks": True},
        {"self_taught": True},
        {"teacher": None},
    ):
        assert digest(plan, **change) != before, change
    assert digest(plan, device=torch.device("meta")) == before
    assert setup_digest(plan.setups[COMPARISON], plan.config.student, "more") != before


def test_validation_images_count_where_something_is_measured_on_them(plan: Plan) -> None:
    fewer = plan.validation_data.subset(plan.validation_data.image_ids[1:])
    watched = plan.config.train.model_copy(update={"validate_every": 1})
    assert digest(plan, validation_data=fewer) == digest(plan)
    assert digest(plan, validation_data=fewer, config=watched) != digest(plan, config=watched)


def test_the_weights_of_the_teacher_count(plan: Plan) -> None:
    before = digest(plan)
    with torch.no_grad():
        next(plan.teacher.parameters()).flatten()[0] += 1e-6
    assert digest(plan) != before
    with torch.no_grad():
        next(plan.teacher.parameters()).flatten()[0] -= 1e-6
    name, buffer = next((name, one) for name, one in plan.teacher.named_buffers() if one.is_floating_point())
    before = digest(plan)
    buffer += 0.5
    assert digest(plan) != before, name


def test_data_count_by_content_and_not_by_path(plan: Plan, tiny_data: Path, tmp_path: Path) -> None:
    """The same file with other boxes, another label, other pixels; and the same content somewhere else."""

    def read(folder: Path) -> str:
        data = load_coco(folder / "train.json", folder / "train")
        return digest(plan, train_data=data)

    def change(edit: Any) -> str:
        path = here / "train.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return read(here)

    here = tmp_path / "here"
    shutil.copytree(tiny_data, here)
    seen = [read(here)]
    assert seen[0] == digest(plan), "where they lie changes nothing"
    seen.append(change(lambda content: content["annotations"][0]["bbox"].__setitem__(2, 9.5)))
    first, second = (category["id"] for category in json.loads((here / "train.json").read_text())["categories"][:2])
    relabelled = {first: second, second: first}
    seen.append(
        change(lambda content: [a.update(category_id=relabelled[a["category_id"]]) for a in content["annotations"]])
    )
    seen.append(change(lambda content: content["categories"][0].update(name="nought")))
    image, other = sorted((here / "train").glob("*.png"))[:2]
    image.write_bytes(other.read_bytes())
    seen.append(read(here))
    assert len(set(seen)) == len(seen)


def test_files_of_a_detector_count_by_content(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(plan.build_student(0, False), path)
    described = plan.config.student.model_copy(update={"weights": str(path)})
    before, content = detector_content(described), path.read_bytes()
    assert before != detector_content(plan.config.student)
    save_weights(plan.build_student(1, False), path)
    assert detector_content(described) != before
    moved = path.rename(tmp_path / "elsewhere.safetensors")
    there = described.model_copy(update={"weights": str(moved)})
    moved.write_bytes(content)
    assert detector_content(there) == before
    (tmp_path / "model.txt").write_text("a")
    described = described.model_copy(update={"options": {"model": str(tmp_path / "model.txt"), "layers": 3}})
    assert set(files_of(described)) == {"weights", "options.model"}
    address = described.model_copy(update={"weights": "https://example.org/w.pt", "options": {}})
    assert files_of(address) == {"weights": "https://example.org/w.pt"}


# ----------------------------------------------------------------------------------------------------------- plan


def test_the_stages_of_a_run_have_digests_of_their_own(plan_of: Any) -> None:
    plan = plan_of(train={"epochs": 2}, proxy={"epochs": 1})
    names = (TEACHING, SEARCH, CONFIRMATION, COMPARISON)
    digests = {name: plan.setup_digest(name) for name in names}
    assert len(set(digests.values())) == 4
    again = plan_of(train={"epochs": 2}, proxy={"epochs": 1})
    assert {name: again.setup_digest(name) for name in names} == digests


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"proxy": {"population": 3}}, set()),
        ({"workers": 3, "threads": 1, "executor": "inline"}, set()),
        ({"final": {"seeds": [7], "policies": ["cwd"]}}, set()),
        ({"search": {"single_budget": 9, "race": [3], "seed": 0}}, set()),
        ({"proxy": {"epochs": 2}}, {SEARCH}),
        ({"proxy": {"calibration_batches": 2}}, {SEARCH, CONFIRMATION, COMPARISON, TEACHING}),
        ({"proxy": {"cache": {"mode": "live"}}}, {SEARCH}),
        ({"proxy": {"cache": {"disk_gb": 1.0}}}, set()),
        ({"proxy": {"validation": 0.25}}, {SEARCH, CONFIRMATION}),
        ({"search": {"seed": 1}}, {SEARCH, CONFIRMATION}),
        ({"train": {"lr": 0.1}}, {SEARCH, CONFIRMATION, COMPARISON}),
        ({"inherit": False}, {SEARCH, CONFIRMATION, COMPARISON, TEACHING}),
    ],
)
def test_a_key_of_the_configuration_reaches_the_stages_it_matters_for(
    changes: dict[str, Any], stages: set[str], plan_of: Any
) -> None:
    before, after = plan_of(), plan_of(**changes)
    changed = {name for name in before.setups if before.setup_digest(name) != after.setup_digest(name)}
    assert changed == stages


def test_the_plain_student_does_not_depend_on_the_teacher(plan_of: Any) -> None:
    plan = plan_of()
    other = plan_of(seed=plan.config.seed + 1)  # another teacher
    plain, inherited = Task(COMPARISON, Policy(), 0, inherit=False), Task(COMPARISON, Policy(), 0)
    distilled = Task(COMPARISON, Policy([Term("global", [], "l2")]), 0, inherit=False)
    assert plain.alone and plan.digest_for(plain) == other.digest_for(plain)
    for task in (inherited, distilled):
        assert not task.alone and plan.digest_for(task) != other.digest_for(task)
