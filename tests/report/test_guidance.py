"""What to do next, from what a run showed."""

from __future__ import annotations

from typing import Any

from detkds.report.guidance import guidance


def advice(summary: dict[str, Any]) -> str:
    return "\n".join(guidance(summary, "runs/birds"))


def test_a_good_run_is_only_told_how_to_use_it(summary: dict[str, Any]) -> None:
    assert advice(summary) == (
        "Use the chosen policy with other data or seeds: detkds distill runs/birds/config.yaml name=another "
        "--policy runs/birds/policy.yaml"
    )


def test_a_weak_teacher_comes_first(summary: dict[str, Any]) -> None:
    summary["rows"][0]["mean"] = 9.0
    assert advice(summary).startswith("The teacher (9.0 AP) is no better than the plain student (11.0)")


def test_noise_asks_for_seeds(summary: dict[str, Any]) -> None:
    summary["rows"][3]["to_plain"] = {"mean": 3.0, "low": -1.0, "high": 7.0}
    assert "within noise: add seeds" in advice(summary)
    summary["rows"][3]["to_plain"] = {"mean": 3.0, "low": None, "high": None}
    assert "within noise: add seeds" in advice(summary)


def test_two_seeds_are_few_even_where_the_gain_is_clear(summary: dict[str, Any]) -> None:
    summary["seeds"] = [0, 1]
    assert "2 seeds are few" in advice(summary)


def test_a_small_search_and_a_better_hand_designed_policy_are_said(summary: dict[str, Any]) -> None:
    summary["search"]["trainings"] = 4
    summary["rows"][2]["mean"] = 29.0
    text = advice(summary)
    assert "The search was small (4 candidate trainings)" in text
    assert "--policy pkd" in text
    summary["rows"][2]["mean"] = summary["rows"][3]["mean"] + 0.9
    assert "--policy pkd" not in advice(summary)


def test_a_run_whose_students_all_failed_still_gets_advice(summary: dict[str, Any]) -> None:
    for row in summary["rows"]:
        row.update(mean=None, ap={}, to_plain=None)
    assert "detkds distill" in advice(summary)


def test_advice_begins_exactly_at_its_limits(summary: dict[str, Any]) -> None:
    """Ten trainings for each kind of knowledge, three seeds, an interval from 0, a teacher like the student."""
    summary["search"]["trainings"] = 10
    summary["rows"][3]["to_plain"] = {"mean": 3.0, "low": 0.01, "high": 6.0}
    summary["rows"][0]["mean"] = 11.01
    summary["rows"][2]["mean"] = summary["rows"][3]["mean"] + 1.0
    summary["rows"][2]["to_plain"] = {"mean": 14.0, "low": 0.01, "high": 16.0}
    assert advice(summary).startswith("Use the chosen policy")
    summary["search"]["trainings"] = 9
    assert "The search was small (9" in advice(summary)
    summary["rows"][2]["to_plain"]["low"] = 0.0
    assert "within noise" in advice(summary)
    summary["rows"][0]["mean"] = 11.0
    assert "The teacher (11.0 AP) is no better than the plain student (11.0)" in advice(summary)
    summary["rows"][2]["mean"] += 0.01
    assert "--policy pkd" in advice(summary)
