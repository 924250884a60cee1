"""Prints the summaries of runs as the Markdown tables of the README.

Usage: python benchmarks/results_table.py results/cards.json results/bccd.json
       python benchmarks/results_table.py results/pairs/*.json
       python benchmarks/results_table.py --methods results/cards-methods.json results/bccd-methods.json

Summaries of searches give a table each, those of comparisons (`detkds compare`) one table of all: a pair in each row,
or with ``--methods`` a policy in each row, the best mean gain first.
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


def methods_table(summaries: list[dict[str, Any]]) -> str:
    """One row per policy: AP and the difference to the plain student in each summary, and what a step costs."""
    named = [{_label(row): row for row in summary["rows"]} for summary in summaries]
    policies = list(dict.fromkeys(name for rows in named for name in rows))

    def gain(name: str) -> float:
        gains = [rows[name]["to_plain"]["mean"] for rows in named if name in rows and rows[name]["to_plain"]]
        return sum(gains) / len(gains) if gains else -1e9

    head = "".join(f" {summary['name']} | to plain [95%] | step |" for summary in summaries)
    lines = [f"| |{head}", "|---|" + "---:|---:|---:|" * len(summaries)]
    plain = [name for name in policies if any(rows.get(name, {}).get("kind") in ("teacher", "plain") for rows in named)]
    for name in plain + sorted((name for name in policies if name not in plain), key=gain, reverse=True):
        cells = [_cells(rows.get(name)) for rows in named]
        lines.append(f"| {name} | {' | '.join(cell for row in cells for cell in row)} |")
    return "\n".join(lines)


def _label(row: dict[str, Any]) -> str:
    stem = Path(row["name"]).stem if row["name"].endswith(".yaml") else row["name"]
    return "**searched**" if stem.endswith("searched") else stem


def _cells(row: dict[str, Any] | None) -> tuple[str, str, str]:
    if row is None or not row["ap"]:
        return "", "", ""
    spread = "" if row["kind"] == "teacher" else f" ± {row['spread']:.1f}"
    difference, cost = row["to_plain"], row.get("cost")
    return (
        f"{row['mean']:.1f}{spread}",
        f"{difference['mean']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]" if difference else "",
        f"x {cost['ratio']:.2f}" if cost and cost.get("ratio") else "",
    )


def _mean(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['mean']:.1f} ± {row['spread']:.1f}"


def main() -> None:
    """Print the tables of the files named on the command line."""
    methods = "--methods" in sys.argv
    paths = [path for path in sys.argv[1:] if path != "--methods"]
    found = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    if methods:
        print(methods_table(found))
        return
    for summary in found:
        if "search" in summary:
            print(f"\n{table(summary)}")
    if compared := [summary for summary in found if "search" not in summary]:
        print(f"\n{pairs_table(compared)}")


if __name__ == "__main__":
    main()
