"""Plots as inline SVG whose colors follow the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detkds.report.analysis import Point

STUDY_COLORS = 6
_MARKS = {
    "--ink": "#010a01",
    "--muted": "#010a02",
    "--line": "#010a03",
    "--card": "#010a04",
    "--accent": "#010a05",
    **{f"--series-{i}": f"#010a1{i}" for i in range(STUDY_COLORS)},
}
"""Colors that stand for the page's own in the drawing."""
_ON_WHITE = {
    "--ink": "#1f2328",
    "--muted": "#59636e",
    "--line": "#d1d9e0",
    "--card": "#ffffff",
    "--accent": "#0969da",
    **dict(zip((f"--series-{i}" for i in range(STUDY_COLORS)),
               ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#cf222e"), strict=True)),
}  # fmt: skip
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": _MARKS["--ink"],
    "axes.edgecolor": _MARKS["--line"],
    "axes.labelcolor": _MARKS["--muted"],
    "xtick.color": _MARKS["--muted"],
    "ytick.color": _MARKS["--ink"],
    "font.size": 10.5,
}


def comparison_plot(rows: Sequence[Mapping[str, Any]], metric: str = "AP") -> str:
    """AP of every trained detector: a dot per seed, a stroke at the mean; the teacher is a line over all.

    What a training step costs stands at the right, where it was measured: its time as a multiple of the plain
    student's, and the activations that the distillation losses hold for the backward pass. ``metric`` is what AP is
    called.
    """
    students = [row for row in rows if row["kind"] != "teacher" and row["ap"]]
    teachers = [row for row in rows if row["kind"] == "teacher" and row["ap"]]
    width = 8.4 if any(row.get("cost") for row in students) else 6.6
    figure, axes = _figure(width, 0.8 + 0.36 * len(students), "comparison")
    for place, row in enumerate(reversed(students)):
        color = _MARKS["--accent"] if row["kind"] == "searched" else _MARKS["--muted"]
        values = list(row["ap"].values())
        axes.hlines(place, min(values), max(values), colors=_MARKS["--line"], linewidth=5)
        axes.scatter(values, [place] * len(values), s=30, color=color, alpha=0.75, linewidths=0, zorder=3)
        axes.vlines(row["mean"], place - 0.3, place + 0.3, colors=color, linewidth=2.4, zorder=4)
    for row in teachers:
        axes.axvline(row["mean"], color=_MARKS["--series-4"], linewidth=1.4, linestyle=(0, (4, 3)))
        label = f"teacher {row['mean']:.1f}"
        axes.annotate(label, (row["mean"], 1.0), xycoords=("data", "axes fraction"), xytext=(-4, 3),
                      textcoords="offset points", ha="right", color=_MARKS["--series-4"], fontsize=9.5)  # fmt: skip
    for place, row in enumerate(reversed(students)):
        cost = row.get("cost") or {}
        if cost.get("ratio") is not None:
            text = f"{cost['ratio']:.2f}x step" + (f", +{cost['losses_mb']:.1f} MB" if row["kind"] != "plain" else "")
            axes.annotate(text, (1.0, place), xycoords=("axes fraction", "data"), xytext=(6, 0), va="center",
                          textcoords="offset points", color=_MARKS["--muted"], fontsize=9.5)  # fmt: skip
    axes.set_yticks(range(len(students)), [str(row["name"]) for row in reversed(students)])
    axes.set_ylim(-0.6, len(students) - 0.4)
    axes.set_xlabel(f"{metric} on the test images, a dot per seed, a stroke at the mean")
    axes.grid(axis="x", color=_MARKS["--line"], linewidth=0.6)
    return _svg(figure)


def history_plot(points: Sequence[Point]) -> str:
    """AP of every candidate training in order, colored by its study, and the best so far."""
    figure, axes = _figure(6.6, 3.3, "history")
    studies = list(dict.fromkeys(point.study for point in points))
    for place, study in enumerate(studies):
        own = [point for point in points if point.study == study]
        color = _MARKS[f"--series-{place % STUDY_COLORS}"]
        axes.scatter(
            [p.index for p in own], [p.ap for p in own], s=22, color=color, linewidths=0, label=study, zorder=3
        )
    axes.step([p.index for p in points], [p.best for p in points], where="post", color=_MARKS["--ink"], linewidth=1.3,
              label="best so far")  # fmt: skip
    axes.set_xlabel("candidate trained to the end")
    axes.set_ylabel("AP on the validation part")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=_MARKS["--line"], linewidth=0.6)
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4, frameon=False, fontsize=9.5,
                         handletextpad=0.4, columnspacing=1.4)  # fmt: skip
    for text in legend.get_texts():
        text.set_color(_MARKS["--ink"])
    return _svg(figure)


def standalone(svg: str) -> str:
    """A plot as a file of its own, in dark ink on white."""
    for variable, color in _ON_WHITE.items():
        svg = svg.replace(f"var({variable})", color)
    head, rest = svg.split(">", 1)
    return f'{head} style="background: white; font-family: sans-serif">{rest}'


def _figure(width: float, height: float, name: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained", label=name)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The drawing as an ``<svg>`` element without metadata, its colors the page's variables, its ids its own."""
    name = str(figure.get_label())
    buffer = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for variable, mark in _MARKS.items():
        svg = svg.replace(mark, f"var({variable})")
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    head, rest = svg.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest
