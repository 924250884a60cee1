"""A small measured table."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def measured() -> list[dict[str, Any]]:
    """The lines of a table of eight choices that are four losses: cutting changes nothing under these distances.

    True AP without the seeds' mean difference of 2: 20.5 (20 and 23 - 2), 23.5 (24 and 25 - 2) and 30; one is refused.
    """
    genes = {"attention": ["none", "catt"], "scale": ["none", "local(2)"], "distance": ["l1", "l2"], "weight": [3.0]}
    space = {"knowledge": "global", "weighting": "gradient", "genes": genes}

    def line(attention: str, distance: str, seed: int, *ap: float) -> dict[str, Any]:
        return {
            "knowledge": "global",
            "params": {"attention": attention, "scale": "none", "distance": distance, "weight": 3.0},
            "seed": seed,
            "state": "complete" if ap else "filtered",
            "ap": list(ap),
            "ap50": [2 * value for value in ap],
            "reason": "" if ap else "over the limit",
            "seconds": 1.8,
        }

    return [
        {"format": 1, "name": "tiny", "command": "made by hand", "rungs": [1, 3], "spaces": {"global": space}},
        line("none", "l1", 0, 10.0, 20.0),
        line("none", "l2", 0, 12.0, 24.0),
        line("catt", "l1", 0, 11.0, 30.0),
        line("catt", "l2", 0),
        line("none", "l1", 1, 10.0, 23.0),
        line("none", "l2", 1, 10.0, 25.0),
    ]
