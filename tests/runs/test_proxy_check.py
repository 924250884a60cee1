"""The check of the proxy: what is measured, that it is kept, and the agreement by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from detkds.runs.teacher import prepare_teacher
from detkds.search.evaluators.population import PopulationEvaluator

from detkds.config_file import parse_config
from detkds.policy import parse_policy
from detkds.report.agreement import read_check
from detkds.runs import comparison
from detkds.runs.folder import read_lines
from detkds.runs.plan import make_plan
from detkds.runs.proxy_check import check_proxy
from detkds.search.result import SearchError
from detkds.training.population import Candidate, train_candidates

SOURCE = Path(__file__).resolve().parents[2] / "src"
KILLED = """
import os, signal, sys, torch
from detkds.config_file import load_config
from detkds.runs.proxy_check import check_proxy

class Impatient:
    title, heard = "", 0
    def stage(self, title, total):
        self.title = title
    def advance(self, units, note=""):
        self.heard += bool(note) and self.title == sys.argv[2]
        if self.heard == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    def note(self, text):
        return None

torch.set_num_threads(1)
check_proxy(load_config(sys.argv[1]), 4, 1, Impatient())
"""


@pytest.fixture
def two_kinds(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """Proxy and full budget differ in length; losses are compared at two weights."""
    proxy = {**tiny_run["proxy"], "population": 2}
    return {**tiny_run, "proxy": proxy, "search": {**tiny_run["search"], "knowledge": ["global", "logits"]}}


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was trained at the full budget."""
    names: list[str] = []
    real = comparison.train_in_populations

    def counted(setting: Any, candidates: Any, **options: Any) -> Any:
        names.extend(candidate.name for candidate in candidates)
        return real(setting, candidates, **options)

    monkeypatch.setattr(comparison, "train_in_populations", counted)
    return names


def test_both_values_are_those_of_search_and_confirmation(two_kinds: dict[str, Any], heard: Any) -> None:
    """The proxy's value with the search's seed, the other with the next one, on validation images both."""
    config = parse_config({**two_kinds, "train": {**two_kinds["train"], "draws": 12}})
    check = check_proxy(config, 4, 1, heard)
    assert [point["trial"] for point in check["points"]] == ["global/0", "global/1", "logits/0", "logits/1"]
    assert (check["policies"], check["seeds"]) == (4, [1])
    trials = [json.loads(line) for line in (config.folder / "proxy_check" / "full.jsonl").read_text().splitlines()]
    assert {(trial["name"], trial["seed"]) for trial in trials} == {(p["trial"], 1) for p in check["points"]}

    plan = make_plan(config)
    prepare_teacher(plan, config.folder)
    point = check["points"][2]
    policy = next(p for p in _kept_policies(config.folder) if str(p) == point["policy"])
    proxy = plan.setting(plan.proxy_data, plan.validation_data, plan.proxy_config)
    assert PopulationEvaluator(proxy, calibration_batches=1, seed=0).evaluate([policy])[0].ap == point["proxy_ap"]
    whole = plan.setting(plan.proxy_data, plan.validation_data, config.train)
    [trained] = train_candidates(whole, [Candidate("one", policy)], seed=1)
    assert trained.metrics is not None
    assert 100 * trained.metrics.ap == point["ap"][1] == point["mean"]


def _kept_policies(folder: Path) -> list[Any]:
    """The policies with absolute weights, out of the stored trials."""
    found = []
    for line in read_lines(folder / "proxy_check" / "study.journal"):
        for name in ("policy", "resolved"):
            if name in line.get("user_attr", {}):
                found.append(parse_policy(yaml.safe_dump(line["user_attr"][name])))
    return found


def test_a_check_is_kept_and_more_policies_and_seeds_add_to_it(
    two_kinds: dict[str, Any], heard: Any, trainings: list[str], tmp_path: Path
) -> None:
    config = parse_config(two_kinds)
    first = check_proxy(config, 3, 1, heard)
    assert trainings == ["global/0", "global/1", "logits/0"]
    assert json.loads((config.folder / "proxy_check.json").read_text())["tau"] == first["tau"]
    assert read_check(config.folder) == {key: value for key, value in first.items() if key != "points"}
    assert (config.folder / "proxy_check.png").read_bytes().startswith(b"\x89PNG")
    assert heard.stages == [("teacher", 1), ("proxy", 3), ("full budget", 3)]
    assert heard.done[:2] == pytest.approx([1, 3])

    assert check_proxy(config, 3, 1, heard) == first
    assert trainings == ["global/0", "global/1", "logits/0"]
    assert heard.done[3:] == pytest.approx([0, 3, 3])  # nothing is left to do

    more = check_proxy(config, 4, 2, heard)
    assert sorted(trainings[3:]) == ["global/0", "global/1", "logits/0", "logits/1", "logits/1"]
    assert more["seeds"] == [1, 2]
    old = {point["trial"]: point for point in first["points"]}
    for point in more["points"]:
        if point["trial"] in old:
            assert point["policy"] == old[point["trial"]]["policy"]
            assert point["ap"][1] == old[point["trial"]]["ap"][1]
        assert point["mean"] == pytest.approx(sum(point["ap"].values()) / 2)


def test_a_search_quotes_it(two_kinds: dict[str, Any], heard: Any) -> None:
    from detkds.runs.pipeline import run

    config = parse_config({**two_kinds, "final": {"seeds": [0], "policies": []}})
    assert run(config, heard).summary["proxy_check"] is None
    check = check_proxy(config, 3, 1, heard)
    finished = run(config, heard)
    assert finished.summary["proxy_check"] == read_check(config.folder)
    assert "proxy and full budget" in (finished.folder / "report.html").read_text()
    assert finished.summary["proxy_check"]["policies"] == check["policies"] == 3


def test_a_space_of_too_few_policies_is_said(two_kinds: dict[str, Any], heard: Any, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    space = {"weights": {"gradient": [1]}, "knowledge": {"global": {"distance": ["l1", "l2"]}}}
    path.write_text(yaml.safe_dump(space))
    config = parse_config({**two_kinds, "search": {"space": str(path), "knowledge": ["global"]}})
    with pytest.raises(SearchError, match="expected at least 3 policies that can be trained, got 2"):
        check_proxy(config, 5, 1, heard)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "after"), [("proxy", 1), ("full budget", 3)])
def test_a_killed_check_ends_with_the_same_numbers(
    stage: str, after: int, two_kinds: dict[str, Any], heard: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**two_kinds, "name": "killed"}))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), stage, str(after)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = check_proxy(parse_config({**two_kinds, "name": "killed"}), 4, 1, heard)
    assert resumed == check_proxy(parse_config(two_kinds), 4, 1, heard)
