"""A measured table described in Markdown: what it holds, how good its candidates are, and what decides that.

``python -m detkds.bench.describe FILE`` writes it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkds.bench.table import MeasuredTable
from detkds.errors import UserError
from detkds.policy_search.space import points


def describe(table: MeasuredTable) -> str:
    """The description, in the same words for the same table."""
    blocks = [_origin(table), _overview(table)]
    for knowledge in table.spaces:
        blocks += [
            f"## {knowledge}",
            _candidates(table, knowledge),
            _rungs(table, knowledge),
            _effects(table, knowledge),
        ]
    return "\n\n".join(blocks) + "\n"


def _origin(table: MeasuredTable) -> str:
    facts = [(name, table.header[name]) for name in ("command", "commit", "version", "torch", "machine")
             if name in table.header]  # fmt: skip
    rungs = ", ".join(map(str, table.rungs))
    title = f"# Measured table: {table.header.get('name', 'unnamed')}"
    lines = [f"- {name}: `{value}`" for name, value in facts]
    return "\n".join([title, "", *lines, f"- AP in points (0-100), after epochs {rungs} of one training"])


def _overview(table: MeasuredTable) -> str:
    rows = []
    for name in table.spaces:
        trainings = table.measurements(name)
        states = Counter(training.state.value for training in trainings if training.seed == table.seed)
        again = sum(training.seed != table.seed for training in trainings)
        choices = sum(1 for _ in points(table.space(name)))
        hours = sum(training.seconds for training in trainings) / 3600
        counts = (states[state] for state in ("complete", "filtered", "failed"))
        rows.append([name, choices, sum(states.values()), *counts, again, f"{hours:.2f}"])
    head = ["knowledge", "choices", "distinct losses", "complete", "filtered", "failed", "other seeds", "hours"]
    noise = "not measured" if math.isnan(table.noise) else f"{table.noise:.2f} AP"
    return f"{_table(head, rows)}\n\nStandard deviation between seeds at the last rung: {noise}."


def _candidates(table: MeasuredTable, knowledge: str) -> str:
    values = np.array([table.ap(table.space(knowledge).policy(p)) for p in _completed(table, knowledge)])
    rows = []
    for name, policy in (("best", table.best[knowledge]), ("median", table.median[knowledge])):
        rows.append([name, f"{table.ap(policy):.2f}", f"`{policy}`"])
    quantiles = ", ".join(f"{q:.0%}: {np.quantile(values, q):.2f}" for q in (0.05, 0.25, 0.75, 0.95))
    return (
        f"{_table(['policy', 'AP', ''], rows)}\n\nQuantiles of AP: {quantiles}; standard deviation {values.std():.2f}."
    )


def _rungs(table: MeasuredTable, knowledge: str) -> str:
    rows = [
        [f"{first} and {second}", f"{tau:.2f}"] for (first, second), tau in table.rank_correlation(knowledge).items()
    ]
    return _table(["AP after epochs", "Kendall tau"], rows)


def _effects(table: MeasuredTable, knowledge: str) -> str:
    rows = []
    for gene, effect in table.effects(knowledge).items():
        if len(effect.means) < 2:
            continue
        ranked = sorted(effect.means.items(), key=lambda item: -item[1])
        options = ", ".join(f"{option} {mean:+.2f}" for option, mean in ranked)
        rows.append([gene, f"{effect.share:.0%}", options])
    return _table(["gene", "variance", "mean AP of its options, less the mean of all"], rows)


def _completed(table: MeasuredTable, knowledge: str) -> list[Any]:
    """One choice of every distinct loss that was completed."""
    space, done = table.space(knowledge), table.aps(knowledge)
    choices = {space.key(params): params for params in points(space)}
    return [params for key, params in choices.items() if key in done]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Describe a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m detkds.bench.describe", description="Describe a measured table.")
    parser.add_argument("file", type=Path)
    try:
        sys.stdout.write(describe(MeasuredTable.load(parser.parse_args(arguments).file)))
    except UserError as error:
        sys.stderr.write("\n".join(error.faults) + "\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
