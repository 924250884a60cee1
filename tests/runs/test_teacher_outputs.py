"""How a search gets its teacher's outputs is decided once, told, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.errors import ConfigError
from detkds.progress import Progress
from detkds.runs.folder import open_folder
from detkds.runs.plan import SEARCH, Plan, make_plan
from detkds.runs.preview import populations
from detkds.runs.teacher_outputs import describe, teacher_outputs
from detkds.training.teacher_cache import TeacherCache


def prepared(tiny_run: dict[str, Any], **cache: Any) -> Plan:
    proxy = {**tiny_run["proxy"], "draws": 12, "epochs": 2, "cache": cache}
    return make_plan(parse_config({**tiny_run, "proxy": proxy}))


def outputs_of(plan: Plan, folder: Path, heard: Any) -> TeacherCache:
    outputs = teacher_outputs(plan, folder, heard.note)
    assert list(outputs) == [SEARCH]
    assert isinstance(outputs[SEARCH], TeacherCache)
    return outputs[SEARCH]


def test_the_decision_is_told_once_and_kept(tiny_run: dict[str, Any], tmp_path: Path, heard: Any) -> None:
    plan = prepared(tiny_run, mode="cached")
    assert describe(plan, tmp_path) == {"mode": "cached"}
    batch = next(iter(plan.setups[SEARCH].batches(0)(0)))
    for _ in range(2):
        outputs_of(plan, tmp_path, heard)(0, 0, batch, True)
    [note] = heard.notes
    assert note.startswith("teacher: cached (forward ")
    assert "; 6 batches, " in note
    kept = describe(plan, tmp_path)
    assert (kept["mode"], kept["way"], kept["batches"]) == ("cached", "cached", 6)
    assert kept["populations"] == populations(plan)
    assert len(list((tmp_path / "teacher").rglob("*.safetensors"))) == 1


def test_other_conditions_are_decided_anew(tiny_run: dict[str, Any], tmp_path: Path, heard: Any) -> None:
    plan = prepared(tiny_run, mode="cached")
    batch = next(iter(plan.setups[SEARCH].batches(0)(0)))
    outputs_of(plan, tmp_path, heard)(0, 0, batch, True)
    plan = prepared(tiny_run, mode="cached", disk_gb=1e-6)
    outputs = outputs_of(plan, tmp_path, heard)
    assert outputs.decision is None
    outputs(0, 0, batch, True)
    assert describe(plan, tmp_path)["way"] == "shared"
    assert "no room for one batch" in heard.notes[-1]


def test_workers_share_the_disk(tiny_run: dict[str, Any], tmp_path: Path, heard: Any) -> None:
    plan = prepared(tiny_run, mode="cached", disk_gb=1e-3)
    outputs = teacher_outputs(plan, tmp_path, heard.note, disk_share=0.25)[SEARCH]
    assert isinstance(outputs, TeacherCache) and outputs.files.limit == 250_000


def test_a_live_teacher_answers_for_itself(tiny_run: dict[str, Any], tmp_path: Path, heard: Any) -> None:
    plan = prepared(tiny_run, mode="live")
    assert teacher_outputs(plan, tmp_path, heard.note) == {}
    assert describe(plan, tmp_path) == {"mode": "live"}
    assert not heard.notes
    assert not list(tmp_path.glob("teacher*"))


@pytest.mark.parametrize(("key", "allowed"), [("disk_gb", True), ("mode", False)])
def test_what_may_change_between_two_runs_in_one_folder(key: str, allowed: bool, tiny_run: dict[str, Any]) -> None:
    """Room is a matter of speed; with ``live`` the numbers are others, as nothing is rounded."""
    changed = {"disk_gb": 1.0, "mode": "live"}[key]
    with open_folder(parse_config(tiny_run), {}, Progress()):
        tiny_run["proxy"]["cache"] = {key: changed}
    if allowed:
        with open_folder(parse_config(tiny_run), {}, Progress()):
            return
    with (
        pytest.raises(ConfigError, match=f"proxy.cache.{key} was 'auto' when this run began, now it is 'live'"),
        open_folder(parse_config(tiny_run), {}, Progress()),
    ):
        pytest.fail("taken up")


@pytest.mark.parametrize(
    ("kinds", "population", "parallel", "expected"),
    [
        (5, 10, 1, 12 + 16),  # five studies side by side, the combination alone
        (5, 10, 2, 6 + 8),
        (5, 10, 4, 6 + 4),  # 20 at a time would not fit
        (5, 1, 1, 60 + 16),
        (1, 10, 1, 12),  # nothing to combine
    ],
)
def test_populations_are_counted(
    kinds: int, population: int, parallel: int, expected: int, tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["global", "fgbg", "instance", "logits", "localization"][:kinds]
    search = {**tiny_run["search"], "knowledge": names, "single_budget": 12, "combination_budget": 16}
    proxy = {**tiny_run["proxy"], "population": population}
    plan = make_plan(parse_config({**tiny_run, "search": search, "proxy": proxy}))
    object.__setattr__(plan.config.search, "parallel", parallel)
    assert populations(plan) == expected
