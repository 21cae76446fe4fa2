"""Statistics of differences between runs, paired by query: intervals, two tests, and a correction for many tests.

All functions take values by query id. Resampling starts from a fixed seed, so the same values give the same results on
every machine.
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
"""Reports call a difference significant if its corrected p value is at most this conventional level."""

RESAMPLES = 10_000
SEED = 0

NO_DIFFERENCE = 1e-9
"""Smaller differences count as 0, because they come from rounding, for example from sums in a different order."""

_BATCH_VALUES = 1 << 20
"""The size of a batch of random numbers, which bounds memory."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Statistics of the differences `ours - baseline` over queries.

    Attributes:
        mean: The mean difference.
        standard_error: The standard error of the mean; NaN for a single query.
        low: The lower end of the 95% bootstrap interval of the mean.
        high: The upper end of this interval.
        t_p: The two-sided p value of the t test, not corrected.
        randomization_p: The two-sided p value of the randomization test, not corrected.
        better: The number of queries with a gain.
        equal: The number of queries without a difference.
        worse: The number of queries with a loss.
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

    Queries are drawn with replacement 10,000 times, and the interval contains the middle 95% of the resulting values.
    Draws for which the statistic is NaN are ignored. Unlike BCa intervals, percentile intervals never exceed the range
    of the values and also exist if all values are equal. For a mean, the correction of BCa is of order 1/n, which is
    less than the printed precision.

    Args:
        values: One number or one array per query, for at least one query.
        statistic: Maps draws, of shape (draws, queries, ...), to one number per draw (default: the mean).

    Raises:
        InputError: If there are no values.
        MissingExtra: If numpy is not installed.
    """
    np = load("numpy")
    array = np.asarray(values, dtype=float)
    count = len(array)
    if not count:
        raise InputError("there are no queries to compute an interval from", "check the judgments")
    generator = np.random.default_rng(SEED)
    batch = max(_BATCH_VALUES // array.size, 1)
    resampled = [
        statistic(array[generator.integers(0, count, (min(batch, RESAMPLES - start), count))])
        for start in range(0, RESAMPLES, batch)
    ]
    low, high = np.nanquantile(np.concatenate(resampled), ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2))
    return float(low), float(high)


def paired_difference(ours: Mapping[str, float], baseline: Mapping[str, float]) -> PairedDifference:
    """Compare the values of two runs query by query.

    The t test is Student's paired test. The randomization test (Fisher's; Smucker, Allan and Carterette, CIKM 2007)
    computes how often a mean difference at least as large occurs if the sign of each query's difference is random. It
    uses all combinations of signs if there are at most 10,000, and otherwise 10,000 random combinations and the
    observed one, so that p is never 0 (Phipson and Smyth 2010).

    Args:
        ours: The values of one run: query id -> value.
        baseline: The values of the baseline for the same queries, in any order.

    Raises:
        InputError: If the queries differ, there are none, or a value is not a finite number.
        MissingExtra: If numpy or scipy is not installed.
    """
    if unmatched_ids := ours.keys() ^ baseline.keys():
        raise InputError(
            f"{len(unmatched_ids)} queries have a value in one run only, for example {min(unmatched_ids)}",
            "evaluate both runs with the same judgments",
        )
    differences = [ours[query_id] - baseline[query_id] for query_id in sorted(ours)]
    if not all(map(isfinite, differences)):
        raise InputError("a value is not a finite number", "leave out its query or its measure")
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
    """Return the p values, in the order given, corrected for multiple tests by the step-down method of Holm (1979).

    If corrected p values of at most `a` are called significant, the probability of any false positive is at most `a`,
    also if the tests depend on each other. The smallest of m p values is multiplied by m, the next by m - 1, and so on.
    No corrected value is smaller than the corrected value before it.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    scaled = (min(1.0, (len(order) - position) * p_values[index]) for position, index in enumerate(order))
    corrected = dict(zip(order, accumulate(scaled, max), strict=True))
    return [corrected[index] for index in range(len(order))]


def _t_test(mean: float, error: float, count: int) -> float:
    """Return the two-sided p value. It is 1 for a single query, and if all differences are zero."""
    if count == 1 or mean == 0:
        return 1.0
    if error == 0:
        return 0.0
    return float(2 * load("scipy.special").stdtr(count - 1, -abs(mean) / error))


def _randomization_test(differences: Sequence[float]) -> float:
    """Return the p value, given the differences that are not zero. Zeros do not affect it."""
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
