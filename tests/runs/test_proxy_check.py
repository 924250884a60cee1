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

from detkds.config_file import parse_config
from detkds.policy import parse_policy
from detkds.policy_search.result import SearchError
from detkds.report.agreement import read_check
from detkds.runs.plan import CONFIRMATION, SEARCH, make_plan
from detkds.runs.proxy_check import run_proxy_check
from detkds.runs.search import run_search
from detkds.runs.session import open_session
from detkds.runs.teacher_outputs import teacher_outputs
from detkds.training.population import StudentSpec, train_population

SOURCE = Path(__file__).resolve().parents[2] / "src"
KILLED = """
import os, signal, sys, torch
from detkds.config_file import load_config
from detkds.progress import Progress
from detkds.runs.proxy_check import run_proxy_check

heard = []

def impatient(event):
    heard.extend([event] if event.kind == "finished" and event.stage == sys.argv[2] else [])
    if len(heard) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
run_proxy_check(load_config(sys.argv[1]), 4, 1, Progress(impatient))
"""


@pytest.fixture
def two_kinds(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """Proxy and full budget differ in length; losses are compared at two weights."""
    proxy = {**tiny_run["proxy"], "population": 2}
    return {**tiny_run, "proxy": proxy, "search": {**tiny_run["search"], "knowledge": ["global", "logits"]}}


def test_both_values_are_those_of_search_and_confirmation(two_kinds: dict[str, Any], heard: Any) -> None:
    """The proxy's value with the search's seed, the other with the next one, on validation images both."""
    config = parse_config({**two_kinds, "train": {**two_kinds["train"], "draws": 12}})
    check = run_proxy_check(config, 4, 1, heard)
    assert [point["trial"] for point in check["points"]] == ["global/0", "global/1", "logits/0", "logits/1"]
    assert (check["policies"], check["seeds"]) == (4, [1])
    plan = make_plan(config)
    with open_session(plan, heard) as session:
        session.prepare_teacher()
    point = check["points"][2]
    policy = next(p for p in _kept_policies(config.folder) if str(p) == point["policy"])
    for stage, seed, ap in ((SEARCH, 0, point["proxy_ap"]), (CONFIRMATION, 1, point["ap"][1])):
        teacher = teacher_outputs(plan, config.folder, heard.note).get(stage)
        [result] = train_population(plan.setups[stage], [StudentSpec("one", policy)], seed=seed, teacher=teacher)
        assert result.metrics is not None and 100 * result.metrics.ap == ap
    assert point["mean"] == point["ap"][1]


def _kept_policies(folder: Path) -> list[Any]:
    """The policies with absolute weights, out of the stored trials."""
    found = []
    for line in map(json.loads, (folder / "proxy_check" / "study.journal").read_text().splitlines()):
        for name in ("policy", "resolved"):
            if name in line.get("user_attr", {}):
                found.append(parse_policy(yaml.safe_dump(line["user_attr"][name])))
    return found


def test_a_check_is_kept_and_more_policies_and_seeds_add_to_it(
    two_kinds: dict[str, Any], heard: Any, trainings: Any
) -> None:
    config = parse_config(two_kinds)
    first = run_proxy_check(config, 3, 1, heard)
    assert [label for label, seed in trainings if seed == 1] == ["global/0", "global/1", "logits/0"]
    once = list(trainings)
    assert json.loads((config.folder / "proxy_check.json").read_text())["tau"] == first["tau"]
    assert read_check(config.folder) == {key: value for key, value in first.items() if key != "points"}
    assert (config.folder / "proxy_check.png").read_bytes().startswith(b"\x89PNG")
    assert heard.stages == [("teacher", 1), ("proxy", 3), ("full budget", 3)]
    assert heard.done[:2] == pytest.approx([1, 3])

    assert run_proxy_check(config, 3, 1, heard) == first
    assert trainings == once
    assert heard.done[3:] == pytest.approx([1, 3, 3])  # nothing is left to do, and all is counted

    more = run_proxy_check(config, 4, 2, heard)
    assert [training for training in trainings[len(once) :] if training[1] == 0] == [("logits/1", 0)]
    at_full = sorted((label, seed) for label, seed in trainings[len(once) :] if seed)
    assert at_full == [("global/0", 2), ("global/1", 2), ("logits/0", 2), ("logits/1", 1), ("logits/1", 2)]
    assert more["seeds"] == [1, 2]
    old = {point["trial"]: point for point in first["points"]}
    for point in more["points"]:
        if point["trial"] in old:
            assert point["policy"] == old[point["trial"]]["policy"]
            assert point["ap"][1] == old[point["trial"]]["ap"][1]
        assert point["mean"] == pytest.approx(sum(point["ap"].values()) / 2)


def test_a_search_quotes_it(two_kinds: dict[str, Any], heard: Any) -> None:
    config = parse_config({**two_kinds, "final": {"seeds": [0], "policies": []}})
    assert run_search(config, heard).summary["proxy_check"] is None
    check = run_proxy_check(config, 3, 1, heard)
    finished = run_search(config, heard)
    assert finished.summary["proxy_check"] == read_check(config.folder)
    assert "proxy and full budget" in (finished.folder / "report.html").read_text()
    assert finished.summary["proxy_check"]["policies"] == check["policies"] == 3


def test_a_space_of_too_few_policies_is_said(two_kinds: dict[str, Any], heard: Any, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    space = {"weights": {"gradient": [1]}, "knowledge": {"global": {"distance": ["l1", "l2"]}}}
    path.write_text(yaml.safe_dump(space))
    config = parse_config({**two_kinds, "search": {"space": str(path), "knowledge": ["global"]}})
    with pytest.raises(SearchError, match="expected at least 3 policies that can be trained, got 2"):
        run_proxy_check(config, 5, 1, heard)


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
    resumed = run_proxy_check(parse_config({**two_kinds, "name": "killed"}), 4, 1, heard)
    assert resumed == run_proxy_check(parse_config(two_kinds), 4, 1, heard)
