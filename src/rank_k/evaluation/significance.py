"""Is one run better than another? Differences paired by query: an interval, two tests, a correction for many.

Nothing here knows measures or runs: values go in by query id, numbers come out. Whoever resamples does so from a
seed, so that the same values give the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from typing import TYPE_CHECKING, TypeAlias

from rank_k.errors import InputError
from rank_k.optional_deps import load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

CONFIDENCE_LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0

NO_DIFFERENCE = 1e-9
"""What is smaller comes from rounding: a sum taken in another order. It counts as no difference at all."""

_BLOCK_SIZE = 1 << 20
"""Numbers drawn at a time, so that memory does not grow with resamples times queries."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """What `ours - baseline` came to over queries.

    `mean`: of the differences. `error`: its standard error over queries (NaN for a single one). `low`, `high`:
    the bootstrap interval of the mean. `t_p`, `randomization_p`: two-sided p values, not corrected.
    `better`, `equal`, `worse`: how many queries gained, stayed, lost.
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
    values: Sequence[float], *, level: float = CONFIDENCE_LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The bootstrap interval of the mean of `values`, which are one per query: queries are drawn with replacement
    `resamples` times, and the middle `level` of the means is what comes back (Efron and Tibshirani 1993, ch. 13).

    Percentiles rather than BCa: they never lie outside the values, exist where all values are equal or there is
    but one, and for a mean the correction of BCa is of the order of 1/n, below what is printed.

    Raises `InputError` if there are no values or a number makes no sense, `MissingExtra` without numpy.
    """
    _check_arguments(level, resamples)
    if not values:
        raise InputError("there are no queries to take an interval over", "check the judgments")
    np = load("numpy")
    means = resampled_means(np.asarray(values, dtype=float), resamples, seed)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def resampled_means(values: Floats, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """The means of `resamples` draws, with replacement, of as many rows as `values` has: of shape (queries, ...) comes
    (resamples, ...). At least one row. Raises `MissingExtra` without numpy."""
    np = load("numpy")
    generator = np.random.default_rng(seed)
    count = len(values)
    means: Floats = np.concatenate(
        [
            values[generator.integers(0, count, (rows, count))].mean(axis=1)
            for rows in _block_sizes(resamples, values.size)
        ]
    )
    return means


def paired_difference(
    ours: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    level: float = CONFIDENCE_LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> PairedDifference:
    """`ours` against `baseline`, both `query_id -> value` over the same queries, whatever the order.

    The t test is Student's for the mean difference being zero. The randomization test (Fisher's; Smucker, Allan
    and Carterette, CIKM 2007) asks how often a difference as large comes about if the sign of each query's is
    thrown by a coin: all combinations where there are no more than `resamples`, else as many drawn, the observed
    one among them, so that p is never 0 (Phipson and Smyth 2010).

    Raises `InputError` if the queries are not the same or a value is no number, `MissingExtra` without numpy and scipy.
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
    low, high = bootstrap_interval(differences, level=level, resamples=resamples, seed=seed)
    mean, error = _mean_and_error(differences)
    better = sum(value > 0 for value in differences)
    worse = sum(value < 0 for value in differences)
    return PairedDifference(
        mean=mean,
        standard_error=error,
        low=low,
        high=high,
        t_p=_t_test(mean, error, len(differences)),
        randomization_p=_randomization_test(differences, resamples, seed),
        better=better,
        equal=len(differences) - better - worse,
        worse=worse,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for there being several, in the order given (Holm 1979, step-down): calling
    significant what is at most `a` errs in any of them with probability `a` at most, however they depend on each
    other. The smallest counts as many times as there are values, the next one time less; none falls below one
    that was smaller before."""
    corrected = [0.0] * len(p_values)
    largest_so_far = 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest_so_far = max(largest_so_far, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = largest_so_far
    return corrected


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    np = load("numpy")
    if len(values) == 1:
        return values[0], nan
    return float(np.mean(values)), float(np.std(values, ddof=1)) / sqrt(len(values))


def _t_test(mean: float, error: float, count: int) -> float:
    """The two-sided p value; a single query says nothing, and neither do differences that are all zero."""
    if count == 1 or mean == 0:
        return 1.0
    if error == 0:
        return 0.0
    return float(2 * load("scipy.special").stdtr(count - 1, -abs(mean) / error))


def _randomization_test(differences: Sequence[float], resamples: int, seed: int) -> float:
    np = load("numpy")
    nonzero = np.array([value for value in differences if value])  # the sign of zero changes nothing
    observed = abs(nonzero.sum()) - NO_DIFFERENCE  # sums taken in another order differ in their last bits
    if len(nonzero) < 63 and 2 ** len(nonzero) <= resamples:
        signs = (np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero))) & 1
        return float(np.mean(np.abs(_signed_sums(nonzero, signs)) >= observed))
    generator = np.random.default_rng(seed)
    extreme_count = sum(
        int(np.sum(np.abs(_signed_sums(nonzero, generator.integers(0, 2, (rows, len(nonzero))))) >= observed))
        for rows in _block_sizes(resamples, len(nonzero))
    )
    return (extreme_count + 1) / (resamples + 1)


def _signed_sums(differences: Floats, signs: Floats) -> Floats:
    """One sum per row of `signs`, which says by 1 which values change their sign."""
    sums: Floats = load("numpy").where(signs, -differences, differences).sum(axis=1)
    return sums


def _block_sizes(resamples: int, count: int) -> Iterator[int]:
    """How many resamples of `count` numbers to draw at a time."""
    rows = max(_BLOCK_SIZE // count, 1)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _check_arguments(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise InputError(f"an interval cannot have the level {level}", "give a number between 0 and 1, such as 0.95")
    if resamples < 1:
        raise InputError(f"{resamples} resamples are none", "give 1,000 or more")
