"""What the commands print and leave behind."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from detkds import __version__, cli
from detkds.cli import app
from detkds.policy import list_policies
from detkds.policy_search.space import load_spaces
from detkds.report.agreement import agreement_line
from detkds.tasks.store import slug

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMMANDS = {
    "demo",
    "search",
    "proxy-check",
    "report",
    "status",
    "distill",
    "train",
    "evaluate",
    "export",
    "space",
    "pair",
    "compare",
    "policies",
    "list",
}


def answered(result: Any) -> Any:
    """The JSON that a command printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_commands_are_these(invoke: Any) -> None:
    found = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert found == COMMANDS
    help_text = invoke("--help").output
    assert all(command in help_text for command in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, invoke: Any) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "optuna", "timm", "matplotlib", "yaml", "pydantic"]
    code = f"import sys, detkds.cli; print([name for name in {heavy!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", "detkds", "--help"], env=environment, capture_output=True, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 1.0


def test_version(invoke: Any) -> None:
    assert invoke("--version").stdout.strip() == f"detkds {__version__}"
    citation = Path(__file__).resolve().parents[2] / "CITATION.cff"
    assert yaml.safe_load(citation.read_text())["version"] == __version__


def test_modules_of_the_working_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come last, so that a file there never stands in for a library."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    assert sys.path[-1] == str(tmp_path)


def test_space_counts_are_those_of_the_space(invoke: Any) -> None:
    data = answered(invoke("space", "--space", "paper", "--weighting", "absolute", "--json"))
    spaces = load_spaces("paper", "absolute")
    assert data["policies"] == sum(space.size for space in spaces.values())
    assert data["distinct"] == sum(space.count_canonical() for space in spaces.values())
    assert data["knowledge"]["logits"]["genes"]["weight"] == [0.1, 0.5, 1, 2, 5, 8, 10]
    assert data["combinations"] == 8**5 - 1
    text = invoke("space", "--space", "paper", "--weighting", "absolute").stdout
    assert f"{data['policies']:,} single-term policies, {data['distinct']:,} distinct losses." in text


def test_a_space_of_ones_own(invoke: Any, tmp_path: Path) -> None:
    """2 transforms x 2 distances x 1 weight of one kind: 4 policies, all distinct, nothing to combine."""
    path = tmp_path / "space.yaml"
    genes = {"normalise": ["none", "norm(N)"], "distance": ["l1", "l2"]}
    path.write_text(yaml.safe_dump({"weights": {"gradient": [1]}, "knowledge": {"global": genes}}))
    data = answered(invoke("space", "--space", path, "--json"))
    assert (data["policies"], data["distinct"], data["combinations"], data["all_distinct"]) == (4, 4, 0, 4)


def test_policies_are_listed_and_shown(invoke: Any, tmp_path: Path) -> None:
    assert [policy["policy"] for policy in answered(invoke("policies", "list", "--json"))] == list_policies()
    lines = [line.split() for line in invoke("policies", "list").stdout.splitlines()]
    assert any(line and line[0] == "pkd" and line[-1] == "exact" for line in lines)
    odd = tmp_path / "odd.yaml"
    odd.write_text("policy: '[/red] :cat:'\nterms: [{knowledge: global, distance: l2, weight: 1}]\n")
    assert "[/red] :cat:" in invoke("policies", "show", str(odd)).stdout, "names are shown as they are"
    shown = answered(invoke("policies", "show", "pkd", "--json"))
    assert shown["terms"][0]["distance"] == "l2"
    assert shown["key"] == "global: norm_batch(unbiased=true) | l2 x 5"
    path = tmp_path / "mine.yaml"
    path.write_text("terms: [{knowledge: global, transforms: [], distance: l1, weight: 2}]")
    text = invoke("policies", "show", path).stdout
    assert "canonical form: global: - | l1 x 2" in text
    assert all(name in invoke("policies", "list").stdout for name in list_policies())


def test_pieces_are_listed_with_what_they_are(invoke: Any) -> None:
    found = answered(invoke("list", "--json"))
    assert set(found) == {
        "knowledge",
        "transforms",
        "distances",
        "adapters",
        "schedules",
        "detectors",
        "samplers",
    }
    assert set(found["knowledge"]) >= {"global", "fgbg", "instance", "logits", "localization"}
    assert all(summary for family in found.values() for summary in family.values())
    assert set(answered(invoke("list", "distances", "--json"))) == {"distances"}
    assert "pearson" in invoke("list", "distances").stdout


def test_a_dry_run_of_a_search_shows_the_plan_and_leaves_nothing(
    config_file: Path, invoke: Any, tmp_path: Path
) -> None:
    """10 candidates are 5 kinds x 2; two plain students, pkd and the searched one, over 2 seeds: 8 trainings."""
    data = answered(invoke("search", config_file, "search.single_budget=2", "--dry-run", "--json"))
    assert data["data"]["train"].startswith("16 images")
    assert data["data"]["proxy"].startswith("8 images")
    assert data["search"]["trainings"] == {"policies": 0, "single": 10, "combination": 1, "joint": 0, "total": 11}
    assert data["comparison"]["policies"] == ["plain", "plain, inherited", "pkd", "searched"]
    assert data["comparison"]["trainings"] == 8
    assert [level["stride"] for level in data["pair"]["levels"]] == [8, 16, 32, 64, 128]
    assert not any(level["adapter"] for level in data["pair"]["levels"])
    assert data["pair"]["student"]["inherited_tensors"] > 0
    stages = data["minutes"]
    parts = ("teacher", "search", "confirmation", "comparison")
    assert stages["total"] == pytest.approx(sum(stages[part] for part in parts))
    assert all(value > 0 for value in stages.values())
    assert not (tmp_path / "runs").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}


def test_a_dry_run_says_why_knowledge_is_left_out_and_where_adapters_stand(
    tiny_run: dict[str, Any], invoke: Any, tmp_path: Path
) -> None:
    """Ratios of other anchors forbid logits and localization; other neck channels need adapters."""
    head = tiny_run["student"]["options"]
    tiny_run["student"] = {**tiny_run["student"], "options": {**head, "anchor_ratios": [1.0, 2.0], "neck_channels": 8}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run))
    halving = ("proxy.epochs=4", "proxy.halving.rungs=[1,3]")
    ablations = ("search.method=joint", "search.filter=false")
    result = invoke("search", path, "--dry-run", "executor=ray", "workers=3", *halving, *ablations)
    assert result.exit_code == 0, result.output
    assert "left out: " in result.stdout
    assert "3; the time below is that of a search in one process" in result.stdout
    assert "anchors differs" in result.stdout
    assert "1x1 adapter" in result.stdout
    assert "AP after epochs 1, 3 of the proxy; 1 of 3 goes on" in result.stdout
    assert "from scratch on this machine" in result.stdout
    plan = " ".join(result.stdout.split())
    assert "4 candidate trainings (in one joint space of" in plan and "no candidate refused beforehand" in plan


def test_a_dry_run_of_a_proxy_check_counts_its_trainings(config_file: Path, invoke: Any, tmp_path: Path) -> None:
    one, two = (
        answered(invoke("proxy-check", config_file, "--dry-run", "--json", "--seeds", seeds))["minutes"]
        for seeds in (1, 9)
    )
    assert set(one) == {"teacher", "proxy", "full budget", "total"}
    assert two["full budget"] > one["full budget"] > 0
    assert not (tmp_path / "runs").exists()


def test_a_proxy_check_is_printed_and_kept(config_file: Path, invoke: Any, tmp_path: Path) -> None:
    arguments = ("proxy-check", config_file, "search.knowledge=[global]", "--policies", "3")
    check = answered(invoke(*arguments, "--json"))
    kept = json.loads((tmp_path / "runs/tiny/proxy_check.json").read_text())
    assert (kept["policies"], kept["tau"]) == (check["policies"], check["tau"]) == (3, check["tau"])
    text = invoke(*arguments).stdout
    assert agreement_line(check) in text
    assert all(point["policy"] in text for point in check["points"])
    assert "proxy_check.png" in text
    assert invoke(*arguments[:-1], "2").exit_code == 2


@pytest.mark.parametrize("command", [["train", "--which", "teacher"], ["distill", "--policy", "pkd"]])
def test_a_dry_run_of_one_training(command: list[str], config_file: Path, invoke: Any, tmp_path: Path) -> None:
    data = answered(invoke(command[0], config_file, *command[1:], "--dry-run", "--json"))
    assert data["minutes"]["total"] > 0
    assert not (tmp_path / "runs").exists()


def test_the_demo_is_planned_without_leaving_its_data(invoke: Any, tmp_path: Path) -> None:
    small = ["data.embedded_images=[8,4]", "data.size=64", f"runs={tmp_path}/runs"]
    data = answered(invoke("demo", *small, "--dry-run", "--json"))
    assert set(data["knowledge"]["offered"]) == {"global", "fgbg", "instance", "logits", "localization"}
    assert len(data["comparison"]["seeds"]) >= 3
    assert not (tmp_path / "runs").exists()


def test_train_evaluate_and_distill_agree(config_file: Path, invoke: Any, tmp_path: Path) -> None:
    trained = answered(invoke("train", config_file, "--json"))
    folder = tmp_path / "runs" / "tiny" / "train"
    assert trained["weights"] == str(folder / "student-seed0.safetensors")
    measured = answered(invoke("evaluate", config_file, "--weights", trained["weights"], "--json"))
    assert measured == trained["metrics"]
    assert invoke("evaluate", config_file, "-w", trained["weights"], "--split", "train").exit_code == 0
    steps = [json.loads(line) for line in Path(trained["steps"]).read_text().splitlines()]
    assert steps[0]["step"] == 1
    assert set(steps[0]["losses"]) == {"task/classification", "task/bbox_regression"}

    teacher = answered(invoke("train", config_file, "--which", "teacher", "--json"))
    name = slug("detkds/one-stage")
    distilled = answered(invoke("distill", config_file, "--policy", "detkds/one-stage", "--json"))
    assert distilled["weights"].endswith(f"distill/{name}-seed0.safetensors")
    losses = json.loads(Path(distilled["steps"]).read_text().splitlines()[0])["losses"]
    assert {"global/l1", "fgbg/l2", "logits/pearson", "localization/ciou"} <= set(losses)
    assert (tmp_path / "runs/tiny/teacher.safetensors").read_bytes() == Path(teacher["weights"]).read_bytes()
    table = invoke("distill", config_file, "--policy", "detkds/one-stage")
    assert table.exit_code == 0
    assert "AP of each class" in table.stdout
    assert f"distill/{name}-seed0.safetensors" in table.stdout


def test_evaluating_weights_of_another_detector_is_a_users_mistake(config_file: Path, invoke: Any) -> None:
    weights = answered(invoke("train", config_file, "--json"))["weights"]
    result = invoke("evaluate", config_file, "--weights", weights, "--which", "teacher")
    assert result.exit_code == 2
    assert "expected shape" in result.stderr


def test_a_pair_is_described_without_training(invoke: Any) -> None:
    words = ["pair", "faster_rcnn(backbone=narrow8)", "retinanet(backbone=narrow8, neck_channels=64)"]
    shown = invoke(*words)
    assert shown.exit_code == 0 and "cannot: kind differs: student dense, teacher region" in shown.stdout
    data = json.loads(invoke(*words, "--json").stdout)
    assert {"fgbg", "global", "instance"} <= set(data["offered"]) and data["levels"][0]["adapter"]
