"""Rows of a comparison from stored results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from detkds.policy import Policy
from detkds.runs.comparison import Contender, contenders, rows, slug


def stored(name: str, seed: int, ap: float | None) -> dict[str, Any]:
    metrics = None if ap is None else {"ap": ap, "ap50": 2 * ap, "ap_small": None}
    return {
        "name": name,
        "seed": seed,
        "metrics": metrics,
        "failure": None if ap is not None else "boom",
        "seconds": 2.0,
    }


ENTRIES = [
    Contender("plain", "plain", Policy(), inherit=False),
    Contender("plain, inherited", "plain", Policy()),
    Contender("pkd", "hand", Policy()),
]


def test_rows_are_in_points_and_paired_with_the_better_plain_student() -> None:
    """pkd minus inherited: 30-25, 34-27; plain minus inherited: -15, -16."""
    records = [
        stored("plain", 0, 0.10),
        stored("plain", 1, 0.11),
        stored("plain, inherited", 0, 0.25),
        stored("plain, inherited", 1, 0.27),
        stored("pkd", 0, 0.30),
        stored("pkd", 1, 0.34),
        stored("pkd", 7, 0.99),
    ]
    plain, inherited, pkd = rows(ENTRIES, records, (0, 1))
    assert inherited.to_plain is None
    assert plain.to_plain is not None
    assert round(plain.to_plain.mean, 6) == -15.5
    assert pkd.to_plain is not None
    assert round(pkd.to_plain.mean, 6) == 6.0
    assert round(pkd.mean, 6) == 32
    assert round(pkd.metrics["ap50"], 6) == 64
    assert "ap_small" not in pkd.metrics
    assert set(pkd.ap) == {0, 1}


def test_a_failed_training_is_a_reason_and_never_an_ap_of_zero() -> None:
    records = [
        stored("plain", 0, 0.1),
        stored("plain, inherited", 0, 0.2),
        stored("pkd", 0, None),
        stored("pkd", 1, 0.4),
    ]
    *_, pkd = rows(ENTRIES, records, (0, 1))
    assert pkd.failures == {0: "boom"}
    assert pkd.ap == {1: 40.0}
    assert pkd.to_plain is None


def test_a_slug_stands_in_a_file_name() -> None:
    assert slug("plain, inherited") == "plain--inherited"
    assert slug("../detkds/one-stage") == "detkds-one-stage"


@pytest.mark.parametrize(("inherited", "names"), [((), ["plain"]), (("neck.weight",), ["plain", "plain, inherited"])])
def test_a_student_that_inherits_nothing_is_trained_once(inherited: tuple[str, ...], names: list[str]) -> None:
    plan: Any = SimpleNamespace(inherited=inherited, policies={})
    assert [entry.name for entry in contenders(plan, [])] == names
