"""Configurations: every fault at once, and overrides."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from detkds.config import RunConfig, Section
from detkds.config_changes import changes, effect_of
from detkds.config_file import apply_overrides, load_config, parse_config
from detkds.errors import ConfigError

PAIR = {"detector": "retinanet", "backbone": "narrow8"}
LEAST: dict[str, Any] = {"name": "first", "data": {"embedded": "digits"}, "teacher": PAIR, "student": PAIR}


def faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "run.yaml")
    return list(caught.value.faults)


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(LEAST), **changes}


def test_the_least_configuration_has_defaults_for_the_rest() -> None:
    config = parse_config(LEAST)
    assert config.folder == Path("runs/first")
    assert config.final.seeds is None and config.final.first_seeds == (0, 1, 2, 3, 4)
    assert config.search.method == "policies" and config.proxy.epochs is None
    assert config.search.knowledge == ("global", "fgbg", "instance", "logits", "localization")


def test_a_resolved_configuration_reads_back_as_itself() -> None:
    config = parse_config(changed(train={"lr": 0.5, "augmentation": {"scale": [0.5, 2.0]}}))
    assert parse_config(config.model_dump(mode="json")) == config


def test_all_faults_are_listed_with_their_keys() -> None:
    found = faults(
        {
            "name": "first",
            "data": {"embedded": "digits", "sise": 96},
            "teacher": PAIR,
            "train": {"lr": -1, "epochs": 0, "optimizer": "sdg"},
            "serach": {},
        }
    )
    assert len(found) == 6
    text = "\n".join(found)
    assert "run.yaml: data.sise: unknown key 'sise'; did you mean 'size'?" in text
    assert "run.yaml: serach: unknown key 'serach'; did you mean 'search'?" in text
    assert "run.yaml: student: field required" in text
    assert "run.yaml: train.lr: input should be greater than 0, got -1" in text
    assert "run.yaml: train.optimizer: input should be 'sgd' or 'adamw', got 'sdg'" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["train.lr", "train.weight_decay", "train.clip_norm", "proxy.validation"])
def test_numbers_that_are_not_finite_are_refused(key: str, value: float) -> None:
    section, name = key.split(".")
    assert key in faults(changed(**{section: {name: value}}))[0]


def test_halving_is_checked_by_type_and_known_by_its_keys() -> None:
    proxy = {"epochs": 9, "halving": {"rungs": [1, 3], "eta": 2}}
    assert parse_config(changed(proxy=proxy)).proxy.halving.rungs == (1, 3)  # type: ignore[union-attr]
    text = "\n".join(faults(changed(proxy={"halving": {"rungs": [], "eta": 1, "brakets": 1}})))
    assert "proxy.halving.rungs: " in text and "proxy.halving.eta: " in text
    assert "proxy.halving.brakets: unknown key 'brakets'; did you mean 'brackets'?" in text


def test_nothing_is_shared_with_the_data_that_was_parsed() -> None:
    data = changed()
    config = parse_config(data)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]
    assert data == LEAST


def test_overrides_are_yaml_and_reach_any_depth() -> None:
    data = apply_overrides(LEAST, ["train.augmentation.flip=0", "final.seeds=[4, 5]", "name=second", "device=null"])
    config = parse_config(data)
    assert (config.train.augmentation.flip, config.final.seeds, config.name) == (0, (4, 5), "second")
    assert LEAST["name"] == "first"


def test_an_override_may_hold_an_equals_sign() -> None:
    assert apply_overrides({}, ["search.storage=sqlite:///a?b=c"]) == {"search": {"storage": "sqlite:///a?b=c"}}


def test_all_faulty_overrides_are_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(LEAST, ["lr", "=1", "name.first=x", "train.lr=[", "seed=1"])
    assert len(caught.value.faults) == 4
    assert "expected key=value, such as train.lr=0.02, got 'lr'" in caught.value.faults[0]
    assert "'name' is a plain value" in caught.value.faults[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: !!python/object/apply:os.system [echo]", "expected plain data"),
        ("name: a\nname: b\n", "key 'name' is given twice"),
        ("seed: 2001-13-45", "seed: .*got '2001-13-45'"),
        ("plugins: " + "[" * 500 + "]" * 500, "nested deeper"),
        (
            "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefgh")),
            "more than 100000 values",
        ),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path)
    assert str(path) in caught.value.faults[0]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe\x00"), lambda path: None])
def test_what_cannot_be_read_is_named(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "run.yaml"
    make(path)
    with pytest.raises(ConfigError, match=r"run\.yaml: cannot be read"):
        load_config(path)


def test_a_name_that_leaves_the_run_folder_is_refused() -> None:
    for name in ("../elsewhere", "/elsewhere", "a/../../b", "", ".", ".."):
        assert any("name" in fault for fault in faults(changed(name=name))), name
    assert parse_config(changed(name="pairs/first")).folder == Path("runs/pairs/first")


def test_every_section_forbids_unknown_keys() -> None:
    def sections(model: Any) -> set[Any]:
        found = {model}
        for field in model.model_fields.values():
            for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(option, "model_fields"):
                    found |= sections(option)
        return found

    assert len(sections(RunConfig)) >= 8
    assert all(section.model_config["extra"] == "forbid" for section in sections(RunConfig))


def test_bad_amounts_of_augmentation_are_all_named() -> None:
    amounts = {"flip": 2, "hue": 0.6, "scale": [1.5, 1.0], "contrast": float("nan")}
    named = [line.split(":")[1].strip() for line in faults(changed(train={"augmentation": amounts}))]
    assert sorted(named) == [f"train.augmentation.{name}" for name in ("contrast", "flip", "hue", "scale")]


# --------------------------------------------------------------------------------------------------------- changes


def leaves(section: type[Section], prefix: str = "") -> list[tuple[type[Section], str, str]]:
    """Every field that is no section itself, with the section it belongs to and its dotted key."""
    found = []
    for name, field in section.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)
        found += [(section, name, prefix + name)] if inner is None else leaves(inner, f"{prefix}{name}.")
    return found


def test_every_field_says_what_a_change_of_it_means() -> None:
    unmarked = [
        key
        for section, name, key in leaves(RunConfig)
        if not isinstance(section.model_fields[name].json_schema_extra, dict)
    ]
    assert not unmarked
    effects = {key: effect_of(section, name) for section, name, key in leaves(RunConfig)}
    assert set(effects.values()) == {"numbers", "budget", "speed"} and len(effects) > 80
    assert effects["train.lr"] == effects["teacher.train.lr"] == effects["proxy.halving.eta"] == "numbers"
    assert effects["search.single_budget"] == effects["final.seeds"] == "budget"
    assert effects["data.train.annotations"] == effects["threads"] == effects["proxy.cache.disk_gb"] == "speed"


def compared(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any, str]]:
    """The changes between two configurations as they are kept, by key."""
    first, second = (parse_config(data).model_dump(mode="json") for data in (before, now))
    return {change.key: (change.before, change.now, change.effect) for change in changes(first, second)}


def test_what_changed_is_told_field_by_field() -> None:
    now = changed(
        train={"lr": 0.5, "augmentation": {"flip": 0.25}, "workers": 2},
        search={"single_budget": 30},
        threads=4,
    )
    assert compared(LEAST, now) == {
        "train.lr": (0.01, 0.5, "numbers"),
        "train.augmentation.flip": (0.5, 0.25, "numbers"),
        "train.workers": (0, 2, "speed"),
        "search.single_budget": (20, 30, "budget"),
        "threads": (1, 4, "speed"),
    }
    assert compared(now, now) == {}


def test_a_section_that_comes_or_goes_is_another_experiment() -> None:
    teacher = {**PAIR, "train": {"epochs": 3}}
    [(key, change)] = compared(LEAST, changed(teacher=teacher)).items()
    assert key == "teacher.train" and change[0] is None and change[1]["epochs"] == 3 and change[2] == "numbers"
    halving = changed(proxy={"epochs": 9, "halving": {"rungs": [3]}})
    assert compared(halving, changed(proxy={"epochs": 9}))["proxy.halving"][2] == "numbers"
    other = changed(proxy={"epochs": 9, "halving": {"rungs": [4]}})
    assert compared(halving, other) == {"proxy.halving.rungs": ([3], [4], "numbers")}
    assert set(compared(LEAST, changed(teacher={**PAIR, "options": {"neck_channels": 8}}))) == {"teacher.options"}


def test_a_record_of_an_older_version_lacks_fields_that_count_as_their_defaults() -> None:
    now = parse_config(LEAST).model_dump(mode="json")
    before = copy.deepcopy(now)
    del before["train"]["augmentation"]["hue"], before["proxy"]["cache"], before["threads"]
    assert changes(before, now) == []
    now["threads"] = 3
    [change] = changes(before, now)
    assert (change.key, change.before, change.now) == ("threads", 1, 3)


def test_where_the_data_lie_is_no_change_of_the_experiment() -> None:
    def data(folder: str, **more: Any) -> dict[str, Any]:
        split = {"annotations": f"{folder}/a.json", "images": folder}
        return changed(data={"train": split, "test": split, **more})

    assert {change[2] for change in compared(data("here"), data("there")).values()} == {"speed"}
    assert compared(data("here"), data("here", size=96))["data.size"][2] == "numbers"
    assert compared(LEAST, data("here"))["data.train"][2] == "numbers"
