"""Rows of a comparison from stored results."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from detkds.policy import Policy, Term
from detkds.policy_search.result import State
from detkds.runs.comparison import Contender, contenders, rows
from detkds.tasks.task import TaskResult


def stored(ap: float | None) -> TaskResult:
    if ap is None:
        return TaskResult(State.FAILED, reason="boom", seconds=2.0)
    return TaskResult(State.COMPLETE, {"ap": ap, "ap50": 2 * ap, "ap_small": None}, seconds=2.0)


ENTRIES = [
    Contender("plain", "plain", Policy(), inherit=False),
    Contender("plain, inherited", "plain", Policy()),
    Contender("pkd", "hand", Policy()),
]


def test_rows_are_in_points_and_paired_with_the_better_plain_student() -> None:
    """pkd minus inherited: 30-25, 34-27; plain minus inherited: -15, -16."""
    results = {
        ("plain", 0): stored(0.10),
        ("plain", 1): stored(0.11),
        ("plain, inherited", 0): stored(0.25),
        ("plain, inherited", 1): stored(0.27),
        ("pkd", 0): stored(0.30),
        ("pkd", 1): stored(0.34),
    }
    plain, inherited, pkd = rows(ENTRIES, results)
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
    results = {
        ("plain", 0): stored(0.1),
        ("plain, inherited", 0): stored(0.2),
        ("pkd", 0): stored(None),
        ("pkd", 1): stored(0.4),
    }
    *_, pkd = rows(ENTRIES, results)
    assert pkd.failures == {0: "boom"}
    assert pkd.ap == {1: 40.0}
    assert pkd.to_plain is None


def test_the_policy_is_shown_as_it_was_trained() -> None:
    relative = Policy([Term("global", (), "l2", 0.5, "gradient")])
    trained = replace(stored(0.3), policy=Policy([Term("global", (), "l2", 0.01)]).to_dict())
    entries = [ENTRIES[0], Contender("relative", "hand", relative)]
    [plain, row] = rows(entries, {("plain", 0): stored(0.1), ("relative", 0): trained})
    assert (plain.policy, row.policy) == ("plain (no distillation)", "global: - | l2 x 0.01")


@pytest.mark.parametrize(("inherited", "names"), [((), ["plain"]), (("neck.weight",), ["plain", "plain, inherited"])])
def test_a_student_that_inherits_nothing_is_trained_once(inherited: tuple[str, ...], names: list[str]) -> None:
    plan: Any = SimpleNamespace(inherited=inherited, policies={})
    assert [entry.name for entry in contenders(plan, [])] == names
