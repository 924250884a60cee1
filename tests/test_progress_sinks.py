"""Lines of text and JSON, the line of a notebook, and the file of a run folder."""

from __future__ import annotations

import io
import json
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from detkds import progress
from detkds.errors import UserError
from detkds.progress import Event, Progress
from detkds.progress_sinks import (
    ProgressFile,
    default_sink,
    json_lines,
    notebook_line,
    read_progress,
    text_lines,
)


def at(seconds: float, kind: Any = "training", **values: Any) -> Event:
    """An event of a search, so many seconds after its begin."""
    return Event(kind, "search", total=120, elapsed=seconds, **values)


def test_text_lines_are_sparse_and_tell_what_remains() -> None:
    out = io.StringIO()
    sink = text_lines(out)
    sink(at(0, "stage"))
    for second in range(1, 31):
        sink(at(second, "finished", done=second, label=f"global/{second}", ap=3.14, remaining=120.0 - second))
    assert out.getvalue().splitlines() == [
        "search: 0/120",
        "search: 15/120, 15 s elapsed, about 1.8 min remaining; global/15  AP 3.1",
        "search: 30/120, 30 s elapsed, about 1.5 min remaining; global/30  AP 3.1",
    ]


def test_stages_notes_and_the_last_training_are_always_lines() -> None:
    out = io.StringIO()
    run = Progress(text_lines(out), clock=lambda: 0.0)
    run.stage("comparison", 2)
    run.note("[red]chosen[/red]: gid")
    run.finished("a", "gid, seed 0", 4.0)
    run.training("b", 0.5, "gid, seed 1")
    run.finished("b", "gid, seed 1", text="failed: out of memory")
    run.close()
    assert out.getvalue().splitlines() == [
        "comparison: 0/2",
        "[red]chosen[/red]: gid",
        "comparison: 2/2, about 0 s remaining, best AP 4.0 (gid, seed 0); gid, seed 1  failed: out of memory",
    ]


def test_notes_do_not_put_off_the_next_line() -> None:
    out = io.StringIO()
    sink = text_lines(out)
    sink(at(0, "stage"))
    sink(at(14, "note", text="a note"))
    sink(at(15, label="global/3"))
    assert out.getvalue().splitlines()[-1] == "search: 0/120, 15 s elapsed, training global/3"


def test_json_lines_are_the_events() -> None:
    out, events = io.StringIO(), []
    now = [0.0]
    run = Progress(json_lines(out), events.append, clock=lambda: now[0])
    run.stage("search", 2)
    run.training("a", 0.0)
    for _ in range(10):
        now[0] += 0.25
        run.training("a", now[0] / 10)
    run.finished("a", "global/0", 3.5, "l2 × 1")
    run.finished("b", "global/1", float("nan"), "failed")
    run.close()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["kind"], line["elapsed"]) for line in lines] == [
        ("stage", 0.0),
        ("training", 1.0),
        ("training", 2.0),
        ("finished", 2.5),
        ("finished", 2.5),
        ("close", 2.5),
    ]
    assert lines[-3:] == [asdict(event) for event in events[-3:]]


class Handle:
    """Stands for the display of a notebook."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.updated = 0

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw and display_id
        self.shown.append(data["text/plain"])
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.updated += 1
        self.shown.append(data["text/plain"])


def test_a_notebook_has_one_line_that_is_updated() -> None:
    handle = Handle()
    run = Progress(notebook_line(handle.display), clock=lambda: 0.0)
    run.stage("search", 3)
    run.finished("a", "global/0", 3.14)
    run.note("best of global")
    run.close()
    assert handle.updated == 3
    assert handle.shown == [
        "search: 0/3",
        "search: 1/3, about 0 s remaining, best AP 3.1 (global/0); global/0  AP 3.1",
        "search: 1/3, about 0 s remaining, best AP 3.1 (global/0); best of global",
        "search: 1/3, best AP 3.1 (global/0)",
    ]


def test_a_notebook_is_known_by_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle()
    shell = types.SimpleNamespace(kernel=object())
    display = types.SimpleNamespace(display=handle.display)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # pyright: ignore
    monkeypatch.setitem(sys.modules, "IPython.display", display)  # pyright: ignore
    default_sink()(at(0, "stage"))
    assert handle.shown == ["search: 0/120"]
    del shell.kernel
    out = io.StringIO()
    default_sink(out)(at(0, "stage"))
    assert out.getvalue() == "search: 0/120\n"
    assert len(handle.shown) == 1


def test_elsewhere_lines_go_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    default_sink()(at(0, "stage"))
    assert capsys.readouterr() == ("", "search: 0/120\n")


def test_the_file_holds_the_last_event_and_note(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    now = [0.0]
    events: list[Event] = []
    run = Progress(ProgressFile(path), events.append, clock=lambda: now[0])
    run.stage("search", 2)
    assert read_progress(path) == (events[-1], "")
    run.note("logits are not searched")
    run.finished("a", "global/0", 3.5)
    assert read_progress(path)[0].kind == "stage"  # less than a second later
    now[0] += 1
    run.training("b", 0.5)
    assert read_progress(path) == (events[-1], "logits are not searched")
    run.finished("b", "global/1")
    run.close("KeyboardInterrupt")
    assert read_progress(path) == (events[-1], "logits are not searched")
    assert [file.name for file in tmp_path.iterdir()] == ["progress.json"]


def test_the_file_is_written_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the wall clock jumps."""
    wall = iter(1e9 * (-1) ** step for step in range(10**6))
    monkeypatch.setattr(progress.time, "time", lambda: next(wall))
    path, now, versions = tmp_path / "progress.json", [0.0], set()
    run = Progress(ProgressFile(path), clock=lambda: now[0])
    run.stage("search", 1)
    for step in range(1024):
        now[0] = step / 256
        run.training("a", step / 1024)
        versions.add(path.read_text())
    assert len(versions) == 4


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    events: list[Event] = []
    run = Progress(ProgressFile(tmp_path / "missing" / "progress.json"), events.append)
    run.stage("search", 1)
    run.finished("a", "a")
    assert [event.kind for event in events if event.kind != "note"] == ["stage", "finished"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "not found"),
        ("", "got no JSON"),
        ('{"kind": "stage", "sta', "got no JSON"),
        ("\xff", "got no JSON"),
        ("[1, 2]", "got a JSON list"),
        ("{}", "done: expected the last event of a run, got 'nothing'"),
        ({"done": "many"}, "done: expected the last event of a run, got 'many'"),
        ({"total": True}, "total: expected the last event of a run, got True"),
        ({"kind": "explosion"}, "kind: expected one of stage, training, finished, note, close, got 'explosion'"),
    ],
)
def test_a_torn_or_foreign_file_is_refused(tmp_path: Path, text: Any, fault: str) -> None:
    path = tmp_path / "progress.json"
    if isinstance(text, dict):
        text = json.dumps({**asdict(at(0)), "last_note": "", **text})
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as error:
        read_progress(path)
    assert fault in str(error.value)
    assert all(line.startswith(str(path)) for line in error.value.faults)


def test_a_file_of_a_later_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text(json.dumps({**asdict(at(3)), "last_note": "n", "novelty": 1}))
    assert read_progress(path) == (at(3), "n")
