"""A summary and trials such as a run leaves, small enough to count by hand."""

from __future__ import annotations

from typing import Any

import pytest

from detkds.policy import Policy, Term
from detkds.policy_search.result import State, Trial


def record(study: str, number: int, ap: float | None, **changes: Any) -> Trial:
    """A trial; complete and trained unless it says otherwise."""
    policy = Policy([Term("global", (), changes.pop("distance", "l2"), changes.pop("weight", 1.0))])
    given = {"state": State.COMPLETE, "params": {"distance": "l2", "weight": 1.0}, "counts": ap is not None, **changes}
    return Trial(study=study, number=number, policy=policy, key=policy.key, ap=ap, **given)


@pytest.fixture
def records() -> list[Trial]:
    """Two studies of one stage, a combination, a twin, two of one filter and one failure."""
    limit = "over the limit of 100"
    return [
        record("global", 0, 10.0, params={"distance": "l2", "weight": 1.0}),
        record("global", 1, 14.0, params={"distance": "l1", "weight": 1.0}, distance="l1"),
        record("global", 2, 14.0, params={"distance": "l1", "weight": 1.0}, counts=False, duplicate_of="global/1"),
        record(
            "global", 3, None, state=State.FILTERED, reason=f"term 'global: - | l2 x 9': its loss reaches 512, {limit}"
        ),
        record(
            "global",
            4,
            None,
            state=State.FILTERED,
            reason=f"term 'global: - | l1 x 9': its loss reaches 1e+03, {limit}",
        ),
        record("logits", 0, 12.0, params={"distance": "kl", "weight": 3.0}),
        record("logits", 1, None, state=State.FAILED, reason="DivergenceError: loss not finite at step 7", counts=True),
        record("combination", 0, 13.0, params={"global": 1.0, "logits": 0.0}),
    ]


@pytest.fixture
def summary() -> dict[str, Any]:
    """What ``summary.json`` holds."""

    def row(name: str, kind: str, aps: list[float], to_plain: Any = None, **more: Any) -> dict[str, Any]:
        mean = sum(aps) / len(aps)
        return {
            "name": name,
            "kind": kind,
            "policy": "",
            "ap": {str(seed): ap for seed, ap in enumerate(aps)},
            "mean": mean,
            "spread": 1.0,
            "metrics": {"ap50": 2 * mean},
            "to_plain": to_plain,
            "failures": {},
            "seconds": 1.0,
            **more,
        }

    return {
        "name": "birds",
        "version": "0.1.0",
        "verdict": "'searched' wins with 24.0 AP.",
        "rows": [
            row("teacher", "teacher", [30.0]),
            row("plain", "plain", [10.0, 12.0, 11.0]),
            row("pkd", "hand", [20.0, 22.0, 21.0], {"mean": 10.0, "low": 8.0, "high": 12.0}),
            row("searched", "searched", [23.0, 25.0, 24.0], {"mean": 13.0, "low": 9.5, "high": 16.5}),
        ],
        "policy": {
            "terms": [{"knowledge": "global", "transforms": ["catt", "norm(N)"], "distance": "l1", "weight": 2.5}]
        },
        "confirmation": [
            {"trial": "combination/0", "policy": "global: - | l2 x 2", "proxy_ap": 13.0, "ap": {"1": 15.5, "2": 16.5}},
            {"trial": "global/1", "policy": "global: - | l1 x 1", "proxy_ap": 14.0, "ap": {"1": 12.0}},
        ],
        "seeds": [0, 1, 2],
        "search": {
            "weighting": "gradient",
            "sampler": "evolution",
            "seed": 0,
            "method": "divide",
            "filter": True,
            "trainings": 40,
            "epochs": {"trained": 48.5, "saved": 71.5},
            "looked_up": 1,
            "states": {},
            "refused_knowledge": {"localization": "the layouts differ"},
        },
        "data": dict.fromkeys(("train", "test", "proxy", "validation"), "9 images, 20 objects, 2 classes"),
        "inherited_tensors": 23,
        "seconds": {"teacher": 30.0, "search": 120.0, "comparison": 7200.0},
        "machine": {"processor": "x86_64", "device": "cpu", "threads": 1, "torch": "2.11"},
    }
