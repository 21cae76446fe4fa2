"""Agreement of judges beyond chance: Cohen's kappa for two judges, Krippendorff's alpha for more.

Both coefficients are computed from a square table of counts. The tables of queries can be added, so the bootstrap
resamples tables rather than judgments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from rank_k.evaluation.significance import Floats, bootstrap_interval
from rank_k.optional_deps import load

COHEN_KAPPA, KRIPPENDORFF_ALPHA = "Cohen's kappa", "Krippendorff's alpha"

JudgedItem = tuple[str, str, Any, int]
"""One judgment: the judge, the query, the judged item of the query, and the number of the category, from 0."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement between two or more judges.

    Attributes:
        judges: The judges.
        coefficient: `COHEN_KAPPA` or `KRIPPENDORFF_ALPHA`.
        items: The number of items that at least two of the judges have judged.
        queries: The number of queries of these items.
        observed: The fraction of pairs of judgments that are equal.
        value: The coefficient: 1 is perfect agreement, 0 is chance. None if all judgments are equal, for which the
            coefficient is undefined.
        low: The lower end of the 95% bootstrap interval of `value` over queries; None if `value` is None.
        high: The upper end of this interval.
    """

    judges: tuple[str, ...]
    coefficient: str
    items: int
    queries: int
    observed: float
    value: float | None
    low: float | None
    high: float | None


def compute_agreements(judgments: Iterable[JudgedItem]) -> tuple[Agreement, ...]:
    """Return the agreement of every two judges, and of all judges if there are more than two.

    Pairs of judges without a common item are left out. If a judge has judged an item repeatedly, the last judgment
    counts.

    Raises:
        MissingExtra: If numpy is not installed.
    """
    items: dict[tuple[str, Any], dict[str, int]] = defaultdict(dict)
    for judge, query_id, item, category in judgments:
        items[query_id, item][judge] = category
    judges = sorted({judge for categories in items.values() for judge in categories})
    groups = [*combinations(judges, 2), *([tuple(judges)] if len(judges) > 2 else [])]
    results = (_compute_agreement(group, items) for group in groups)
    return tuple(agreement for agreement in results if agreement is not None)


def cohen_kappa(table: Floats) -> Floats:
    """Return kappa (Cohen 1960); NaN where it is undefined.

    Args:
        table: Counts of shape (..., categories, categories): `table[..., c, k]` items have category c from the first
            judge and k from the second.
    """
    shares = table / table.sum(axis=(-2, -1), keepdims=True)
    observed = shares.trace(axis1=-2, axis2=-1)
    expected = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
    return _chance_corrected(1 - observed, 1 - expected)


def krippendorff_alpha(table: Floats) -> Floats:
    """Return alpha for unordered categories (Krippendorff 2004, ch. 11); NaN where it is undefined.

    Args:
        table: Coincidences of shape (..., categories, categories), the sum of `coincidence_table` over items. Not every
            judge has to judge every item.
    """
    total = table.sum(axis=(-2, -1))
    observed = total - table.trace(axis1=-2, axis2=-1)
    expected = (total**2 - (table.sum(axis=-1) ** 2).sum(axis=-1)) / (total - 1)
    return _chance_corrected(observed, expected)


def coincidence_table(categories: Sequence[int], category_count: int) -> Floats:
    """Return the coincidences of one item, given the categories of its judgments, at least two.

    Every ordered pair of judgments counts with weight 1 / (number of judgments - 1).
    """
    np = load("numpy")
    counts = np.bincount(categories, minlength=category_count).astype(float)
    table: Floats = (np.outer(counts, counts) - np.diag(counts)) / (len(categories) - 1)
    return table


def _compute_agreement(judges: tuple[str, ...], items: dict[tuple[str, Any], dict[str, int]]) -> Agreement | None:
    np = load("numpy")
    category_count = 1 + max(category for categories in items.values() for category in categories.values())
    by_query: dict[str, Floats] = defaultdict(lambda: np.zeros((category_count, category_count)))
    ratings_by_item = [
        (query_id, ratings)
        for (query_id, _), categories in items.items()
        if len(ratings := [categories[judge] for judge in judges if judge in categories]) >= 2
    ]
    if not ratings_by_item:
        return None
    for query_id, ratings in ratings_by_item:
        if len(judges) == 2:
            by_query[query_id][ratings[0], ratings[1]] += 1
        else:
            by_query[query_id] += coincidence_table(ratings, category_count)
    observed = fmean(first == second for _, ratings in ratings_by_item for first, second in combinations(ratings, 2))
    name, coefficient = (COHEN_KAPPA, cohen_kappa) if len(judges) == 2 else (KRIPPENDORFF_ALPHA, krippendorff_alpha)
    tables = np.stack([by_query[query_id] for query_id in sorted(by_query)])
    value = float(coefficient(tables.sum(axis=0)))
    estimates: tuple[float | None, ...] = (None, None, None)
    if not np.isnan(value):
        estimates = (value, *bootstrap_interval(tables, lambda draws: coefficient(draws.sum(axis=1))))
    return Agreement(judges, name, len(ratings_by_item), len(tables), observed, *estimates)


def _chance_corrected(observed: Floats, expected: Floats) -> Floats:
    """Return 1 - observed / expected disagreement; NaN if the expected disagreement is zero up to rounding."""
    np = load("numpy")
    with np.errstate(divide="ignore", invalid="ignore"):
        coefficient: Floats = np.where(expected > 1e-12, 1 - observed / expected, np.nan)
    return coefficient
