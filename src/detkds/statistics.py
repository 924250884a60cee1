"""What few and noisy measurements show: spreads, paired differences over seeds, and agreement of two orders.

Pure numbers; nothing here knows of runs. Values are those of one row (a policy) by seed. Rows of one seed share initial
weights, batches and augmentation, so that they are compared in pairs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
LEAST_ROWS = 3
"""Rows without which residuals are not pooled."""

POOLED_SHARE = 0.75
"""Rows whose mean is a smaller share of the best mean are not pooled: students that learn badly are noisier."""

OUTLIER_LEVEL = 0.01
"""Chance that :func:`pooled_residual` leaves out a row for its spread although all have the same."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, with its interval (infinite where one seed says nothing about noise).

    Attributes:
        mean, low, high: the difference and the limits of its confidence interval.
        n: common seeds.
        df: degrees of freedom of the interval; 0 where it is infinite.
        spread: standard deviation of a single difference; nan where it is unknown.
    """

    mean: float
    low: float
    high: float
    n: int
    df: int
    spread: float

    def __neg__(self) -> Difference:
        """The same the other way round."""
        return replace(self, mean=0.0 - self.mean, low=0.0 - self.high, high=0.0 - self.low)  # never -0.0

    def smallest_gain(self, power: float = 0.8) -> float:
        """The smallest true difference that an interval of this width tells from 0 with this probability."""
        if not self.df or not self.spread:
            return smallest_gain(self.spread, self.n, self.df, power)
        critical = (self.high - self.low) / 2 / (self.spread / math.sqrt(self.n))
        return smallest_gain(self.spread, self.n, self.df, power, critical)


@dataclass(frozen=True)
class Interval:
    """An estimate with the limits of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Residual:
    """What a training differs by beyond its row's and its seed's mean.

    Attributes:
        spread: standard deviation of a single training.
        df: degrees of freedom.
        rows: names of the rows it was taken from.
        left_out: names of the rows that are not comparable with them.
    """

    spread: float
    df: int
    rows: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def covers(self, *names: str) -> bool:
        """Whether it holds for all these rows."""
        return set(names) <= set(self.rows)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Arithmetic mean and sample standard deviation (0 for a single value, nan for none)."""
    if not values:
        return math.nan, math.nan
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired_difference(
    first: Mapping[int, float],
    second: Mapping[int, float],
    residual: Residual | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> Difference | None:
    """The mean of ``first - second`` over the seeds both have, with its Student-t interval.

    Args:
        residual: gives the interval its spread and degrees of freedom; without it the differences' own are taken.
        confidence: of the interval.

    Returns:
        None where they share no seed.

    >>> difference = paired_difference({0: 3.0, 1: 5.0}, {0: 2.0, 1: 2.0})
    >>> difference.mean, round(difference.low, 2)
    (2.0, -10.71)
    >>> pooled = paired_difference({0: 3.0, 1: 5.0}, {0: 2.0, 1: 2.0}, Residual(1.0, 20, ("a", "b", "c")))
    >>> pooled.mean, round(pooled.low, 2)
    (2.0, -0.09)
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None
    mean, spread = mean_and_spread(differences)
    n = len(differences)
    if residual is not None:
        factor = float(stats.t.ppf((1 + confidence) / 2, residual.df))
        return _difference(mean, n, residual.df, math.sqrt(2) * residual.spread, factor)
    if n == 1:
        return Difference(mean, -math.inf, math.inf, n, 0, math.nan)
    return _difference(mean, n, n - 1, spread, float(stats.t.ppf((1 + confidence) / 2, n - 1)))


def pooled_residual(rows: Mapping[str, Mapping[int, float]]) -> Residual | None:
    """The residual of the additive model ``value = row + seed + noise``, pooled over the rows of one comparison.

    Rows may lack seeds. Which rows are comparable is a rule that is fixed here, before any result: first, their mean is
    at least ``POOLED_SHARE`` of the best (means tell nothing of residuals, so that intervals stay right). Then each row
    is tested by F, its own mean square against that of all others; while the smallest two-sided p-value lies below
    ``OUTLIER_LEVEL`` divided by the number of rows, that row is left out and the rest is tested again.

    Returns:
        None where fewer than ``LEAST_ROWS`` rows, or no degrees of freedom, are left.
    """
    means = {name: mean_and_spread(list(values.values()))[0] for name, values in rows.items() if values}
    least = POOLED_SHARE * max(means.values(), default=0.0)
    kept = {name: dict(rows[name]) for name, mean in means.items() if mean >= least}
    left_out = [name for name in means if name not in kept]
    while len(kept) >= LEAST_ROWS:
        squares, df = _residual_squares(kept)
        if not df:
            return None
        p_values = {name: _spread_p_value(kept, name, squares, df) for name in kept}
        suspect = min(p_values, key=lambda name: p_values[name])
        if p_values[suspect] >= OUTLIER_LEVEL / len(kept):
            return Residual(math.sqrt(squares / df), df, tuple(kept), tuple(left_out))
        left_out.append(suspect)
        del kept[suspect]
    return None


def _residual_squares(rows: Mapping[str, Mapping[int, float]]) -> tuple[float, int]:
    """Sum of squared residuals of the additive model by least squares, and its degrees of freedom."""
    names, seeds = list(rows), sorted({seed for values in rows.values() for seed in values})
    cells = [(names.index(name), seeds.index(seed)) for name, values in rows.items() for seed in values]
    observed = np.array([value for values in rows.values() for value in values.values()])
    design = np.zeros((len(cells), len(names) + len(seeds)))
    for index, (row, seed) in enumerate(cells):
        design[index, [row, len(names) + seed]] = 1.0
    solution, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)
    squares = float(((observed - design @ solution) ** 2).sum())
    rounding = len(cells) * (1e-9 * np.abs(observed).max()) ** 2
    return (squares if squares > rounding else 0.0), len(cells) - int(rank)


def _spread_p_value(rows: Mapping[str, Mapping[int, float]], name: str, squares: float, df: int) -> float:
    """Two-sided p-value of the hypothesis that the row's noise is that of the others; 1 where it cannot be tested."""
    others, others_df = _residual_squares({other: values for other, values in rows.items() if other != name})
    own, own_df = max(0.0, squares - others), df - others_df
    if not own_df or not others_df or own == others == 0.0:
        return 1.0
    if not others:
        return 0.0
    ratio = (own / own_df) / (others / others_df)
    return 2 * float(min(stats.f.sf(ratio, own_df, others_df), stats.f.cdf(ratio, own_df, others_df)))


def differences_to_many(
    first: Mapping[int, float], others: Mapping[str, Mapping[int, float]], residual: Residual
) -> dict[str, Difference]:
    """Differences of one row to each of several, with Dunnett's 95% intervals: all hold at once.

    So the interval to the best of them, chosen for being the best here, is right too. Others that share no seed with
    the first are left out. An opponent that was chosen by other measurements (on validation images, say) needs no such
    care; :func:`paired_difference` has the narrower interval.
    """
    found = {name: paired_difference(first, values, residual) for name, values in others.items()}
    seeds = {name: first.keys() & others[name].keys() for name, difference in found.items() if difference}
    correlation = min(
        (
            len(seeds[seed] & seeds[other]) / (2 * math.sqrt(len(seeds[seed]) * len(seeds[other])))
            for seed in seeds
            for other in seeds
            if seed != other
        ),
        default=0.5,
    )
    if not seeds:
        return {}
    factor = dunnett_quantile(len(seeds), residual.df, correlation)
    spread = math.sqrt(2) * residual.spread
    return {
        name: _difference(difference.mean, difference.n, residual.df, spread, factor)
        for name, difference in found.items()
        if difference
    }


@lru_cache(maxsize=256)
def dunnett_quantile(count: int, df: int, correlation: float = 0.5) -> float:
    """The two-sided 95% quantile of Dunnett's test: of the largest of ``count`` correlated |t| values.

    Args:
        correlation: of any two comparisons, from 0 to below 1: 0.5 where all have the same seeds. With unequal ones the
            smallest is on the safe side.

    Source: Dunnett, *A multiple comparison procedure for comparing several treatments with a control*, JASA 1955. The
    multivariate t integral with one common factor is taken by Gaussian quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    scales, scale_weights = _scales(df)
    common, own = math.sqrt(correlation) * nodes, math.sqrt(1 - correlation)

    def coverage(quantile: float) -> float:
        width = quantile * scales[:, None]
        inside = stats.norm.cdf((common + width) / own) - stats.norm.cdf((common - width) / own)
        return float(scale_weights @ (inside**count @ weights))

    upper = float(stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * count), df)) + 1.0  # Bonferroni's is larger
    return float(optimize.root_scalar(lambda q: coverage(q) - CONFIDENCE, bracket=(0.0, upper)).root)


def smallest_gain(spread: float, n: int, df: int, power: float = 0.8, critical: float | None = None) -> float:
    """The smallest true difference whose 95% interval excludes 0 with this probability; infinite without a spread.

    Args:
        spread: standard deviation of a single difference (``Difference.spread``).
        n: seeds.
        df: degrees of freedom of the interval.
        critical: standard errors in half the interval; Student's t by default.

    >>> round(smallest_gain(0.75 * 2**0.5, n=3, df=20), 1)
    1.8
    """
    if df < 1 or not math.isfinite(spread):
        return math.inf
    bound = float(stats.t.ppf((1 + CONFIDENCE) / 2, df)) if critical is None else critical
    scales, weights = _scales(df)  # scipy's noncentral t has no values for few degrees of freedom and large shifts

    def surplus(shift: float) -> float:
        found = stats.norm.cdf(shift - bound * scales) + stats.norm.cdf(-shift - bound * scales)
        return float(weights @ found) - power

    upper = 1.0
    while surplus(upper) < 0:
        upper *= 2
    return float(optimize.root_scalar(surplus, bracket=(0.0, upper)).root) * spread / math.sqrt(n)


def _scales(df: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights for means over an estimated standard deviation of true value 1, by Gaussian quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(256)
    return np.sqrt(stats.chi2.ppf((nodes + 1) / 2, df) / df), weights / 2


def paired_bootstrap(
    first: Callable[[NDArray[np.int64]], float],
    second: Callable[[NDArray[np.int64]], float],
    images: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The difference ``first - second`` of a metric of a set of images, with its 95% percentile interval over images.

    Both are measured on the same resamples of the images: that part of the noise which more seeds do not show.

    Args:
        first, second: from image indices, with repetitions, to the metric of these images; see :func:`mean_of`.
        images: their number.
    """

    def difference(chosen: NDArray[np.int64]) -> float:
        return first(chosen) - second(chosen)

    return _bootstrap((np.arange(images),), difference, resamples, seed)


def mean_of(values: ArrayLike) -> Callable[[NDArray[np.int64]], float]:
    """The metric that is the mean of a value per image, for :func:`paired_bootstrap`."""
    array = np.asarray(values, dtype=float)
    return lambda chosen: float(array[chosen].mean())


def kendall_tau(first: Sequence[float], second: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Kendall's tau-b of two measurements of the same things, with its 95% percentile interval over the things.

    All are nan where one of the measurements tells nothing apart.
    """

    def tau(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.asarray(stats.kendalltau(a, b))[0])

    if min(len(set(first)), len(set(second))) < 2:
        return Interval(math.nan, math.nan, math.nan)
    return _bootstrap((np.asarray(first, float), np.asarray(second, float)), tau, resamples, seed)


def _bootstrap(data: tuple[NDArray, ...], statistic: Callable[..., float], resamples: int, seed: int) -> Interval:
    """The statistic and its percentile interval; resamples in which it is not defined are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # its interval is not used
        result = stats.bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=resamples,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = np.nanquantile(result.bootstrap_distribution, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(*data)), float(low), float(high))


def _difference(mean: float, n: int, df: int, spread: float, factor: float) -> Difference:
    """With the interval of this many standard errors."""
    half = factor * spread / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n, df, spread)
