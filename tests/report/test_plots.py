"""Plots: the page's colors, no metadata, every row and study drawn."""

from __future__ import annotations

import re
from typing import Any

from detkds.policy_search.result import Trial
from detkds.report.analysis import Point, history
from detkds.report.plots import STUDY_COLORS, comparison_plot, history_plot


def test_colors_are_those_of_the_page(summary: dict[str, Any], records: list[Trial]) -> None:
    for svg in (comparison_plot(summary["rows"]), history_plot(history(records))):
        assert svg.startswith("<svg")
        assert "var(--ink)" in svg
        assert "#010a" not in svg
        assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg)) <= {"#ffffff", "#000000"}
        assert "<metadata" not in svg
        head = svg[: svg.index(">")]
        assert "viewBox" in head
        assert " width=" not in head


def test_every_student_and_the_teacher_are_named(summary: dict[str, Any]) -> None:
    svg = comparison_plot(summary["rows"])
    for name in ("plain", "pkd", "searched", "teacher 30.0"):
        assert f">{name}</text>" in svg


def test_the_cost_of_a_step_stands_beside_the_students(summary: dict[str, Any]) -> None:
    assert "x step" not in comparison_plot(summary["rows"])
    for row in summary["rows"]:
        row["cost"] = {"ratio": 1.25, "losses_mb": 12.34}
    svg = comparison_plot(summary["rows"])
    assert ">1.25x step</text>" in svg and ">1.25x step, +12.3 MB</text>" in svg


def test_dollar_signs_are_no_formulas(summary: dict[str, Any]) -> None:
    summary["rows"][1]["name"] = "a$_1$ & $"
    assert "a$_1$ &amp; $" in comparison_plot(summary["rows"])


def test_more_studies_than_colors_are_drawn() -> None:
    points = [Point(i + 1, f"study {i}", float(i), float(i), "") for i in range(STUDY_COLORS + 2)]
    svg = history_plot(points)
    assert all(f">study {i}</text>" in svg for i in range(STUDY_COLORS + 2))
