"""A whole search in seconds: what it leaves, and that a kill changes nothing."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from detkds.cli import app
from detkds.policy import load_policy

SOURCE = Path(__file__).resolve().parents[2] / "src"
KILLED = """
import os, signal, sys
from detkds.config_file import load_config
from detkds.progress import Progress
from detkds.runs.search import run_search

heard = []

def impatient(event):
    heard.extend([event] if event.kind == "finished" and event.stage == sys.argv[2] else [])
    if len(heard) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

run_search(load_config(sys.argv[1]), Progress(impatient))
"""


TWO_KINDS = {"knowledge": ["global", "logits"], "single_budget": 2}


@pytest.fixture
def run_file(tiny_run: dict[str, Any], tmp_path: Path) -> Path:
    """A search of two kinds with a combination, over two seeds."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**tiny_run, "search": {**tiny_run["search"], **TWO_KINDS}}))
    return path


@pytest.fixture(scope="module")
def whole(tiny_module_run: dict[str, Any]) -> tuple[Path, Path, dict[str, Any]]:
    """The same search, run without interruption: its configuration, its folder and its summary."""
    folder = Path(tiny_module_run["runs"]) / "tiny"
    path = folder.parent.with_name("run.yaml")
    path.write_text(yaml.safe_dump({**tiny_module_run, "search": {**tiny_module_run["search"], **TWO_KINDS}}))
    return path, folder, search(path)


def search(path: Path, *more: str) -> Any:
    result = CliRunner().invoke(app, ["search", str(path), *more, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without what differs between two runs of the same: names and times."""
    timed = ("seconds", "name", "teacher_outputs")
    kept = copy.deepcopy({key: value for key, value in summary.items() if key not in timed})
    for row in kept["rows"]:
        del row["seconds"]
    return kept


def test_a_search_leaves_everything_it_promises(whole: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, summary = whole
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert [row["name"] for row in summary["rows"]] == ["teacher", "plain", "plain, inherited", "pkd", "searched"]
    assert all(set(row["ap"]) == {"0", "1"} for row in summary["rows"][1:])
    assert summary["search"]["trainings"] == 5
    assert summary["teacher_outputs"]["mode"] == "auto"
    assert summary["teacher_outputs"]["way"] in ("cached", "shared")
    assert load_policy(folder / "policy.yaml").to_dict()["terms"] == summary["policy"]["terms"]
    assert all(term.weighting == "absolute" for term in load_policy(folder / "policy.yaml"))
    [searched] = (folder / "students").glob("searched-seed0-*.safetensors")
    assert (folder / "student.safetensors").read_bytes() == searched.read_bytes()
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert {trial["study"] for trial in trials} == {"global", "logits", "combination"}
    report = (folder / "report.html").read_text()
    assert "searched" in report
    assert "<svg" in report
    assert not [path for path in folder.rglob("*.state*") if path.is_file()]

    evaluated = CliRunner().invoke(
        app, ["evaluate", str(path), "--weights", str(folder / "student.safetensors"), "--json"]
    )
    assert 100 * json.loads(evaluated.stdout)["ap"] == pytest.approx(summary["rows"][-1]["ap"]["0"])


@pytest.mark.parametrize(("stage", "after"), [("comparison", 2), pytest.param("search", 3, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_numbers(
    stage: str, after: int, run_file: Path, tmp_path: Path, whole: tuple[Path, Path, dict[str, Any]]
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(run_file), stage, str(after)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "runs" / "tiny"
    assert (folder / "teacher.safetensors").exists()
    assert not (folder / "summary.json").exists()
    assert numbers(search(run_file)) == numbers(whole[2])
    ours, theirs = (load_file(place / "student.safetensors") for place in (folder, whole[1]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_how_the_teachers_outputs_are_got_changes_no_number(whole: tuple[Path, Path, dict[str, Any]]) -> None:
    path, _, first = whole
    for name, cache, way in (("kept", "{mode: cached}", "cached"), ("computed", "{disk_gb: 1.0e-9}", "shared")):
        summary = search(path, f"name={name}", f"proxy.cache={cache}")
        assert summary["teacher_outputs"]["way"] == way
        assert numbers(summary) == numbers(first)


def test_running_again_trains_nothing_and_more_seeds_add_to_it(whole: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, first = whole
    before = (folder / "results.jsonl").read_text()
    assert numbers(search(path)) == numbers(first)
    assert (folder / "results.jsonl").read_text() == before
    more = search(path, "final.seeds=[0,1,2]")
    added = (folder / "results.jsonl").read_text().removeprefix(before)
    assert len(added.splitlines()) == 4, "one training for each row"
    assert [set(row["ap"]) for row in more["rows"][1:]] == [{"0", "1", "2"}] * 4
    assert all(new["ap"]["0"] == old["ap"]["0"] for new, old in zip(more["rows"], first["rows"], strict=True))


def test_the_demo_runs_when_it_is_made_tiny(tmp_path: Path) -> None:
    """The shipped configuration, made tiny: every key of it is sound and all five kinds are searched."""
    tiny = ["data.embedded_images=[12,6]", "data.size=64", "teacher.train.epochs=1", "train.epochs=1", "train.draws=8"]
    tiny += [
        "proxy.epochs=1",
        "proxy.draws=8",
        "search.method=divide",
        "search.single_budget=1",
        "search.combination_budget=1",
    ]
    tiny += ["final.seeds=[0]", "final.policies=[fitnets]", f"runs={tmp_path}/runs", "device=cpu", "executor=inline"]
    result = CliRunner().invoke(app, ["demo", *tiny])
    assert result.exit_code == 0, result.output
    trials = (tmp_path / "runs/demo/trials.jsonl").read_text().splitlines()
    kinds = {"global", "fgbg", "instance", "logits", "localization", "combination"}
    assert {json.loads(line)["study"] for line in trials} == kinds
    assert "verdict" in result.stdout
    assert "report.html" in result.stdout


# --------------------------------------------------------------------------------- data that change under their path


def changed_labels(folder: Path) -> None:
    """Every label is another one, and two of the images are gone."""
    path = folder / "train.json"
    content = json.loads(path.read_text())
    first, second = (category["id"] for category in content["categories"])
    for annotation in content["annotations"]:
        annotation["category_id"] = second if annotation["category_id"] == first else first
    gone = {image["id"] for image in content["images"][:2]}
    content["images"] = [image for image in content["images"] if image["id"] not in gone]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in gone]
    path.write_text(json.dumps(content))


def test_data_that_changed_under_their_path_are_never_mixed_with_old_results(
    tiny_run: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    """A run that has begun refuses; a store that knows results of the old data trains everything again."""
    shutil.copytree(tiny_data, tmp_path / "data")
    run = json.loads(json.dumps(tiny_run).replace(str(tiny_data), str(tmp_path / "data")))
    run["search"] |= {"knowledge": ["global"], "race": []}
    run["final"] = {"seeds": [0], "policies": []}
    path, folder = tmp_path / "run.yaml", tmp_path / "runs" / "tiny"
    path.write_text(yaml.safe_dump(run))
    first = search(path)
    left = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    changed_labels(tmp_path / "data")
    result = CliRunner().invoke(app, ["search", str(path)])
    assert result.exit_code == 2
    assert f"{folder}: the content of data.train has changed since this run began" in result.output
    assert "name=" in result.output and "--fork" in result.output
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == left

    (tmp_path / "runs" / "fresh").mkdir()
    shutil.copyfile(folder / "results.jsonl", tmp_path / "runs" / "fresh" / "results.jsonl")
    second = search(path, "name=fresh")
    lines = (tmp_path / "runs" / "fresh" / "results.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert len(set(keys)) == len(keys) == 2 * len((folder / "results.jsonl").read_text().splitlines())
    assert second["data"]["train"] != first["data"]["train"]
