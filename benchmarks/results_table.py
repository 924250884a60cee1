"""Prints the summaries of runs as the Markdown tables of the README.

Usage: python benchmarks/results_table.py results/cards.json results/bccd.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from detkds.report.agreement import agreement_line


def table(summary: dict[str, Any]) -> str:
    """One Markdown table: AP as mean and deviation over seeds, and the paired difference to the plain student."""
    lines = [
        "| | AP | AP50 | to plain [95%] | AP by seed |",
        "|---|---:|---:|---:|---|",
    ]
    for row in summary["rows"]:
        spread = "" if row["kind"] == "teacher" else f" ± {row['spread']:.1f}"
        gain = row["to_plain"]
        difference = f"{gain['mean']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]" if gain else ""
        seeds = " ".join(f"{value:.1f}" for value in row["ap"].values())
        name = f"**{row['name']}**" if row["kind"] == "searched" else row["name"]
        lines.append(f"| {name} | {row['mean']:.1f}{spread} | {row['metrics']['ap50']:.1f} | {difference} | {seeds} |")
    minutes = ", ".join(f"{stage} {seconds / 60:.0f} min" for stage, seconds in summary["seconds"].items())
    lines += ["", f"{summary['search']['trainings']} candidate trainings; {minutes}."]
    return "\n".join([*lines, f"The {agreement_line(summary.get('proxy_check'))}."])


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(f"\n{table(json.loads(Path(path).read_text(encoding='utf-8')))}")
