"""What a comparison over seeds shows, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy import stats

TEACHER, PLAIN, INHERITED, SEARCHED = "teacher", "plain", "plain, inherited", "searched"
"""The names of the lines of a comparison that are no hand-designed policy."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over common seeds, with its 95% Student-t interval (infinite for one seed)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of a comparison; AP in points (0-100).

    Attributes:
        name, kind: what was trained; kind is ``teacher``, ``plain``, ``hand`` or ``searched``.
        ap: by seed; other metrics are means over seeds.
        to_plain: paired difference to the plain student.
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


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Arithmetic mean and sample standard deviation (0 for a single value, nan for none)."""
    if not values:
        return math.nan, math.nan
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The mean of ``ours - theirs`` over the seeds both have; None where they share none.

    >>> d = paired_difference({0: 3.0, 1: 5.0}, {0: 2.0, 1: 2.0})
    >>> d.mean, round(d.low, 2)
    (2.0, -10.71)
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    mean, spread = mean_and_spread(differences)
    if len(seeds) == 1:
        return Difference(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * spread / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half)


def verdict(rows: Sequence[Row], metric: str = "AP") -> str:
    """One paragraph: who won, by how much against the plain student and the best hand-designed policy, and how sure.

    ``metric`` is what the rows' AP is called.
    """
    students = [row for row in rows if row.kind in ("plain", "hand", "searched") and row.ap]
    plain = [row for row in students if row.kind == "plain"]
    distilled = [row for row in students if row.kind != "plain"]
    if not plain or not distilled:
        return "Nothing to compare: there must be a plain and a distilled student that finished."
    base = max(plain, key=lambda row: row.mean)
    winner = max(distilled, key=lambda row: row.mean)
    gain = paired_difference(winner.ap, base.ap)
    lines = []
    if gain is None or gain.mean <= 0:
        lines.append(f"Distillation does not help here: no policy beats the plain student '{base.name}' on the mean.")
    elif gain.low <= 0:
        lines.append(
            f"'{winner.name}' has the best mean, {_points(winner, metric)}, {gain.mean:+.1f} over the plain student "
            f"'{base.name}', but {_not_sure(gain, len(winner.ap))}"
        )
    else:
        lines.append(
            f"'{winner.name}' wins with {_points(winner, metric)}: {gain.mean:+.1f} over the plain student "
            f"'{base.name}' (95% interval {gain.low:+.1f} to {gain.high:+.1f}, {len(winner.ap)} seeds)."
        )
    searched = [row for row in distilled if row.kind == "searched"]
    hand = [row for row in distilled if row.kind == "hand"]
    if searched and hand:
        best_searched, best_hand = (max(group, key=lambda row: row.mean) for group in (searched, hand))
        edge = paired_difference(best_searched.ap, best_hand.ap)
        if edge is not None:
            sure = (
                f"95% interval {edge.low:+.1f} to {edge.high:+.1f}"
                if edge.low > 0 or edge.high < 0
                else _not_sure(edge, len(best_searched.ap)).rstrip(".")
            )
            lines.append(
                f"The searched policy stands {edge.mean:+.1f} against the best hand-designed one, "
                f"'{best_hand.name}' ({sure})."
            )
    return " ".join(lines)


def _points(row: Row, metric: str) -> str:
    return f"{row.mean:.1f} ± {row.spread:.1f} {metric}"


def _not_sure(difference: Difference, seeds: int) -> str:
    if not math.isfinite(difference.low):
        return "one seed says nothing about noise; give more."
    return f"within noise: 95% interval {difference.low:+.1f} to {difference.high:+.1f} over {seeds} seeds."
