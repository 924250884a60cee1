"""What a comparison is said to show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from detkds.runs.verdict import (
    SEARCHED,
    Row,
    baseline,
    comparison_residual,
    edge_over,
    is_open,
    verdict,
    with_differences,
)
from detkds.statistics import differences_to_many, mean_and_spread, paired_difference


def row(name: str, kind: str, aps: Sequence[float]) -> Row:
    mean, spread = mean_and_spread(aps)
    return Row(name, kind, "", dict(enumerate(aps)), mean, spread)


def test_a_clear_gain_names_winner_gain_interval_and_seeds() -> None:
    """Differences 4, 5, 6: mean 5, deviation 1, half-width 4.303 / sqrt(3) = 2.48; 5.65 / sqrt(3) shows."""
    text = verdict([row("plain", "plain", [10, 11, 12]), row("searched", "searched", [14, 16, 18])])
    assert text == (
        "'searched' wins with 16.0 ± 2.0 AP: +5.0 over the plain student 'plain' "
        "(95% interval +2.5 to +7.5, 3 seeds, 2 df; a gain of 3.3 AP would have been found with 80% power)."
    )


def test_what_is_measured_is_named() -> None:
    rows = [row("plain", "plain", [10, 11, 12]), row("searched", "searched", [14, 16, 18])]
    text = verdict(rows, "mask AP")
    assert "'searched' wins with 16.0 ± 2.0 mask AP: +5.0" in text
    assert "a gain of 3.3 mask AP would have been found" in text


def test_a_gain_within_noise_is_said_to_be_one() -> None:
    """Differences -2, 3, 2: mean 1, deviation sqrt(7), half-width 6.57."""
    text = verdict([row("plain", "plain", [10, 10, 10]), row("pkd", "hand", [8, 13, 12])])
    assert "'pkd' has the best mean, 11.0 ± 2.6 AP, +1.0 over" in text
    assert "within noise: 95% interval -5.6 to +7.6, 3 seeds, 2 df" in text
    assert "wins" not in text


def test_no_gain_is_said_plainly() -> None:
    rows = [
        row("plain", "plain", [10, 10]),
        row("plain, inherited", "plain", [12, 12]),
        row("pkd", "hand", [11, 11]),
    ]
    assert verdict(rows).startswith("Distillation does not help here: no policy beats the plain student 'plain, inher")


def test_a_tie_is_no_gain_and_an_interval_from_zero_is_noise() -> None:
    tie = verdict([row("plain", "plain", [10, 12]), row("pkd", "hand", [11, 11])])
    assert tie.startswith("Distillation does not help here")
    base, same = row("plain", "plain", [1, 1]), row("searched", "searched", [2, 2])
    assert "'searched' wins" in verdict([base, same])
    assert "+0.0 against the best hand-designed one, 'pkd' (within noise" in verdict(
        [base, same, row("pkd", "hand", [2, 2])]
    )


def test_one_seed_is_no_evidence() -> None:
    text = verdict([row("plain", "plain", [10]), row("pkd", "hand", [20])])
    assert "+10.0" in text
    assert "one seed says nothing about noise" in text


COMPARABLE = [
    row("plain", "plain", [10, 12, 11]),
    row("cwd", "hand", [37, 38, 37.5]),
    row("pkd", "hand", [39, 39.5, 39.25]),
    row("gid", "hand", [38.5, 39, 39.5]),
    row("searched", "searched", [41, 41.5, 42]),
]
"""The plain student is far below the others and not pooled."""


def test_comparable_rows_share_their_residual() -> None:
    """Four rows of three seeds: 3 x 2 df. The best hand-designed of three was picked here: Dunnett's interval."""
    residual = comparison_residual(COMPARABLE)
    assert residual is not None
    assert (residual.rows, residual.df) == (("cwd", "pkd", "gid", "searched"), 6)
    *_, searched = COMPARABLE
    hand = {row.name: row.ap for row in COMPARABLE[1:4]}
    many = differences_to_many(searched.ap, hand, residual)["pkd"]
    text = verdict(COMPARABLE)
    assert "+30.5 over the plain student 'plain' (95% interval" in text and "3 seeds, 2 df;" in text
    assert text.endswith(
        f"The searched policy stands +2.2 against the best hand-designed one, 'pkd' (95% interval {many.low:+.1f} to "
        f"{many.high:+.1f}, 3 seeds, 6 df; a gain of {many.smallest_gain():.1f} AP would have been "
        "found with 80% power)."
    )


def test_an_opponent_that_validation_chose_has_the_narrower_interval() -> None:
    residual = comparison_residual(COMPARABLE)
    plain = paired_difference(COMPARABLE[4].ap, COMPARABLE[3].ap, residual)
    assert plain is not None
    text = verdict(COMPARABLE, opponent="gid")
    assert (
        f"stands +2.5 against the hand-designed one that validation chose, 'gid' (95% interval {plain.low:+.1f}" in text
    )
    assert "'pkd'" not in text
    assert "the best hand-designed one, 'pkd'" in verdict(COMPARABLE, opponent="not trained")


def test_a_winner_that_was_picked_has_dunnetts_interval() -> None:
    rows = [row("plain", "plain", [36, 36.5, 37.5]), *COMPARABLE[1:4]]
    residual = comparison_residual(rows)
    assert residual is not None and residual.covers("plain", "pkd")
    many = differences_to_many(rows[0].ap, {row.name: row.ap for row in rows[1:]}, residual)["pkd"]
    alone = paired_difference(rows[0].ap, rows[2].ap, residual)
    assert alone is not None and many.low < alone.low
    assert f"95% interval {-many.high:+.1f} to {-many.low:+.1f}, 3 seeds, 6 df" in verdict(rows)


def test_one_baseline_in_table_and_verdict() -> None:
    """The better plain student, here the one that inherits nothing; it alone has no difference to itself."""
    rows = [
        row("teacher", "teacher", [50]),
        row("plain", "plain", [32, 33]),
        row("plain, inherited", "plain", [30, 31.75]),
        row("pkd", "hand", [35, 37]),
        row("failed", "hand", []),
    ]
    base = baseline(rows)
    assert base is not None and base.name == "plain"
    teacher, plain, inherited, pkd, failed = with_differences(rows)
    assert teacher.to_plain is plain.to_plain is failed.to_plain is None
    assert inherited.to_plain is not None and pkd.to_plain is not None
    assert (inherited.to_plain.mean, pkd.to_plain.mean) == (-1.625, 3.5)
    assert (inherited.to_plain.df, pkd.to_plain.df) == (2, 2)  # pooled: 3 rows of 2 seeds
    assert "+3.5 over the plain student 'plain'" in verdict(rows)
    assert baseline([row("pkd", "hand", [1])]) is None
    assert with_differences([row("pkd", "hand", [1])])[0].to_plain is None


def test_the_searched_policy_is_held_against_the_best_hand_designed_one() -> None:
    """Without a pool the interval is that of the differences 2, 3, 4: +3 with half-width 2.48."""
    rows = [
        row("plain", "plain", [1, 1, 1]),
        row("pkd", "hand", [12, 12, 12]),
        row("searched", "searched", [14, 15, 16]),
    ]
    text = verdict(rows)
    assert "stands +3.0 against the best hand-designed one, 'pkd' (95% interval +0.5 to +5.5, 3 seeds, 2 df" in text
    worse = [rows[0], row("pkd", "hand", [13, 17, 12]), rows[2]]
    assert "'pkd' (within noise: 95% interval" in verdict(worse)


def test_a_student_that_failed_in_every_seed_does_not_win() -> None:
    rows = [row("plain", "plain", [1, 1]), row("pkd", "hand", []), row("cwd", "hand", [3, 3.5])]
    assert verdict(rows).startswith("'cwd' has the best mean")


@pytest.mark.parametrize("rows", [[], [row("plain", "plain", [1])], [row("plain", "plain", []), row("a", "hand", [1])]])
def test_without_two_sides_there_is_nothing_to_compare(rows: list[Row]) -> None:
    assert verdict(rows).startswith("Nothing to compare")


def test_a_row_is_json_also_with_one_seed() -> None:
    one = Row("pkd", "hand", "", {0: 1.0}, 1.0, 0.0, to_plain=paired_difference({0: 1.0}, {0: 0.5}))
    data = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert data["to_plain"] == {"mean": 0.5, "low": None, "high": None, "n": 1, "df": 0, "spread": None}


def test_a_second_look_is_asked_for_only_where_the_first_is_open() -> None:
    hand, plain = row("cwd", "hand", [30, 31, 30]), row("plain", "plain", [20, 21, 20])
    clear, open_ = row(SEARCHED, "searched", [40, 41, 40]), row(SEARCHED, "searched", [30, 32, 29])
    assert not is_open([plain, hand, clear], "cwd") and is_open([plain, hand, open_], "cwd")
    assert not is_open([plain, hand, open_], "pkd") and not is_open([plain, hand, open_], None)
    edge, single = edge_over(open_, hand, None), paired_difference(open_.ap, hand.ap)
    assert edge is not None and single is not None and edge.low < single.low and edge.mean == single.mean


def test_nothing_learned_and_nothing_to_teach_are_said() -> None:
    words = verdict([row("plain", "plain", [0.1, 0.2]), row("cwd", "hand", [0.3, 0.4])])
    assert "Nothing was learned" in words and "train.epochs" in words
    rows = [row("teacher", "teacher", [19.0]), row("plain", "plain", [20, 21]), row("cwd", "hand", [23, 24])]
    assert "The teacher, 19.0, is no better than the plain student, 20.5" in verdict(rows)
    assert "learned" not in verdict(rows)


def test_validation_and_test_stand_side_by_side_and_a_known_winner_is_named() -> None:
    rows = [row("plain", "plain", [20, 21]), row("cwd", "hand", [30, 31]), row(SEARCHED, "searched", [30, 31])]
    words = verdict([replace(r, policy="same") for r in rows], opponent="cwd", validation=33.25)
    assert "The search chose the hand-designed policy 'cwd' itself." in words
    assert "it had 33.2, here 30.5" in words
