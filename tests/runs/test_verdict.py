"""What a comparison is said to show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest

from detkds.runs.verdict import Row, mean_and_spread, paired_difference, verdict


def row(name: str, kind: str, aps: Sequence[float]) -> Row:
    mean, spread = mean_and_spread(aps)
    return Row(name, kind, "", dict(enumerate(aps)), mean, spread)


def test_a_clear_gain_names_winner_gain_interval_and_seeds() -> None:
    """Differences 4, 5, 6: mean 5, deviation 1, half-width 4.303 / sqrt(3) = 2.48."""
    text = verdict([row("plain", "plain", [10, 11, 12]), row("searched", "searched", [14, 16, 18])])
    assert "'searched' wins with 16.0 ± 2.0 AP: +5.0 over the plain student 'plain'" in text
    assert "95% interval +2.5 to +7.5, 3 seeds" in text


def test_what_is_measured_is_named() -> None:
    rows = [row("plain", "plain", [10, 11, 12]), row("searched", "searched", [14, 16, 18])]
    assert "'searched' wins with 16.0 ± 2.0 mask AP: +5.0" in verdict(rows, "mask AP")


def test_a_gain_within_noise_is_said_to_be_one() -> None:
    """Differences -2, 3, 2: mean 1, deviation sqrt(7), half-width 6.57."""
    text = verdict([row("plain", "plain", [10, 10, 10]), row("pkd", "hand", [8, 13, 12])])
    assert "'pkd' has the best mean, 11.0 ± 2.6 AP, +1.0 over" in text
    assert "within noise: 95% interval -5.6 to +7.6 over 3 seeds" in text
    assert "wins" not in text


def test_no_gain_is_said_plainly() -> None:
    rows = [
        row("plain", "plain", [10, 10]),
        row("plain, inherited", "plain", [12, 12]),
        row("pkd", "hand", [11, 11]),
    ]
    assert verdict(rows).startswith("Distillation does not help here: no policy beats the plain student 'plain, inher")


def test_one_seed_is_no_evidence() -> None:
    text = verdict([row("plain", "plain", [10]), row("pkd", "hand", [20])])
    assert "+10.0" in text
    assert "one seed says nothing about noise" in text


def test_the_searched_policy_is_held_against_the_best_hand_designed_one() -> None:
    """Searched minus pkd: 2, 3, 4, so +3 with half-width 2.48; cwd is worse and not named."""
    rows = [
        row("plain", "plain", [10, 10, 10]),
        row("cwd", "hand", [5, 5, 5]),
        row("pkd", "hand", [12, 12, 12]),
        row("searched", "searched", [14, 15, 16]),
    ]
    text = verdict(rows)
    assert "stands +3.0 against the best hand-designed one, 'pkd' (95% interval +0.5 to +5.5)" in text
    assert "cwd" not in text


def test_a_student_that_failed_in_every_seed_does_not_win() -> None:
    rows = [row("plain", "plain", [1, 1]), row("pkd", "hand", []), row("cwd", "hand", [3, 3.5])]
    assert verdict(rows).startswith("'cwd' has the best mean")


@pytest.mark.parametrize("rows", [[], [row("plain", "plain", [1])], [row("plain", "plain", []), row("a", "hand", [1])]])
def test_without_two_sides_there_is_nothing_to_compare(rows: list[Row]) -> None:
    assert verdict(rows).startswith("Nothing to compare")


def test_differences_are_paired_by_seed() -> None:
    """Common seeds 1 and 2: differences 1 and 3, mean 2, deviation sqrt(2), half-width 12.706."""
    difference = paired_difference({0: 99, 1: 5, 2: 8}, {1: 4, 2: 5, 3: 0})
    assert difference is not None
    assert (difference.mean, round(difference.low, 2), round(difference.high, 2)) == (2, -10.71, 14.71)
    assert paired_difference({0: 1}, {1: 1}) is None


def test_mean_and_spread_of_few_values() -> None:
    assert mean_and_spread([2, 4]) == (3, math.sqrt(2))
    assert mean_and_spread([7]) == (7, 0)
    assert all(map(math.isnan, mean_and_spread([])))


def test_a_row_is_json_also_with_one_seed() -> None:
    one = Row("pkd", "hand", "", {0: 1.0}, 1.0, 0.0, to_plain=paired_difference({0: 1.0}, {0: 0.5}))
    data = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert data["to_plain"] == {"mean": 0.5, "low": None, "high": None}
