"""Is one run better than another? Differences paired by query: an interval, two tests, a correction for many.

This module knows neither measures nor runs: it takes values by query id and returns numbers. All resampling starts
from one seed, so that the same values give the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite, nan, sqrt
from typing import TYPE_CHECKING, Any, TypeAlias

from rank_k.errors import InputError
from rank_k.optional_deps import load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = "NDArray[np.float64]"

CONFIDENCE_LEVEL = 0.95
SIGNIFICANCE_LEVEL = 0.05
"""Reports call a difference significant up to this corrected p value; the usual convention, not more."""

RESAMPLES = 10_000
SEED = 0

NO_DIFFERENCE = 1e-9
"""A smaller difference comes from rounding, such as a sum taken in another order, and counts as none."""

_BATCH_VALUES = 1 << 20
"""Numbers drawn at a time, so that memory does not grow with resamples times queries."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The differences `ours - baseline` over queries.

    `mean`: of the differences. `standard_error`: of the mean (NaN for a single query). `low`, `high`: the bootstrap
    interval of the mean. `t_p`, `randomization_p`: two-sided p values, not corrected. `better`, `equal`, `worse`: how
    many queries gained, stayed, lost.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    t_p: float
    randomization_p: float
    better: int
    equal: int
    worse: int

    @property
    def queries(self) -> int:
        return self.better + self.equal + self.worse


def bootstrap_interval(
    values: ArrayLike, statistic: Callable[[Floats], Floats] = lambda draws: draws.mean(axis=1)
) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of a statistic over queries (Efron and Tibshirani 1993, ch. 13).

    Queries are drawn with replacement 10,000 times; the interval holds the middle 95% of the statistic's values.
    Draws for which the statistic is NaN are left out. Percentiles rather than BCa: they never lie outside the values,
    exist where all values are equal or there is but one, and for a mean the correction of BCa is of the order of 1/n,
    below what is printed.

    Args:
        values: One number, or one array, per query; at least one query.
        statistic: Maps draws, of shape (draws, queries, ...), to one number per draw (default: the mean).

    Raises:
        InputError: There are no values.
        MissingExtra: numpy is not installed.
    """
    np = load("numpy")
    array = np.asarray(values, dtype=float)
    count = len(array)
    if not count:
        raise InputError("there are no queries to take an interval over", "check the judgments")
    generator = np.random.default_rng(SEED)
    batch = max(_BATCH_VALUES // array.size, 1)
    resampled = [
        statistic(array[generator.integers(0, count, (min(batch, RESAMPLES - start), count))])
        for start in range(0, RESAMPLES, batch)
    ]
    low, high = np.nanquantile(np.concatenate(resampled), ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2))
    return float(low), float(high)


def paired_difference(ours: Mapping[str, float], baseline: Mapping[str, float]) -> PairedDifference:
    """Compare `ours` with `baseline`, both `query_id -> value` over the same queries, in any order.

    The t test is Student's for the mean difference being zero. The randomization test (Fisher's; Smucker, Allan
    and Carterette, CIKM 2007) asks how often a mean difference as large arises if a coin decides the sign of each
    query's difference: over all combinations of signs where there are no more than 10,000, else over 10,000 drawn
    ones and the observed one, so that p is never 0 (Phipson and Smyth 2010).

    Raises:
        InputError: The queries are not the same, there are none, or a value is not a finite number.
        MissingExtra: numpy or scipy is not installed.
    """
    if unmatched_ids := ours.keys() ^ baseline.keys():
        raise InputError(
            f"{len(unmatched_ids)} queries have a value on one side only, for one {min(unmatched_ids)}",
            "evaluate both runs by the same judgments",
        )
    differences = [ours[query_id] - baseline[query_id] for query_id in sorted(ours)]
    if not all(map(isfinite, differences)):
        raise InputError("a value that is to be compared is not a finite number", "leave its query or measure out")
    differences = [0.0 if abs(value) < NO_DIFFERENCE else value for value in differences]
    low, high = bootstrap_interval(differences)
    np = load("numpy")
    count = len(differences)
    mean = float(np.mean(differences))
    standard_error = float(np.std(differences, ddof=1)) / sqrt(count) if count > 1 else nan
    better = sum(value > 0 for value in differences)
    worse = sum(value < 0 for value in differences)
    return PairedDifference(
        mean=mean,
        standard_error=standard_error,
        low=low,
        high=high,
        t_p=_t_test(mean, standard_error, count),
        randomization_p=_randomization_test([value for value in differences if value]),
        better=better,
        equal=count - better - worse,
        worse=worse,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values, in the order given, corrected for their number by Holm's step-down method (1979).

    Calling significant what is at most `a` after the correction errs anywhere with probability `a` at most, however
    the tests depend on each other. The smallest of m p values is multiplied by m, the next by m - 1, and so on; none
    falls below the one before it.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    scaled = (min(1.0, (len(order) - position) * p_values[index]) for position, index in enumerate(order))
    corrected = dict(zip(order, accumulate(scaled, max), strict=True))
    return [corrected[index] for index in range(len(order))]


def _t_test(mean: float, error: float, count: int) -> float:
    """Return the two-sided p value: 1 for a single query, which proves nothing, and where all differences are zero."""
    if count == 1 or mean == 0:
        return 1.0
    if error == 0:
        return 0.0
    return float(2 * load("scipy.special").stdtr(count - 1, -abs(mean) / error))


def _randomization_test(differences: Sequence[float]) -> float:
    """Return the p value of the differences that are not zero: the sign of zero changes nothing."""
    if len(differences) < 2:
        return 1.0
    np, stats = load("numpy"), load("scipy.stats")
    array = np.array(differences)
    generator = np.random.default_rng(SEED)

    def total(values: Floats, axis: int) -> Any:
        return np.abs(values.sum(axis=axis)).round(9)  # sums of the same numbers differ in their last bits

    if 2 ** len(array) <= RESAMPLES:
        test = stats.permutation_test(
            (array,), total, permutation_type="samples", n_resamples=RESAMPLES, alternative="greater", vectorized=True
        )
    else:
        test = stats.monte_carlo_test(
            array,
            lambda size: generator.choice((-1.0, 1.0), size) * array,
            total,
            n_resamples=RESAMPLES,
            batch=max(_BATCH_VALUES // len(array), 1),
            alternative="greater",
            vectorized=True,
        )
    return float(test.pvalue)
