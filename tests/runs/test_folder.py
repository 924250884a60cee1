"""The run folder: one process, whole files, no mixing of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from detkds.config_file import parse_config
from detkds.errors import ConfigError
from detkds.runs.folder import append_line, flatten, open_folder, read_lines, write_text


def test_a_second_process_is_refused_and_the_first_lets_go(tiny_run: dict[str, Any]) -> None:
    config = parse_config(tiny_run)
    message = "another process is running here"
    with open_folder(config) as folder, pytest.raises(ConfigError, match=message), open_folder(config):
        raise AssertionError("two processes in one folder")
    assert folder == config.folder
    with open_folder(config):
        assert (folder / "config.yaml").exists()


def test_the_lock_is_free_after_a_failure(tiny_run: dict[str, Any]) -> None:
    config = parse_config(tiny_run)
    with pytest.raises(RuntimeError, match="boom"), open_folder(config):
        raise RuntimeError("boom")
    lock = FileLock(config.folder / ".lock")
    lock.acquire(timeout=0)
    lock.release()


def test_other_settings_are_refused_and_named(tiny_run: dict[str, Any]) -> None:
    with open_folder(parse_config(tiny_run)):
        before = (parse_config(tiny_run).folder / "config.yaml").read_text()
    tiny_run["train"] = {**tiny_run["train"], "lr": 0.5}
    tiny_run["seed"] = 9
    with pytest.raises(ConfigError) as caught, open_folder(parse_config(tiny_run)):
        raise AssertionError("results of two settings in one folder")
    text = "\n".join(caught.value.faults)
    assert "train.lr was 0.002 here, now 0.5" in text
    assert "seed was 0 here, now 9" in text
    assert "choose another name=" in caught.value.faults[-1]
    assert (parse_config(tiny_run).folder / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    "change", [{"final": {"seeds": [5], "policies": []}}, {"search": {"single_budget": 9, "combination_budget": 8}}]
)
def test_more_seeds_policies_and_budget_go_on_in_the_same_folder(tiny_run: dict[str, Any], change: Any) -> None:
    with open_folder(parse_config(tiny_run)):
        config = {**tiny_run, **change}
    if "search" in change:
        config["search"] = {**tiny_run["search"], **change["search"]}
    with open_folder(parse_config(config)) as folder:
        assert folder.exists()


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tiny_run["runs"] = str(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written"), open_folder(parse_config(tiny_run)):
        raise AssertionError("a folder inside a file")


def test_a_torn_line_is_cut_off_and_appending_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    with open(path, "a") as file:
        file.write('{"a": 2')
    assert read_lines(path) == [{"a": 1}]
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_whole_line_without_its_end_counts_as_torn(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert read_lines(path) == [{"a": 1}]
    assert path.read_text() == '{"a": 1}\n'


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_flatten_keeps_empty_mappings() -> None:
    assert flatten({"a": {}, "b": {"c": {"d": None}}}) == {"a": {}, "b.c.d": None}
