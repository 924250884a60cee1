"""Fills the page of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from detkds.policy_search.result import Trial
from detkds.progress import duration_text
from detkds.report import analysis, plots
from detkds.report.agreement import agreement_line
from detkds.report.formatting import points
from detkds.report.guidance import guidance

MOST_CLASSES = 40
"""Classes in the table of AP by class, those with the largest gain."""

_PARTS: dict[str, Any] = {
    **dict.fromkeys(
        ("version", "verdict", "policy", "search", "machine", "progress", "proxy_check", "inherited_tensors")
    ),
    **{"name": "", "metric": "AP", "rows": (), "seeds": (), "confirmation": (), "data": {}, "seconds": {}},
}
"""What a summary may hold, and what stands for a part that a run does not have yet."""


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    records: Sequence[Trial],
    finals: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the report of a run as one HTML file that loads nothing from elsewhere.

    Args:
        path: the file; replaced whole.
        summary: what ``summary.json`` holds, or as much of it as a running run has; see :func:`render`.
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
    """The page as text; everything that comes from data, names and errors is escaped.

    Every part of the summary may be missing. Without a verdict, or with ``running`` true, the page says that the run
    goes on, with the line ``progress`` where there is one.
    """
    environment = Environment(
        loader=PackageLoader("detkds.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(points=partial(points, missing="–"), signed=_signed, duration=duration_text)
    running = bool(summary.get("running", not summary.get("verdict")))
    summary = {**_PARTS, **summary}
    rows, metric = summary["rows"], summary["metric"]
    trained = [row for row in rows if row["kind"] != "teacher" and row["mean"] is not None]
    compared = _compared(rows)
    history = analysis.history(records)
    return environment.get_template("page.html.j2").render(
        summary=summary,
        running=running,
        folder=folder or ".",
        metric=metric,
        of_masks=metric == "mask AP",
        rows=rows,
        winner=max(trained, key=lambda row: row["mean"], default=None),
        teacher=next((row for row in rows if row["kind"] == "teacher"), None),
        plain=compared[0] if compared else None,
        comparison=Markup(plots.comparison_plot(rows, metric)) if trained else "",
        history=Markup(plots.history_plot(history)) if history else "",
        best=max(history, key=lambda point: point.ap, default=None),
        trials=len(records),
        outcomes=analysis.outcomes(records),
        marginals=analysis.marginals(records),
        compared=compared,
        classes=analysis.per_class(finals, [row["name"] for row in compared])[:MOST_CLASSES] if compared else [],
        advice=[] if running else guidance(summary, folder),
        agreement=agreement_line(summary["proxy_check"]),
    )


def _compared(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The strongest plain student and the strongest distilled one; empty where one is missing."""
    finished = [row for row in rows if row["mean"] is not None]
    groups = [[r for r in finished if r["kind"] in kinds] for kinds in (("plain",), ("hand", "searched"))]
    return [max(group, key=lambda row: row["mean"]) for group in groups] if all(groups) else []


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}".replace("-", "−")
