"""What a check of the proxy found: read from the run folder, in one line, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RECORD, PICTURE = "proxy_check.json", "proxy_check.png"
"""What a check leaves in the run folder."""


def read_check(folder: Path) -> dict[str, Any] | None:
    """What a check of this run found, without its single policies; None where there was none."""
    try:
        check = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        numbers = {key: None if check[key] is None else float(check[key]) for key in ("tau", "low", "high")}
        return (
            {key: value for key, value in check.items() if key != "points"}
            | numbers
            | {"policies": int(check["policies"])}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # damaged: measured again
        return None


def agreement_line(check: Mapping[str, Any] | None) -> str:
    """How far proxy and full budget agree, as ``summary.json`` holds it; None where that was not measured.

    >>> agreement_line({"tau": 0.611, "low": 0.35, "high": 0.8, "policies": 20})
    'proxy and full budget agree: Kendall tau 0.61 [0.35, 0.80], 20 policies'
    """
    if check is None:
        return "proxy and full budget: not measured; run detkds proxy-check"
    if check["tau"] is None or check["low"] is None:
        return f"proxy and full budget cannot be compared: AP of {check['policies']} policies is the same"
    verdict = "agree" if check["low"] > 0 else "are not shown to agree"
    interval = f"[{check['low']:.2f}, {check['high']:.2f}]"
    return f"proxy and full budget {verdict}: Kendall tau {check['tau']:.2f} {interval}, {check['policies']} policies"


def agreement_plot(check: Mapping[str, Any], path: Path) -> Path:
    """Draw AP at the full budget against AP on the proxy, a dot per policy, as PNG; the file is replaced whole.

    Args:
        check: what ``proxy_check.json`` holds.
        path: the file.
    """
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind in dict.fromkeys(point["knowledge"] for point in check["points"]):
        own = [point for point in check["points"] if point["knowledge"] == kind]
        axes.scatter([point["proxy_ap"] for point in own], [point["mean"] for point in own], s=26, label=kind)
    axes.set(xlabel="AP on the proxy", ylabel="AP at the full budget", title=agreement_line(check))
    axes.title.set_fontsize("small")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    scratch = path.with_name(path.name + ".part")
    with scratch.open("wb") as file:
        canvas.print_png(file)
    scratch.replace(path)
    return path
