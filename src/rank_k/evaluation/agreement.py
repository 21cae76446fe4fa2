"""Do judges agree, beyond what chance would have them do? Cohen's kappa of two, Krippendorff's alpha of more.

Both come from a square table of counts, and such tables add up over queries: so they are resampled by query, without
looking at a judgment twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

from rank_k.evaluation.significance import CONFIDENCE_LEVEL, resampled_means
from rank_k.optional_deps import load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

COHEN_KAPPA, KRIPPENDORFF_ALPHA = "Cohen's kappa", "Krippendorff's alpha"

JudgedItem = tuple[str, str, Any, int]
"""Who said what: judge, query, what of the query was judged, and the number of a category, from 0."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """`items`: how many things at least two of `judges` have judged, of `queries`. `observed`: how often two judges
    say the same. `value`: 1 is perfect, 0 what chance brings; None where chance alone would have them agree always,
    everybody having said one thing. `low`, `high`: its 95 % bootstrap interval over queries, None with `value`."""

    judges: tuple[str, ...]
    coefficient: str
    items: int
    queries: int
    observed: float
    value: float | None
    low: float | None
    high: float | None


def compute_agreements(judgments: Iterable[JudgedItem]) -> tuple[Agreement, ...]:
    """Of every two judges, and of all where there are more than two; as far as they have judged the same things.
    One who has said two things of one item counts with the last. Raises `MissingExtra` without numpy."""
    items: dict[tuple[str, Any], dict[str, int]] = defaultdict(dict)
    for judge, query_id, item, category in judgments:
        items[query_id, item][judge] = category
    judges = sorted({judge for categories in items.values() for judge in categories})
    groups = [*combinations(judges, 2), *([tuple(judges)] if len(judges) > 2 else [])]
    results = (_compute_agreement(group, items) for group in groups)
    return tuple(agreement for agreement in results if agreement is not None)


def cohen_kappa(table: Floats) -> Floats:
    """Kappa (Cohen 1960) of `table[..., c, k]`: how often the one judge says c and the other k, in counts or shares.
    NaN where it is not defined."""
    np = load("numpy")
    shares = table / table.sum(axis=(-2, -1), keepdims=True)
    observed = np.trace(shares, axis1=-2, axis2=-1)
    expected = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
    return _chance_corrected(1 - observed, 1 - expected)


def krippendorff_alpha(table: Floats) -> Floats:
    """Alpha for categories without order (Krippendorff 2004, ch. 11) of `table[..., c, k]`: the coincidences, in
    counts. Judges need not have judged the same things. NaN where it is not defined."""
    np = load("numpy")
    total = table.sum(axis=(-2, -1))
    totals = table.sum(axis=-1)
    observed = total - np.trace(table, axis1=-2, axis2=-1)
    expected = (total**2 - (totals**2).sum(axis=-1)) / (total - 1)
    return _chance_corrected(observed, expected)


def coincidence_table(categories: Sequence[int], category_count: int) -> Floats:
    """What one item with the judgments `categories`, at least two, adds to a table of coincidences: every two that
    different judges made, both ways, each weighing 1 / (number of judgments - 1)."""
    np = load("numpy")
    counts = np.bincount(categories, minlength=category_count).astype(float)
    table: Floats = (np.outer(counts, counts) - np.diag(counts)) / (len(categories) - 1)
    return table


def _compute_agreement(judges: tuple[str, ...], items: dict[tuple[str, Any], dict[str, int]]) -> Agreement | None:
    np = load("numpy")
    category_count = 1 + max(category for categories in items.values() for category in categories.values())
    by_query: dict[str, Floats] = defaultdict(lambda: np.zeros((category_count, category_count)))
    item_count, agreeing_pairs, pairs = 0, 0.0, 0.0
    for (query_id, _), categories in items.items():
        ratings = [categories[judge] for judge in judges if judge in categories]
        if len(ratings) < 2:
            continue
        item_count += 1
        if len(judges) == 2:
            by_query[query_id][ratings[0], ratings[1]] += 1
        else:
            by_query[query_id] += coincidence_table(ratings, category_count)
        counts = np.bincount(ratings)
        agreeing_pairs += float((counts * (counts - 1)).sum())
        pairs += len(ratings) * (len(ratings) - 1)
    if not item_count:
        return None
    statistic = cohen_kappa if len(judges) == 2 else krippendorff_alpha
    tables = np.stack([by_query[query_id] for query_id in sorted(by_query)])
    value = float(statistic(tables.sum(axis=0)))
    low = high = None
    if not np.isnan(value):
        resampled_values = statistic(resampled_means(tables) * len(tables))
        low, high = map(
            float, np.nanquantile(resampled_values, ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2))
        )
    return Agreement(
        judges,
        COHEN_KAPPA if len(judges) == 2 else KRIPPENDORFF_ALPHA,
        item_count,
        len(tables),
        agreeing_pairs / pairs,
        None if np.isnan(value) else value,
        low,
        high,
    )


def _chance_corrected(observed: Floats, expected: Floats) -> Floats:
    """1 - observed / expected disagreement. What rounding leaves of an expectation of none counts as none."""
    np = load("numpy")
    with np.errstate(divide="ignore", invalid="ignore"):
        coefficient: Floats = np.where(expected > 1e-12, 1 - observed / expected, np.nan)
    return coefficient
