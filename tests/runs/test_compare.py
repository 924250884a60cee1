"""Policies side by side without a search: what is trained, kept and said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.runs import step_cost
from detkds.runs.compare import run_compare


def test_policies_are_trained_once_per_seed_and_not_again(
    tiny_run: dict[str, Any], heard: Any, trainings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(step_cost, "WARM_UP", 1)
    monkeypatch.setattr(step_cost, "TIMED", 2)
    config = parse_config(tiny_run)
    mine = tmp_path / "mine.yaml"
    mine.write_text(Policy([Term("global", (), "l1", 1.0)]).to_yaml())
    found = run_compare(config, ["pkd", str(mine)], heard)
    names = ["plain", "plain, inherited", "pkd", str(mine)]
    assert trainings[0] == ("teacher", 0)
    assert sorted(trainings[1:]) == sorted((name, seed) for name in names for seed in (0, 1))
    assert [row["name"] for row in found["rows"]] == ["teacher", *names]
    assert all(row["to_plain"] for row in found["rows"][2:]) and found["verdict"]
    written = json.loads((config.folder / "comparison.json").read_text())
    assert [row["mean"] for row in written["rows"]] == [row["mean"] for row in found["rows"]]
    costs = {row["name"]: row["cost"] for row in written["rows"]}
    assert costs.pop("teacher") is None and costs["plain"] == costs["plain, inherited"]
    assert all(cost["rounds"] == 2 and cost["seconds"] > 0 and cost["losses_mb"] >= 0 for cost in costs.values())
    assert costs["pkd"]["losses_mb"] > costs["plain"]["losses_mb"] == 0
    picture = (config.folder / "comparison.svg").read_text()
    assert picture.startswith("<svg") and "var(--" not in picture and "pkd" in picture and "x step, +" in picture
    trainings.clear()
    again = run_compare(config, ["pkd", str(mine), "cwd"], heard)
    assert sorted(trainings) == [("cwd", 0), ("cwd", 1)]
    assert [(row["ap"], row["cost"]) for row in again["rows"][:5]] == [
        (row["ap"], row["cost"]) for row in found["rows"]
    ]


def test_all_unknown_policies_are_named_before_anything_is_trained(tiny_run: dict[str, Any], heard: Any) -> None:
    config = parse_config(tiny_run)
    with pytest.raises(ConfigError) as caught:
        run_compare(config, ["pkdd", "cwdd"], heard)
    assert "pkdd" in str(caught.value) and "cwdd" in str(caught.value)
    assert not config.folder.exists()
