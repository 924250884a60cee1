"""Prints the summaries of runs as the Markdown tables of the README.

Usage: python benchmarks/results_table.py results/cards.json results/bccd.json
       python benchmarks/results_table.py results/pairs/*.json

Summaries of searches give a table each, those of comparisons (`detkds compare`) one table of all.
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


def pairs_table(summaries: list[dict[str, Any]]) -> str:
    """One row per pair: its teacher, its plain students, and every policy with the difference to the plain student."""
    lines = [
        "| pair | teacher | plain | plain, inherited | distilled | to plain [95%] |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for summary in summaries:
        rows = {row["name"]: row for row in summary["rows"]}
        teacher = f"{rows['teacher']['mean']:.1f}" if "teacher" in rows else "itself"
        shared = [
            summary["name"].removeprefix("pairs/"),
            teacher,
            _mean(rows["plain"]),
            _mean(rows.get("plain, inherited")),
        ]
        for row in summary["rows"]:
            if row["kind"] == "hand":
                gain = row["to_plain"]
                difference = f"{gain['mean']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"
                lines.append(f"| {' | '.join(shared)} | {Path(row['name']).stem} {_mean(row)} | {difference} |")
                shared = [""] * 4
    return "\n".join(lines)


def _mean(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['mean']:.1f} ± {row['spread']:.1f}"


def main() -> None:
    """Print the tables of the files named on the command line."""
    found = [json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]]
    for summary in found:
        if "search" in summary:
            print(f"\n{table(summary)}")
    if compared := [summary for summary in found if "search" not in summary]:
        print(f"\n{pairs_table(compared)}")


if __name__ == "__main__":
    main()
