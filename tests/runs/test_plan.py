"""Resolving a run: all faults, parts that do not overlap, and what the pair cannot offer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds.config import HalvingConfig
from detkds.config_file import parse_config
from detkds.detectors.weights import save_weights
from detkds.errors import ConfigError
from detkds.runs.plan import COMPARISON, make_detector, make_plan


def test_parts_are_cut_from_the_training_images_and_do_not_overlap(tiny_run: dict[str, Any]) -> None:
    plan = make_plan(parse_config(tiny_run))
    proxy, validation = set(plan.proxy_data.image_ids), set(plan.validation_data.image_ids)
    assert proxy.isdisjoint(validation)
    assert proxy | validation == set(plan.train_data.image_ids)
    assert plan.test_data.folder != plan.train_data.folder


def test_the_students_of_one_seed_begin_alike_and_others_do_not(tiny_run: dict[str, Any]) -> None:
    plan = make_plan(parse_config(tiny_run))
    one, same, other = (plan.build_student(seed, False).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    inherited = plan.build_student(1, True).state_dict()
    teacher = plan.teacher.state_dict()
    assert plan.inherited
    assert all(torch.equal(inherited[name], teacher[name]) for name in plan.inherited)


def test_building_a_plan_leaves_the_global_generator_alone(tiny_run: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    make_plan(parse_config(tiny_run)).build_student(3, True)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_kinds_the_pair_cannot_offer_are_left_out_with_a_reason(tiny_run: dict[str, Any]) -> None:
    options = {**tiny_run["student"]["options"], "anchor_ratios": [1.0, 2.0]}
    tiny_run["student"] = {**tiny_run["student"], "options": options}
    plan = make_plan(parse_config(tiny_run))
    assert set(plan.spaces) == {"global", "fgbg", "instance"}
    assert set(plan.refused) == {"logits", "localization"}
    assert "anchors differs" in plan.refused["logits"]


def test_a_pair_that_offers_nothing_wanted_is_refused(tiny_run: dict[str, Any]) -> None:
    options = {**tiny_run["student"]["options"], "anchor_ratios": [1.0, 2.0]}
    tiny_run["student"] = {**tiny_run["student"], "options": options}
    tiny_run["search"] = {**tiny_run["search"], "knowledge": ["logits", "localization"]}
    with pytest.raises(ConfigError, match="this pair offers no logits"):
        make_plan(parse_config(tiny_run))


def test_a_teacher_knows_the_classes_in_the_file_of_its_weights(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    """A teacher of more classes in another order; without their names its weights would not fit."""
    names = ("three", "one", "zero")
    teacher = parse_config(tiny_run).teacher
    save_weights(make_detector(teacher, names, 0), tmp_path / "teacher.safetensors")
    tiny_run["teacher"] = {**tiny_run["teacher"], "weights": str(tmp_path / "teacher.safetensors"), "train": None}
    plan = make_plan(parse_config(tiny_run))
    assert plan.teacher.class_names == names
    assert "logits" not in plan.refused
    tiny_run["teacher"]["classes"] = ["three", "one", "two"]
    assert "the teacher does not know zero" in make_plan(parse_config(tiny_run)).refused["logits"]


def test_a_policy_of_the_comparison_must_suit_the_pair(tiny_run: dict[str, Any]) -> None:
    options = {**tiny_run["student"]["options"], "anchor_ratios": [1.0, 2.0]}
    tiny_run["student"] = {**tiny_run["student"], "options": options}
    tiny_run["final"] = {"policies": ["detkds/one-stage", "pkd"]}
    with pytest.raises(ConfigError, match="cannot be distilled between these detectors") as caught:
        make_plan(parse_config(tiny_run))
    assert len(caught.value.faults) == 2


def test_policies_of_files_go_by_their_own_names_unless_others_have_them(
    tiny_run: dict[str, Any], tmp_path: Path
) -> None:
    files = [tmp_path / f"{letter}.yaml" for letter in "abcd"]
    for file, name in zip(files, ("mine", "twice", "twice", "searched"), strict=True):
        term = "{knowledge: global, transforms: [], distance: l2, weight: 1}"
        file.write_text(f"policy: {name}\nterms:\n  - {term}\n", encoding="utf-8")
    tiny_run["final"] = {"policies": ["pkd", *map(str, files)]}
    assert list(make_plan(parse_config(tiny_run)).policies) == ["pkd", "mine", *map(str, files[1:])]


def test_proxy_images_are_a_part_of_what_validation_leaves(tiny_run: dict[str, Any]) -> None:
    tiny_run["proxy"] = {**tiny_run["proxy"], "images": 5}
    plan = make_plan(parse_config(tiny_run))
    assert len(plan.proxy_data) == 5
    assert len(plan.validation_data) == 8


def test_every_fault_of_halving_is_named_with_the_others(tiny_run: dict[str, Any]) -> None:
    tiny_run["proxy"] = {**tiny_run["proxy"], "epochs": 3, "halving": {"rungs": [1, 3], "brackets": 3}}
    tiny_run["search"] = {**tiny_run["search"], "sampler": "evolutoin"}
    with pytest.raises(ConfigError) as caught:
        make_plan(parse_config(tiny_run))
    text = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 2
    assert "unknown sampler 'evolutoin'" in text
    assert "halving: rungs: expected epochs below the last one, 3, got [1, 3]; train for longer" in text


def test_halving_is_that_of_the_configuration(tiny_run: dict[str, Any]) -> None:
    tiny_run["proxy"] = {**tiny_run["proxy"], "epochs": 4, "population": 6, "halving": {"rungs": [1, 3], "eta": 2}}
    plan = make_plan(parse_config({**tiny_run, "search": {**tiny_run["search"], "parallel": 12}}))
    assert plan.halving == HalvingConfig(rungs=(1, 3), eta=2)


def test_torch_uses_as_many_threads_as_are_asked_for(tiny_run: dict[str, Any]) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            make_plan(parse_config({**tiny_run, "threads": threads}))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_embedded_data_lies_in_the_run_folder(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    tiny_run["data"] = {"embedded": "digits", "embedded_images": [6, 3], "embedded_classes": 2, "size": 64}
    plan = make_plan(parse_config(tiny_run))
    assert (len(plan.train_data), len(plan.test_data), plan.train_data.class_names) == (6, 3, ("zero", "one"))
    assert plan.train_data.folder.is_relative_to(tmp_path / "runs" / "tiny")


def test_an_executor_that_cannot_be_had_is_refused(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else real(name, *more))
    with pytest.raises(ConfigError, match=r"ray is not installed; install it with: pip install 'detkds\[ray\]'"):
        make_plan(parse_config({**tiny_run, "executor": "ray"}))


def test_the_best_weights_can_be_kept_only_where_they_are_looked_for(tiny_run: dict[str, Any]) -> None:
    best = {**tiny_run["train"], "keep": "best"}
    teacher = {**tiny_run["teacher"], "train": best}
    with pytest.raises(ConfigError) as caught:
        make_plan(parse_config({**tiny_run, "train": best, "teacher": teacher}))
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["train.keep", "teacher.train.keep"]


def test_images_that_validate_a_training_are_held_out_of_it(tiny_run: dict[str, Any]) -> None:
    assert len(make_plan(parse_config(tiny_run)).setups[COMPARISON].train_data) == 16
    watched = make_plan(parse_config({**tiny_run, "train": {**tiny_run["train"], "validate_every": 1}}))
    trained, validation = set(watched.setups[COMPARISON].train_data.image_ids), set(watched.validation_data.image_ids)
    assert len(trained) == 8 and trained.isdisjoint(validation)
    assert watched.setups[COMPARISON].test_data is watched.test_data


def test_what_lies_under_the_paths_is_named_by_content(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    first = make_plan(parse_config(tiny_run)).content
    assert set(first) == {"data.train", "data.test", "detkds"}
    annotations = Path(tiny_run["data"]["train"]["annotations"])
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][2] += 1
    (tmp_path / "train.json").write_text(json.dumps(content))
    tiny_run["data"]["train"]["annotations"] = str(tmp_path / "train.json")
    save_weights(make_detector(parse_config(tiny_run).teacher, ("zero", "one"), 0), tmp_path / "teacher.safetensors")
    tiny_run["teacher"] = {**tiny_run["teacher"], "weights": str(tmp_path / "teacher.safetensors"), "train": None}
    second = make_plan(parse_config(tiny_run)).content
    assert {name for name in second if second[name] != first.get(name)} == {"data.train", "teacher.weights"}
