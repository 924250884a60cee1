"""Spreads, paired differences and agreement: worked by hand, held against tables, and counted in simulations."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from detkds.statistics import (
    Residual,
    differences_to_many,
    dunnett_quantile,
    kendall_tau,
    mean_and_spread,
    mean_of,
    paired_bootstrap,
    paired_difference,
    pooled_residual,
    smallest_gain,
)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def simulate(
    rng: np.random.Generator, means: Mapping[str, float], seeds: int, spread: float = 0.75, seed_spread: float = 1.0
) -> dict[str, dict[int, float]]:
    """Rows that share the effect of a seed and have noise of their own."""
    shared = rng.normal(0, seed_spread, seeds)
    return {name: by_seed(*(mean + shared + rng.normal(0, spread, seeds))) for name, mean in means.items()}


TABLE = {"a": by_seed(10, 12, 14), "b": by_seed(11, 14, 14), "c": by_seed(12, 11, 16)}
"""Row means 12 13 13, seed means 11 12 1/3 14 2/3."""

LIKE = dict.fromkeys("abcdefgh", 40.0)
"""Eight rows of one mean."""


def test_mean_and_spread_of_few_values() -> None:
    assert mean_and_spread([2, 4]) == (3, math.sqrt(2))
    assert mean_and_spread([7]) == (7, 0)
    assert all(map(math.isnan, mean_and_spread([])))


def test_differences_are_paired_by_seed() -> None:
    """Common seeds 1 and 2: differences 1 and 3, mean 2, deviation sqrt(2), half-width 12.706."""
    difference = paired_difference({0: 99, 1: 5, 2: 8}, {1: 4, 2: 5, 3: 0})
    assert difference is not None
    assert (difference.mean, round(difference.low, 2), round(difference.high, 2)) == (2, -10.71, 14.71)
    assert (difference.n, difference.df, difference.spread) == (2, 1, pytest.approx(math.sqrt(2)))
    assert paired_difference({0: 1}, {1: 1}) is None


def test_one_seed_says_nothing_of_noise_but_the_pool_does() -> None:
    """With residual 1 and 20 degrees of freedom the half-width is 2.086 sqrt(2)."""
    alone = paired_difference({0: 3}, {0: 1})
    assert alone is not None
    assert (alone.mean, alone.low, alone.high, alone.df) == (2, -math.inf, math.inf, 0)
    assert math.isnan(alone.spread)
    pooled = paired_difference({0: 3}, {0: 1}, Residual(1.0, 20, ("a", "b", "c")))
    assert pooled is not None
    assert pooled.high - pooled.mean == pytest.approx(2.085963 * math.sqrt(2))
    assert (pooled.n, pooled.df) == (1, 20)


def test_the_residual_of_a_small_table() -> None:
    """Residuals are value - row mean - seed mean + grand mean, here thirds: -1 1 0, -1 4 -3, 2 -5 3.

    Their squares are (2 + 26 + 38) / 9, with 2 x 2 degrees of freedom.
    """
    residual = pooled_residual(TABLE)
    assert residual is not None
    assert residual.spread == pytest.approx(math.sqrt(66 / 9 / 4))
    assert (residual.df, residual.rows, residual.left_out) == (4, ("a", "b", "c"), ())


def test_rows_may_lack_seeds() -> None:
    """A row of one seed adds nothing; one of two adds one degree of freedom: 8 values, 3 rows, 3 seeds, 3 left."""
    rows = {**TABLE, "c": by_seed(12, 11)}
    residual = pooled_residual(rows)
    assert residual is not None
    assert residual.df == 3
    longer = pooled_residual({**rows, "d": {1: 12.0}, "e": {}})
    assert longer is not None
    assert (longer.df, longer.spread) == (3, pytest.approx(residual.spread))
    assert longer.rows == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "rows",
    [
        {},
        {"a": by_seed(10, 12), "b": by_seed(11, 12)},
        {"a": by_seed(10), "b": by_seed(11), "c": by_seed(12)},
        {"a": by_seed(10, 12), "b": by_seed(11, 12), "c": {}},
        {"a": by_seed(10, 12), "b": by_seed(11, 12), "c": by_seed(5, 6)},
    ],
)
def test_too_few_rows_or_seeds_are_no_pool(rows: dict[str, dict[int, float]]) -> None:
    assert pooled_residual(rows) is None


def test_a_row_far_below_the_best_stays_out_and_the_boundary_stays_in() -> None:
    """The best mean is 40, three quarters of it 30."""
    rows = {"a": by_seed(40, 40), "b": by_seed(39, 38.2), "c": by_seed(39, 39.6), "d": by_seed(30.5, 29.5)}
    residual = pooled_residual(rows)
    assert residual is not None
    assert residual.left_out == ()
    residual = pooled_residual({**rows, "d": by_seed(30.5, 29.499)})
    assert residual is not None
    assert (residual.rows, residual.left_out) == (("a", "b", "c"), ("d",))


def test_a_row_of_another_spread_stays_out() -> None:
    rng = np.random.default_rng(0)
    rows = simulate(rng, LIKE, 3)
    noisy = {**rows, "maskd": by_seed(31.0, 49.0, 40.0)}
    residual = pooled_residual(noisy)
    assert residual is not None
    assert residual.left_out == ("maskd",)
    assert residual == Residual(residual.spread, 14, tuple(rows), ("maskd",))
    assert residual.spread == pytest.approx(pooled_residual(rows).spread)  # pyright: ignore[reportOptionalMemberAccess]


def test_rows_without_any_noise_do_not_break_the_rule() -> None:
    still = {name: by_seed(40, 41, 42) for name in "abc"}
    residual = pooled_residual(still)
    assert residual is not None
    assert (residual.spread, residual.df) == (0.0, 4)
    odd = pooled_residual({**still, "d": by_seed(41, 40, 41)})
    assert odd is not None
    assert (odd.left_out, odd.spread) == (("d",), 0.0)


def test_like_rows_are_seldom_left_out() -> None:
    rng = np.random.default_rng(1)
    left_out = sum(bool(pooled_residual(simulate(rng, LIKE, 3)).left_out) for _ in range(300))  # pyright: ignore
    assert left_out <= 9  # expected 3


@pytest.mark.parametrize("pooled", [False, True])
def test_intervals_hold_the_true_difference_in_95_of_100(pooled: bool) -> None:
    rng = np.random.default_rng(2)
    count, held, width = 500, 0, 0.0
    for _ in range(count):
        rows = simulate(rng, {**LIKE, "a": 41.5}, 3)
        difference = paired_difference(rows["a"], rows["b"], pooled_residual(rows) if pooled else None)
        assert difference is not None
        held += difference.low <= 1.5 <= difference.high
        width += (difference.high - difference.low) / count
    assert 0.93 <= held / count <= 0.97  # two standard errors are 0.02
    assert bool(width < 3.0) is pooled


@pytest.mark.parametrize(
    ("count", "df", "table"),
    [(1, 20, 2.09), (2, 10, 2.57), (2, 20, 2.38), (3, 20, 2.54), (5, 20, 2.73), (9, 20, 2.95), (4, 60, 2.51)],
)
def test_dunnetts_quantile_is_that_of_his_table(count: int, df: int, table: float) -> None:
    assert dunnett_quantile(count, df) == pytest.approx(table, abs=0.006)


def test_dunnetts_quantile_is_scipys() -> None:
    """Two groups of six against a control of six: 15 degrees of freedom."""
    samples = [np.arange(6.0) for _ in range(3)]
    result = stats.dunnett(*samples[:2], control=samples[2], rng=np.random.default_rng(0))
    interval = result.confidence_interval(0.95)
    error = math.sqrt(np.var(samples[0], ddof=1) * 2 / 6)
    assert dunnett_quantile(2, 15) == pytest.approx(interval.high[0] / error, abs=0.01)


def test_a_smaller_correlation_asks_for_more() -> None:
    assert dunnett_quantile(5, 20, 0.1) > dunnett_quantile(5, 20, 0.5) > dunnett_quantile(5, 20, 0.9)
    independent = stats.norm.ppf((1 + 0.95 ** (1 / 5)) / 2)
    assert dunnett_quantile(5, 10**7, 0.0) == pytest.approx(independent, abs=1e-4)


def test_differences_to_many_are_dunnetts() -> None:
    residual = Residual(1.0, 20, ("a", "b", "c"))
    many = differences_to_many(by_seed(5, 6), {"b": by_seed(3, 5), "c": by_seed(1, 1), "d": {7: 1.0}}, residual)
    assert list(many) == ["b", "c"]
    assert [difference.mean for difference in many.values()] == [1.5, 4.5]
    assert [difference.high - difference.mean for difference in many.values()] == pytest.approx(
        [2.379, 2.379], abs=1e-3
    )
    assert (many["b"].n, many["b"].df) == (2, 20)
    assert differences_to_many(by_seed(5, 6), {}, residual) == {}
    [only] = differences_to_many(by_seed(5, 6), {"b": by_seed(3, 5)}, residual).values()
    alone = paired_difference(by_seed(5, 6), by_seed(3, 5), residual)
    assert alone is not None
    assert (only.low, only.high) == (pytest.approx(alone.low, abs=1e-4), pytest.approx(alone.high, abs=1e-4))


def test_seeds_that_differ_lower_the_correlation() -> None:
    """Five seeds and one of them: 1 / (2 sqrt(5)) instead of a half."""
    residual = Residual(1.0, 20, ("a", "b", "c"))
    first = by_seed(1, 2, 3, 4, 5)
    many = differences_to_many(first, {"b": by_seed(1, 2, 3, 4, 5), "c": {0: 1.0}}, residual)
    factor = dunnett_quantile(2, 20, 1 / (2 * math.sqrt(5)))
    assert many["c"].high == pytest.approx(factor * math.sqrt(2))
    assert many["b"].high == pytest.approx(factor * math.sqrt(2 / 5))


def test_dunnetts_intervals_hold_all_at_once() -> None:
    """The plain pooled intervals of the same differences do not."""
    rng = np.random.default_rng(3)
    together = alone = 0
    for _ in range(300):
        rows = simulate(rng, LIKE, 3)
        residual = pooled_residual(rows)
        assert residual is not None
        first = rows.pop("a")
        together += all(d.low <= 0 <= d.high for d in differences_to_many(first, rows, residual).values())
        each = [paired_difference(first, values, residual) for values in rows.values()]
        alone += all(d is not None and d.low <= 0 <= d.high for d in each)
    assert 277 <= together <= 293  # expected 285
    assert alone < 255


def test_the_smallest_gain_of_published_designs() -> None:
    """Residual 0.75 AP and 20 degrees of freedom: 1.8, 1.4 and 1.1 AP for 3, 5 and 8 seeds."""
    spread = 0.75 * math.sqrt(2)
    assert [round(smallest_gain(spread, n, 20), 1) for n in (3, 5, 8)] == [1.8, 1.4, 1.1]
    assert smallest_gain(spread, 3, 2) > 3
    assert smallest_gain(0.0, 3, 2) == 0
    assert smallest_gain(math.nan, 1, 0) == smallest_gain(1.0, 1, 0) == math.inf


@pytest.mark.parametrize(("df", "seeds"), [(1, 2), (2, 3), (20, 3)])
def test_the_smallest_gain_is_found_in_80_of_100(df: int, seeds: int) -> None:
    rng = np.random.default_rng(4)
    spread, count = 1.3, 40_000
    gain = smallest_gain(spread, seeds, df)
    means = rng.normal(gain, spread / math.sqrt(seeds), count)
    halves = stats.t.ppf(0.975, df) * spread * np.sqrt(rng.chisquare(df, count) / df) / math.sqrt(seeds)
    assert np.mean(np.abs(means) > halves) == pytest.approx(0.8, abs=0.006)


def test_the_bootstrap_resamples_images_in_pairs() -> None:
    """A difference that is the same on every image has no spread, however the images differ; an own one has."""
    rng = np.random.default_rng(5)
    scores = rng.normal(0, 5, 60)
    same = paired_bootstrap(mean_of(scores + 1), mean_of(scores), 60, resamples=200)
    assert (same.value, same.low, same.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    other = paired_bootstrap(mean_of(rng.permutation(scores) + 1), mean_of(scores), 60, resamples=200)
    assert other.low < 1 < other.high
    again = paired_bootstrap(mean_of(scores + 1), mean_of(np.zeros(60)), 60, resamples=200, seed=1)
    assert again == paired_bootstrap(mean_of(scores + 1), mean_of(np.zeros(60)), 60, resamples=200, seed=1)
    assert again != paired_bootstrap(mean_of(scores + 1), mean_of(np.zeros(60)), 60, resamples=200, seed=2)


def test_a_metric_that_is_no_mean_is_taken_of_each_resample() -> None:
    values = np.array([1.0, 2.0, 3.0, 10.0])
    interval = paired_bootstrap(lambda chosen: float(np.median(values[chosen])), lambda chosen: 0.0, 4, resamples=500)
    assert interval.value == 2.5
    assert interval.low in (1.0, 1.5) and interval.high == 10.0


def test_resamples_without_a_metric_are_left_out() -> None:
    """No image with objects, no AP."""
    objects = np.array([1.0, 1.0, 0.0, 0.0])

    def metric(chosen: np.ndarray) -> float:
        return 1.0 if objects[chosen].any() else math.nan

    interval = paired_bootstrap(metric, lambda chosen: 0.0, 4, resamples=200)
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)


def test_bootstrap_intervals_hold_the_true_difference() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for trial in range(200):
        images = rng.normal(0, 1, 60)
        first, second = images + rng.normal(0.5, 1, 60), images + rng.normal(0, 1, 60)
        interval = paired_bootstrap(mean_of(first), mean_of(second), 60, resamples=200, seed=trial)
        held += interval.low <= 0.5 <= interval.high
    assert 0.90 <= held / 200 <= 0.98


def test_kendalls_tau_counts_pairs() -> None:
    """Of the ten pairs of five things two are in another order: (8 - 2) / 10; ties as in scipy."""
    first, second = [1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 30.0, 20.0, 50.0, 40.0]
    found = kendall_tau(first, second, resamples=500)
    assert found.value == pytest.approx(0.6)
    assert -1 <= found.low < 0.6 < found.high <= 1
    assert kendall_tau(first, second, resamples=500) == found
    reverse = kendall_tau(first, second[::-1], resamples=500)
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low), abs=0.15)
    tied = [1.0, 1.0, 2.0, 2.0, 3.0]
    assert kendall_tau(tied, second, resamples=10).value == pytest.approx(4 / math.sqrt(8 * 10))


def test_more_things_are_a_narrower_interval() -> None:
    same = [float(i) for i in range(40)]
    swapped = [value + (3.5 if i % 4 == 0 else 0.0) for i, value in enumerate(same)]
    few, many = (kendall_tau(same[:n], swapped[:n], resamples=300) for n in (8, 40))
    assert many.high - many.low < few.high - few.low
    whole = kendall_tau(same, same, resamples=100)
    assert (whole.value, whole.low, whole.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))


def test_what_tells_nothing_apart_has_no_tau() -> None:
    for first, second in (([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])):
        assert all(math.isnan(value) for value in vars(kendall_tau(first, second)).values())


def test_intervals_of_tau_hold_the_true_one() -> None:
    """Two normal values of correlation r have tau 2 arcsin(r) / pi."""
    rng = np.random.default_rng(7)
    held, truth = 0, 2 * math.asin(0.7) / math.pi
    for trial in range(40):
        first = rng.normal(size=25)
        second = 0.7 * first + math.sqrt(1 - 0.49) * rng.normal(size=25)
        interval = kendall_tau(list(first), list(second), resamples=80, seed=trial)
        held += interval.low <= truth <= interval.high
    assert 33 <= held <= 40
