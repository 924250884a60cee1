"""How a run is shown: sparse lines, or a bar on a terminal."""

from __future__ import annotations

import io
import json
import time
import types

import pytest
from rich.console import Console

from detkds.cli import progress
from detkds.cli.progress import ProgressStyle, Reporter, showing


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


def on_terminal(width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False), out


def test_the_bar_shows_what_is_trained_the_best_and_every_result() -> None:
    console, out = on_terminal()
    with showing(console) as run:
        run.stage("search", 3)
        run.note("[x] is refused")
        run.training("a", 0.5, "global/0 [y]")
        time.sleep(0.15)  # the bar is drawn ten times a second
        run.finished("a", "global/0 [y]", 3.14, "l2 x 1\nmore")
        run.stage("comparison", 2)
    text = out.getvalue()
    for shown in ("search", "[x] is refused", "training global/0 [y]", "0.5/3", "elapsed", "remaining", "comparison"):
        assert shown in text
    assert "global/0 [y]  AP 3.1  l2 x 1 (1 more term)" in text
    assert "best AP 3.1 (global/0 [y])" in text


def test_the_bar_fits_a_narrow_terminal() -> None:
    console, out = on_terminal(width=80)
    with showing(console) as run:
        run.stage("confirmation", 60)
        run.training("a", 0.5, "a name that is long " * 8)
        time.sleep(0.15)  # the bar is drawn ten times a second
    assert "remaining -:--:--" in out.getvalue()
    assert "…" in out.getvalue()


def test_the_remaining_time_counts_down_between_events() -> None:
    column = progress._Remaining()
    task = types.SimpleNamespace(fields={"remaining": 3725.0, "updated": 10.0}, get_time=lambda: 15.0)
    assert str(column.render(task)) == "1:02:00"  # pyright: ignore[reportArgumentType]
    task.get_time = lambda: 99999.0
    assert str(column.render(task)) == "0:00:00"  # pyright: ignore[reportArgumentType]


def test_the_bar_is_taken_away_when_a_run_fails() -> None:
    console, out = on_terminal()
    with pytest.raises(ZeroDivisionError), showing(console) as run:
        run.stage("search", 1 // 0)
    assert out.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the bar is wiped away


@pytest.mark.parametrize("style", list(ProgressStyle))
def test_the_style_is_the_users(style: ProgressStyle) -> None:
    out = io.StringIO()
    with showing(Console(file=out), style) as run:
        run.stage("search", 3)
    if style is ProgressStyle.JSON:
        assert [json.loads(line)["kind"] for line in out.getvalue().splitlines()] == ["stage", "close"]
    else:
        assert out.getvalue() == ("" if style is ProgressStyle.NONE else "search: 0/3\n")


@pytest.mark.parametrize("style", list(ProgressStyle))
def test_a_quiet_console_shows_nothing(style: ProgressStyle) -> None:
    out = io.StringIO()
    with showing(Console(file=out, quiet=True), style) as run:
        run.stage("search", 3)
    assert out.getvalue() == ""
