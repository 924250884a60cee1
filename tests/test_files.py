"""Files written whole or not at all, and lines that survive a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detkds.files import append_line, read_lines, remove_unfinished, write_text, write_whole


def test_a_torn_line_is_cut_off_and_appending_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    whole = path.read_text()
    with open(path, "a") as file:
        file.write('{"a": 2')
    assert read_lines(path) == [{"a": 1}] and path.read_text() == whole
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_whole_line_without_its_end_counts_as_torn(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    append_line(path, {"a": 2})
    path.write_text(path.read_text()[:-1])
    assert read_lines(path) == [{"a": 1}] and len(path.read_text().splitlines()) == 1


def test_a_last_line_of_zeros_is_what_a_power_loss_leaves(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    with open(path, "ab") as file:
        file.write(b"\0" * 30 + b"\n")
    damaged: list[int] = []
    assert read_lines(path, damaged.append) == [{"a": 1}] and not damaged


def test_damaged_lines_are_numbered_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for value in range(5):
        append_line(path, {"a": value, "text": "x" * value})
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('"a": 1', '"a": 7')
    lines[3] = json.dumps({"a": 3})
    path.write_text("\n".join(lines) + "\n")
    damaged: list[int] = []
    assert [record["a"] for record in read_lines(path, damaged.append)] == [0, 2, 4]
    assert damaged == [2, 4]


@pytest.mark.parametrize("record", [{}, {"é": "ü\n"}, {"b": {"z": 1, "a": [None, 1.5, True]}, "a": 1e-300}])
def test_what_is_appended_comes_back(record: dict[str, Any], tmp_path: Path) -> None:
    append_line(tmp_path / "lines.jsonl", record)
    append_line(tmp_path / "lines.jsonl", record)
    assert read_lines(tmp_path / "lines.jsonl") == [record, record]


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, lambda file: file.write(b"new"), sync=False)
    assert path.read_text() == "new"


def test_what_was_never_finished_is_found_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".data-x.part" / "train").mkdir(parents=True)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x.part", "a/y.1.part", "a/b/z.part", "a/b/whole"):
        (tmp_path / name).write_text("")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["whole"]
