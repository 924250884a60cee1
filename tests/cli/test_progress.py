"""How a run is shown: sparse lines, or a bar on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from detkds.cli import progress
from detkds.cli.progress import Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """``clock[0]`` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_sparse_and_tell_what_is_left(clock: list[float]) -> None:
    """After 30 of 120 units in 30 s, 90 units are left: 90 s, which is told in minutes."""
    out = io.StringIO()
    with Reporter(Console(file=out, width=200)) as reporter:
        reporter.stage("search", 120)
        for _ in range(30):
            clock[0] += 1
            reporter.advance(1, "AP 3.1")
    lines = out.getvalue().splitlines()
    assert lines == [
        "search: 0/120",
        "search: 15/120, 15 s gone, about 1.8 min left  AP 3.1",
        "search: 30/120, 30 s gone, about 1.5 min left  AP 3.1",
    ]


def test_the_last_unit_is_always_told(clock: list[float]) -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=200))
    reporter.stage("comparison", 2)
    clock[0] += 1
    reporter.advance(1.5)
    reporter.advance(-0.5)
    reporter.advance(1, "pkd, seed 0: AP 4.0")
    reporter.advance(0, "cwd, seed 0: AP 3.0")
    assert out.getvalue().splitlines()[-1] == "comparison: 2/2, 1 s in all  pkd, seed 0: AP 4.0"


def test_more_work_than_announced_stays_at_the_end(clock: list[float]) -> None:
    reporter = Reporter(Console(file=io.StringIO()))
    reporter.stage("search", 2)
    reporter.advance(5, "more")
    assert reporter.done == 2


def test_brackets_in_names_are_no_markup(clock: list[float]) -> None:
    out = io.StringIO()
    with Reporter(Console(file=out, width=200)) as reporter:
        reporter.note("[red]names[/red] [/x]")
    assert out.getvalue() == "[red]names[/red] [/x]\n"


def test_a_terminal_gets_a_bar_and_a_line_per_result() -> None:
    out = io.StringIO()
    with Reporter(Console(file=out, width=120, force_terminal=True, highlight=False)) as reporter:
        reporter.stage("teacher", 1)
        reporter.stage("search", 3)
        reporter.advance(0.5)
        reporter.advance(0.5, "global/0  AP 3.1  [x]\nmore")
        reporter.note("best of global")
    text = out.getvalue()
    assert "search" in text
    assert "global/0  AP 3.1  [x] (1 more term)" in text
    assert "best of global" in text
