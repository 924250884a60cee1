"""What to do next, from what a run showed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FEW_SEEDS = 3
FEW_TRAININGS = 10


def guidance(summary: Mapping[str, Any], folder: str) -> list[str]:
    """Advice, the most important first; each names the setting to change."""
    rows = summary["rows"]
    teacher = _best(rows, "teacher")
    plain, hand, searched = (_best(rows, kind) for kind in ("plain", "hand", "searched"))
    distilled = max((row for row in (hand, searched) if row), key=lambda row: row["mean"], default=None)
    advice = []
    if teacher and plain and teacher["mean"] <= plain["mean"]:
        advice.append(
            f"The teacher ({teacher['mean']:.1f} AP) is no better than the plain student ({plain['mean']:.1f}): train "
            "it longer, take a larger one, or check its weights with detkds evaluate --which teacher."
        )
    difference = distilled and distilled["to_plain"]
    few = len(summary["seeds"]) < FEW_SEEDS
    if difference and (difference["low"] is None or difference["low"] <= 0 < difference["mean"]):
        advice.append(
            "The gain is within noise: add seeds, such as final.seeds=[0,1,2,3,4]; only the new ones are trained."
        )
    elif few:
        advice.append(f"{len(summary['seeds'])} seeds are few for a claim: add some, such as final.seeds=[0,1,2,3,4].")
    if summary["search"]["trainings"] < FEW_TRAININGS * max(1, len(_searched_kinds(summary))):
        advice.append(
            f"The search was small ({summary['search']['trainings']} candidate trainings): raise search.single_budget "
            "and search.combination_budget; what was measured is kept."
        )
    if hand and searched and hand["mean"] > searched["mean"] + max(hand["spread"], searched["spread"]):
        advice.append(
            f"The hand-designed '{hand['name']}' did better than the searched policy here; detkds distill CONFIG "
            f"--policy {hand['name']} trains with it. A larger proxy (proxy.epochs, proxy.images) ranks candidates "
            "better."
        )
    advice.append(
        f"Use the chosen policy with other data or seeds: detkds distill {folder}/config.yaml name=another "
        f"--policy {folder}/policy.yaml"
    )
    return advice


def _best(rows: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    of_kind = [row for row in rows if row["kind"] == kind and row["mean"] is not None and math.isfinite(row["mean"])]
    return max(of_kind, key=lambda row: row["mean"], default=None)


def _searched_kinds(summary: Mapping[str, Any]) -> set[str]:
    return {term["knowledge"] for term in summary["policy"]["terms"]}
