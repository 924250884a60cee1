"""What a comparison over seeds shows, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from detkds.statistics import (
    Difference,
    Residual,
    differences_to_many,
    paired_difference,
    pooled_residual,
)

TEACHER, PLAIN, INHERITED, SEARCHED = "teacher", "plain", "plain, inherited", "searched"
"""The names of the lines of a comparison that are no hand-designed policy."""

LOOK_CONFIDENCE = 1 - 0.0294
"""Of each interval where the numbers may be looked at twice."""

LEARNED = 1.0
"""AP below which a student has learned nothing."""


@dataclass(frozen=True)
class Row:
    """One line of a comparison; AP in points (0-100).

    Attributes:
        name, kind: what was trained; kind is ``teacher``, ``plain``, ``hand`` or ``searched``.
        ap: by seed; other metrics are means over seeds.
        to_plain: paired difference to the baseline, see :func:`with_differences`; None for the baseline itself.
        failures: reasons by seed, where a training failed.
    """

    name: str
    kind: str
    policy: str
    ap: Mapping[int, float]
    mean: float
    spread: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    to_plain: Difference | None = None
    failures: Mapping[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data; None in place of numbers that JSON does not have."""
        data = asdict(self)
        data.update({key: None for key in ("mean", "spread") if not math.isfinite(data[key])})
        if self.to_plain is not None:
            data["to_plain"] = {k: v if math.isfinite(v) else None for k, v in data["to_plain"].items()}
        return data


def baseline(rows: Sequence[Row]) -> Row | None:
    """The student that all others are compared with: of the plain ones, with its own or an inherited neck and head, the
    better on the mean."""
    return max((row for row in rows if row.kind == "plain" and row.ap), key=lambda row: row.mean, default=None)


def comparison_residual(rows: Sequence[Row]) -> Residual | None:
    """The residual pooled over the comparable students; None where there are too few."""
    return pooled_residual({row.name: row.ap for row in rows if row.kind != "teacher"})


def with_differences(rows: Sequence[Row]) -> list[Row]:
    """The rows with their paired differences to the :func:`baseline`, pooled intervals where rows are comparable."""
    base, residual = baseline(rows), comparison_residual(rows)
    if base is None:
        return list(rows)

    def to_plain(row: Row) -> Difference | None:
        if row.kind == "teacher" or row is base:
            return None
        pooled = residual if residual is not None and residual.covers(row.name, base.name) else None
        return paired_difference(row.ap, base.ap, pooled)

    return [replace(row, to_plain=to_plain(row)) for row in rows]


def is_open(rows: Sequence[Row], opponent: str | None) -> bool:
    """Whether the searched policy's difference to its opponent may still be 0, by the interval of a first look."""
    named = {row.name: row for row in rows if row.ap}
    if SEARCHED not in named or opponent not in named:
        return False
    edge = edge_over(named[SEARCHED], named[opponent], comparison_residual(rows))
    return edge is not None and edge.low <= 0 <= edge.high


def edge_over(searched: Row, opponent: Row, residual: Residual | None) -> Difference | None:
    """How far the searched policy stands above an opponent that validation images chose.

    The interval is that of one of two looks at the numbers: each at :data:`LOOK_CONFIDENCE`, so that both together are
    wrong in 5 % of comparisons (Pocock, *Group sequential methods*, Biometrika 1977, two looks).
    """
    pooled = residual if residual is not None and residual.covers(searched.name, opponent.name) else None
    return paired_difference(searched.ap, opponent.ap, pooled, confidence=LOOK_CONFIDENCE)


def verdict(
    rows: Sequence[Row], metric: str = "AP", opponent: str | None = None, validation: float | None = None
) -> str:
    """One paragraph: who won, by how much against the plain student and the best hand-designed policy, and how sure.

    The plain student is the :func:`baseline` of the table. Where at least three rows are comparable, intervals are
    pooled (:func:`detkds.statistics.pooled_residual`), and those of a row that was picked for being the best here are
    Dunnett's; otherwise each difference has its own Student-t interval.

    Args:
        metric: what the rows' AP is called.
        opponent: the hand-designed policy that validation images chose; None for the best one here.
        validation: mean AP of the searched policy on the validation images, where it was chosen.
    """
    students = [row for row in rows if row.kind != "teacher" and row.ap]
    base, residual = baseline(students), comparison_residual(students)
    distilled = [row for row in students if row.kind != "plain"]
    if base is None or not distilled:
        return "Nothing to compare: there must be a plain and a distilled student that finished."
    winner, gain = _best_over(base, distilled, residual)
    if gain is None or gain.mean <= 0:
        lines = [f"Distillation does not help here: no policy beats the plain student '{base.name}' on the mean."]
    elif gain.low > 0:
        lines = [
            f"'{winner.name}' wins with {_points(winner, metric)}: {gain.mean:+.1f} over the plain student "
            f"'{base.name}' ({_evidence(gain, metric)})."
        ]
    else:
        lines = [
            f"'{winner.name}' has the best mean, {_points(winner, metric)}, {gain.mean:+.1f} over the plain student "
            f"'{base.name}', but within noise: {_evidence(gain, metric)}."
        ]
    lines += _nothing_learned(rows, base)
    searched = [row for row in distilled if row.kind == "searched"]
    hand = [row for row in distilled if row.kind == "hand"]
    chosen = [row for row in hand if row.name == opponent]
    if searched and hand:
        best = max(searched, key=lambda row: row.mean)
        if chosen:
            rival, edge = chosen[0], edge_over(best, chosen[0], residual)
        else:
            rival, behind = _best_over(best, hand, residual)
            edge = None if behind is None else -behind
        if best.policy and rival.policy == best.policy:
            lines.append(f"The search chose the hand-designed policy '{rival.name}' itself.")
        elif edge is not None:
            noise = "" if edge.low > 0 or edge.high < 0 else "within noise: "
            title = "the hand-designed one that validation chose" if chosen else "the best hand-designed one"
            lines.append(
                f"The searched policy stands {edge.mean:+.1f} against {title}, '{rival.name}' "
                f"({noise}{_evidence(edge, metric)})."
            )
    if searched and validation is not None:
        lines.append(f"On the validation images that chose it it had {validation:.1f}, here {searched[0].mean:.1f}.")
    return " ".join(lines)


def _best_over(control: Row, group: Sequence[Row], residual: Residual | None) -> tuple[Row, Difference | None]:
    """The row of the best mean in a group, and how far it stands above the control."""
    best = max(group, key=lambda row: row.mean)
    if residual is None or not residual.covers(best.name, control.name):
        return best, paired_difference(best.ap, control.ap)
    rivals = {row.name: row.ap for row in group if residual.covers(row.name)}
    below = differences_to_many(control.ap, rivals, residual).get(best.name)
    return best, None if below is None else -below


def _nothing_learned(rows: Sequence[Row], plain: Row) -> list[str]:
    """What makes a comparison say nothing, where it does, and what to do."""
    students = [row.mean for row in rows if row.kind != "teacher" and row.ap]
    teacher = next((row.mean for row in rows if row.kind == "teacher" and row.ap), None)
    if max(students, default=0.0) < LEARNED:
        return [
            f"Nothing was learned: no student reaches {LEARNED:.0f} AP. Train for longer (train.epochs), begin with"
            " pretrained bodies, or take larger images (data.size), and look at the teacher first."
        ]
    if teacher is not None and teacher <= plain.mean:
        return [
            f"The teacher, {teacher:.1f}, is no better than the plain student, {plain.mean:.1f}: there is little"
            " to teach; train it for longer or take a larger one."
        ]
    return []


def _points(row: Row, metric: str) -> str:
    return f"{row.mean:.1f} ± {row.spread:.1f} {metric}"


def _evidence(difference: Difference, metric: str) -> str:
    """The interval, what it rests on, and what it could have shown."""
    if not difference.df:
        return "one seed says nothing about noise, give more"
    seeds = "1 seed" if difference.n == 1 else f"{difference.n} seeds"
    return (
        f"95% interval {difference.low:+.1f} to {difference.high:+.1f}, {seeds}, {difference.df} df; "
        f"a gain of {difference.smallest_gain():.1f} {metric} would have been found with 80% power"
    )
