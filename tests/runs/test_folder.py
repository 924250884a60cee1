"""The run folder: one process, and bound to the configuration and the content that it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from detkds.config_file import parse_config
from detkds.errors import ConfigError
from detkds.progress import Progress
from detkds.runs.folder import CONFIG, CONTENT, open_folder

CONTENT_THEN = {"data.train": "1" * 32, "data.test": "2" * 32, "detkds": "0.1"}


def visit(run: dict[str, Any], content: dict[str, str] | None = None, progress: Progress | None = None) -> Path:
    """Open the folder and leave it."""
    with open_folder(parse_config(run), CONTENT_THEN if content is None else content, progress or Progress()) as folder:
        return folder


def refused(run: dict[str, Any], content: dict[str, str] | None = None) -> str:
    """Why it cannot be opened; nothing in it is changed by the attempt."""
    folder = parse_config(run).folder
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError) as caught:
        visit(run, content)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert "name=" in caught.value.faults[-1] and "--fork NAME" in caught.value.faults[-1], "both ways out are named"
    return "\n".join(caught.value.faults)


def test_a_second_process_is_refused_and_the_first_lets_go(tiny_run: dict[str, Any]) -> None:
    config = parse_config(tiny_run)
    message = "another process is running here; wait for it, or choose another name="
    with open_folder(config, {}, Progress()) as folder, pytest.raises(ConfigError, match=message):
        visit(tiny_run, {})
    assert visit(tiny_run, {}) == folder == config.folder


def test_the_lock_is_free_after_a_failure(tiny_run: dict[str, Any]) -> None:
    config = parse_config(tiny_run)
    with pytest.raises(RuntimeError, match="boom"), open_folder(config, {}, Progress()):
        raise RuntimeError("boom")
    lock = FileLock(config.folder / ".lock")
    lock.acquire(timeout=0)
    lock.release()


def test_other_settings_are_refused_and_named(tiny_run: dict[str, Any]) -> None:
    visit(tiny_run)
    tiny_run["train"] = {**tiny_run["train"], "lr": 0.5}
    tiny_run["seed"] = 9
    text = refused(tiny_run)
    assert "train.lr was 0.002 when this run began, now it is 0.5" in text
    assert "seed was 0 when this run began, now it is 9" in text


@pytest.mark.parametrize(
    "change",
    [
        {"final": {"seeds": [5], "policies": []}},
        {"search": {"single_budget": 9, "combination_budget": 8, "race": []}},
        {"proxy": {"population": 3, "cache": {"disk_gb": 1.0}}},
        {"threads": 2, "executor": "processes", "workers": 2, "device": None},
    ],
)
def test_budgets_and_speed_go_on_in_the_same_folder_in_both_directions(tiny_run: dict[str, Any], change: Any) -> None:
    changed = {
        **tiny_run,
        **{key: {**tiny_run[key], **value} if isinstance(value, dict) else value for key, value in change.items()},
    }
    for run in (tiny_run, changed, tiny_run):
        visit(run)


def test_where_data_lie_changes_nothing(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    visit(tiny_run)
    data = {**tiny_run["data"], "train": {"annotations": str(tmp_path / "a.json"), "images": str(tmp_path / "a")}}
    visit({**tiny_run, "data": data})


def test_what_data_are_is_compared_by_content(tiny_run: dict[str, Any]) -> None:
    visit(tiny_run)
    folder = parse_config(tiny_run).folder
    text = refused(tiny_run, {**CONTENT_THEN, "data.train": "3" * 32, "teacher.weights": "4" * 32})
    assert f"{folder}: the content of data.train has changed since this run began" in text
    assert "teacher.weights has changed" in text and "data.test" not in text
    text = refused(tiny_run, {key: value for key, value in CONTENT_THEN.items() if key != "detkds"})
    assert "the content of detkds has changed" in text
    visit(tiny_run)


def test_faults_of_configuration_and_content_are_named_together(tiny_run: dict[str, Any]) -> None:
    visit(tiny_run)
    text = refused({**tiny_run, "seed": 9}, {**CONTENT_THEN, "data.test": "9" * 32})
    assert "seed was 0" in text and "the content of data.test has changed" in text


@pytest.mark.parametrize("name", [CONFIG, CONTENT])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[1, 2]", b"{a: [", b"name: !!python/object/apply:os.getcwd []"]
)
def test_a_damaged_record_is_told_of_and_written_anew(
    name: str, content: bytes, tiny_run: dict[str, Any], heard: Any
) -> None:
    path = visit(tiny_run) / name
    before = path.read_bytes()
    path.write_bytes(content)
    visit(tiny_run, progress=heard)
    assert path.read_bytes() == before
    assert len(heard.notes) == 1 and str(path) in heard.notes[0] and "damaged" in heard.notes[0]


def test_what_killed_processes_left_half_written_is_removed(tiny_run: dict[str, Any]) -> None:
    folder = visit(tiny_run)
    (folder / "states").mkdir()
    for path in (folder / "states" / "a.1.state.77.part", folder / "summary.json.77.part", folder / "kept"):
        path.write_bytes(b"half")
    visit(tiny_run)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [".lock", CONFIG, CONTENT, "kept"]


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        visit({**tiny_run, "runs": str(tmp_path / "file")})
