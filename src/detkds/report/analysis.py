"""What the trials of a search show, as plain data for tables and plots."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detkds.policy_search.divide_and_conquer import COMBINATION
from detkds.policy_search.joint import active
from detkds.policy_search.result import State, Trial

_TERM = re.compile(r"term '[^']*': ")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(\.\d+)?(e[+-]?\d+)?(?![\w])")


@dataclass(frozen=True)
class Point:
    """One candidate training of the search's history; ``best`` is the highest AP until then, itself included."""

    index: int
    study: str
    ap: float
    best: float
    policy: str


@dataclass(frozen=True)
class Outcome:
    """Trials that ended alike: a state, the common reason with its numbers left out, how many, and one policy."""

    state: str
    reason: str
    count: int
    example: str


@dataclass(frozen=True)
class OptionResult:
    """How the candidates did that had one option: their number, mean and best AP."""

    option: str
    count: int
    mean: float
    best: float


@dataclass(frozen=True)
class Gene:
    """The options of one gene of a study, best mean first."""

    name: str
    options: Sequence[OptionResult] = field(default_factory=tuple)

    @property
    def spread(self) -> float:
        """AP between the best and the worst option's mean: how much the choice matters."""
        means = [option.mean for option in self.options]
        return max(means) - min(means) if means else 0.0


def measured(records: Iterable[Trial]) -> list[Trial]:
    """The trials that were trained to the end, in the order of training: studies of one stage ran side by side."""
    done = [r for r in records if r.state is State.COMPLETE and r.counts and not r.duplicate_of and r.ap is not None]
    return sorted(done, key=lambda record: (record.study == COMBINATION, record.number, record.study))


def history(records: Iterable[Trial]) -> list[Point]:
    """AP of each candidate training and the best so far."""
    points: list[Point] = []
    for index, record in enumerate(measured(records), start=1):
        assert record.ap is not None
        best = max(record.ap, points[-1].best) if points else record.ap
        points.append(Point(index, record.study, record.ap, best, str(record.policy)))
    return points


def outcomes(records: Iterable[Trial]) -> list[Outcome]:
    """Trials grouped by how they ended, the most frequent first."""
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for record in records:
        if record.state is None:
            groups["unfinished", ""].append(record)
        elif record.duplicate_of:
            groups["looked up", "the same loss was known already"].append(record)
        else:
            groups[record.state.value, plain_reason(record.reason)].append(record)
    counted = [Outcome(state, reason, len(group), str(group[0].policy)) for (state, reason), group in groups.items()]
    return sorted(counted, key=lambda outcome: -outcome.count)


def plain_reason(reason: str) -> str:
    """A reason without the term it names and the numbers in it, so that like reasons are counted together.

    >>> plain_reason("term 'global: - | l2 x 1': its loss reaches 512.3 on the calibration batches")
    'its loss reaches … on the calibration batches'
    """
    return _NUMBER.sub("…", _TERM.sub("", reason.partition("; term ")[0]))


def marginals(records: Iterable[Trial]) -> dict[str, list[Gene]]:
    """For each study, how the options of each gene did on the mean; genes that matter most first."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in measured(records):
        assert record.ap is not None
        genes = values.setdefault(record.study, {})
        for gene, option in active(record.params).items():
            genes.setdefault(gene, {}).setdefault(_shown(option), []).append(record.ap)
    return {study: _ranked(genes) for study, genes in values.items()}


def per_class(finals: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """AP of each class in points, averaged over seeds, for the named rows; classes with the largest gain first.

    ``finals`` are the lines of ``final.jsonl``; the gain is the last name's over the first's.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for record in finals:
        if record["name"] in names and record["metrics"]:
            for class_name, ap in record["metrics"]["per_class"].items():
                if ap is not None:
                    values.setdefault(class_name, {}).setdefault(record["name"], []).append(100 * ap)
    rows = []
    for class_name, by_name in values.items():
        if by_name.keys() >= set(names):
            means = [sum(by_name[name]) / len(by_name[name]) for name in names]
            rows.append({"name": class_name, "values": means, "gain": means[-1] - means[0]})
    return sorted(rows, key=lambda row: -row["gain"])


def _ranked(genes: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Gene]:
    ranked = [
        Gene(
            name,
            sorted(
                (OptionResult(option, len(aps), sum(aps) / len(aps), max(aps)) for option, aps in options.items()),
                key=lambda option: -option.mean,
            ),
        )
        for name, options in genes.items()
    ]
    return sorted((gene for gene in ranked if len(gene.options) > 1), key=lambda gene: -gene.spread)


def _shown(option: Any) -> str:
    return f"{option:g}" if isinstance(option, int | float) else str(option)
