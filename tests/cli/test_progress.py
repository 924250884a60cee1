"""How a run is shown: sparse lines, or a bar on a terminal."""

from __future__ import annotations

import io
import json
import time
import types

import pytest
from rich.console import Console

from detkds.cli import progress
from detkds.cli.progress import ProgressStyle, showing


def on_terminal(width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False, markup=False), out


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
