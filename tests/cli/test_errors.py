"""Every mistake a user can make: exit code 2, all faults, no traceback, nothing written."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

Change = Callable[[dict[str, Any], Path], object]


def section(name: str, **values: Any) -> Change:
    """Set keys of one section of the configuration."""
    return lambda run, data: run.setdefault(name, {}).update(values)


def annotations(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the content of the training annotations."""

    def apply(run: dict[str, Any], data: Path) -> None:
        path = data / "train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def both(*changes: Change) -> Change:
    """Several mistakes at once."""
    return lambda run, data: [change(run, data) for change in changes]


MISTAKES: dict[str, tuple[Change, list[str]]] = {
    "unknown key": (section("train", learning_rate=1), ["train.learning_rate: unknown key 'learning_rate'"]),
    "unknown detector": (section("student", detector="retinanett"), ["did you mean 'retinanet'?"]),
    "unknown backbone": (section("teacher", backbone="resnet5"), ["resnet5", "resnet50"]),
    "unknown option": (section("student", options={"neck": 3}), ["neck"]),
    "wrong option": (section("student", options={"neck_channels": 0}), ["neck_channels: expected a whole number >= 1"]),
    "unknown policy": (section("final", policies=["fitnet"]), ["unknown policy 'fitnet'; did you mean 'fitnets'?"]),
    "unknown sampler": (section("search", sampler="evolutoin"), ["did you mean 'evolution'?"]),
    "unknown space": (section("search", space="papr"), ["unknown space 'papr'; did you mean 'paper'?"]),
    "unknown knowledge": (section("search", knowledge=["globl"]), ["globl", "global"]),
    "no storage": (section("search", storage="sqlite:////proc/none/x.db"), ["search.storage", "cannot be opened"]),
    "unknown device": (lambda run, data: run.update(device="warp9"), ["device: 'warp9' cannot be used"]),
    "unknown plugin": (lambda run, data: run.update(plugins=["no.such.module"]), ["plugins: 'no.such.module'"]),
    "not a number": (section("train", lr=math.nan), ["train.lr"]),
    "infinite": (section("train", weight_decay=math.inf), ["train.weight_decay"]),
    "no teacher": (lambda run, data: run["teacher"].pop("train"), ["teacher: expected weights"]),
    "no weights file": (section("teacher", weights="nowhere.safetensors"), ["nowhere.safetensors"]),
    "missing annotations": (lambda run, data: (data / "train.json").unlink(), ["train.json"]),
    "missing folder": (lambda run, data: shutil.rmtree(data / "train"), ["train"]),
    "missing image": (lambda run, data: next((data / "val").glob("*.png")).unlink(), [".png"]),
    "corrupt annotations": (lambda run, data: (data / "train.json").write_text('{"images": ['), ["train.json"]),
    "not annotations": (lambda run, data: (data / "val.json").write_text("[1, 2]"), ["val.json"]),
    "wrong class": (annotations(lambda content: content["annotations"][0].update(category_id=77)), ["77"]),
    "path leaves the folder": (
        annotations(lambda content: content["images"][0].update(file_name="../../secret.png")),
        ["../../secret.png"],
    ),
    "box is not a number": (
        annotations(lambda content: content["annotations"][0].update(bbox=[0, 0, math.nan, 4])),
        ["bbox"],
    ),
    "other classes": (
        annotations(lambda content: content["categories"][0].update(name="nought")),
        ["val.json: expected the classes nought", "got zero besides"],
    ),
    "name leaves the folder": (lambda run, data: run.update(name="../out"), ["name: expected the name of a folder"]),
    "many": (
        both(section("final", policies=["fitnet"]), section("search", sampler="x"), section("student", backbone="y")),
        ["3 errors", "unknown policy 'fitnet'", "unknown sampler 'x'", "'y'"],
    ),
}


@pytest.fixture
def spoilt(tiny_run: dict[str, Any], tiny_data: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Applies a mistake to copies of configuration and data; the configuration file."""

    def spoil(change: Change) -> Path:
        data = tmp_path / "data"
        shutil.copytree(tiny_data, data)
        run = json.loads(json.dumps(tiny_run).replace(str(tiny_data), str(data)))
        change(run, data)
        path = tmp_path / "spoilt.yaml"
        path.write_text(yaml.safe_dump(run))
        return path

    return spoil


def refused(result: Result, *said: str) -> None:
    """The command ended as for a user's mistake, and said this."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    for text in said:
        assert text in result.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_the_search_before_anything_is_written(
    mistake: str, spoilt: Callable[[Change], Path], invoke: Any, tmp_path: Path
) -> None:
    change, said = MISTAKES[mistake]
    refused(invoke("search", spoilt(change)), *said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["search", "train", "distill", "evaluate"])
def test_every_command_lists_the_faults_of_a_configuration(command: str, invoke: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nstudnt: {}\n")
    more = ["--weights", "w.pt"] if command == "evaluate" else []
    refused(invoke(command, path, *more), "4 errors", "unknown key 'studnt'", "data: field required")


def test_an_unreadable_image_met_in_training_is_named(spoilt: Callable[[Change], Path], invoke: Any) -> None:
    def scribble(run: dict[str, Any], data: Path) -> None:
        for image in (data / "train").glob("*.png"):
            image.write_bytes(b"not a picture")

    refused(invoke("search", spoilt(scribble)), "cannot be read", ".png", "replace the file or remove the image")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["policies", "show", "fitnet"], "did you mean 'fitnets'?"),
        (["policies", "show", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["space", "--space", "papr"], "did you mean 'paper'?"),
        (["demo", "train.lr=x"], "train.lr"),
        (["demo", "name"], "expected key=value"),
    ],
)
def test_mistakes_in_arguments(arguments: list[str], said: str, invoke: Any) -> None:
    refused(invoke(*arguments), said)


@pytest.mark.parametrize(
    "arguments", [["serach"], ["space", "--no-such-option"], ["train", "c.yaml", "--which", "both"]]
)
def test_what_the_command_line_does_not_know(arguments: list[str], invoke: Any) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_an_embedded_run_that_fails_leaves_no_data(invoke: Any, tmp_path: Path) -> None:
    refused(invoke("demo", f"runs={tmp_path}/runs", "final.policies=[fitnet]"), "did you mean 'fitnets'?")
    assert not (tmp_path / "runs").exists()


def test_distilling_without_a_policy_says_what_to_do(config_file: Path, invoke: Any, tmp_path: Path) -> None:
    refused(invoke("distill", config_file), "run detkds search first", "--policy", "fitnets")
    assert not (tmp_path / "runs").exists()


def test_a_folder_in_use_is_refused(config_file: Path, tiny_run: dict[str, Any], invoke: Any) -> None:
    from detkds.config_file import parse_config
    from detkds.progress import Progress
    from detkds.runs.folder import open_folder

    with open_folder(parse_config(tiny_run), {}, Progress()):
        refused(invoke("search", config_file), "another process is running here")


def test_interrupting_says_how_to_go_on(config_file: Path, invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detkds.runs.search.run_search", interrupted)
    result = invoke("search", config_file)
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr


def test_a_full_disk_is_said_in_one_line(config_file: Path, invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "runs/tiny/results.jsonl")

    monkeypatch.setattr("detkds.runs.search.run_search", full)
    refused(invoke("search", config_file), "runs/tiny/results.jsonl", "No space left on device", "free some space")


def test_a_full_disk_is_recognised_behind_an_error_of_torch(config_file: Path, invoke: Any, monkeypatch: Any) -> None:
    def full(*arguments: object) -> None:
        try:
            raise OSError(27, "File too large")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904  as torch.save does

    monkeypatch.setattr("detkds.runs.search.run_search", full)
    refused(invoke("search", config_file), "cannot be written: File too large")


def test_our_own_faults_keep_their_traceback(config_file: Path, invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("detkds.runs.search.run_search", broken)
    assert isinstance(invoke("search", config_file).exception, ZeroDivisionError)
