"""Fills the page of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from detkds.report import analysis, plots
from detkds.report.agreement import agreement_line
from detkds.report.guidance import guidance
from detkds.search.result import Trial

MOST_CLASSES = 40


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    records: Sequence[Trial],
    finals: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the report of a run as one HTML file that loads nothing from elsewhere.

    Args:
        path: the file; replaced whole.
        summary: what ``summary.json`` holds.
        records: all trials of the search.
        finals: the lines of ``final.jsonl``, for AP by class.
    """
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(render(summary, records, finals, folder=str(path.parent)), encoding="utf-8")
    scratch.replace(path)
    return path


def render(
    summary: Mapping[str, Any],
    records: Sequence[Trial],
    finals: Sequence[Mapping[str, Any]] = (),
    *,
    folder: str = "",
) -> str:
    """The page as text; everything that comes from data, names and errors is escaped."""
    environment = Environment(
        loader=PackageLoader("detkds.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(points=_points, signed=_signed, duration=_duration)
    rows = summary["rows"]
    trained = [row for row in rows if row["kind"] != "teacher" and row["mean"] is not None]
    compared = _compared(rows)
    points = analysis.history(records)
    metric = summary.get("metric", "AP")
    return environment.get_template("page.html.j2").render(
        summary=summary,
        folder=folder,
        metric=metric,
        of_masks=metric == "mask AP",
        rows=rows,
        winner=max(trained, key=lambda row: row["mean"], default=None),
        teacher=next((row for row in rows if row["kind"] == "teacher"), None),
        plain=compared[0] if compared else None,
        comparison=Markup(plots.comparison_plot(rows, metric)) if trained else "",
        history=Markup(plots.history_plot(points)) if points else "",
        trials=len(records),
        outcomes=analysis.outcomes(records),
        marginals=analysis.marginals(records),
        compared=compared,
        classes=analysis.per_class(finals, [row["name"] for row in compared])[:MOST_CLASSES] if compared else [],
        advice=guidance(summary, folder),
        agreement=agreement_line(summary.get("proxy_check")),
    )


def _compared(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The strongest plain student and the strongest distilled one; empty where one is missing."""
    finished = [row for row in rows if row["mean"] is not None]
    groups = [[r for r in finished if r["kind"] in kinds] for kinds in (("plain",), ("hand", "searched"))]
    return [max(group, key=lambda row: row["mean"]) for group in groups] if all(groups) else []


def _points(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.1f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}".replace("-", "−")


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
