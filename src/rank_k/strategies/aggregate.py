"""Rank a window by scores, and aggregate the samples of a window into one ranking."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean

from rank_k.types import Window, WindowRanking, WindowResult


def consensus_ranking(result: WindowResult) -> WindowRanking:
    """Return the consensus of a window's samples: passages sorted by their mean position (Borda count).

    Passages with equal means are tied. In each sample, positions are from 0 (first) to 1 (last), and tied passages
    share the mean of their positions. Only passages that the model itself ranked have a position in a sample. Passages
    that no sample ranked come last, in input order.
    """
    rankings = [ranking for ranking in result.rankings if ranking.is_valid]
    if len(rankings) == 1:
        return rankings[0]
    scores = {doc_id: -round(fmean(positions), 9) for doc_id, positions in _positions(rankings).items()}
    return order_by_score(result.window, scores)


def order_by_score(window: Window, scores: Mapping[str, float]) -> WindowRanking:
    """Return the ranking of a window by scores, highest first. Passages with equal scores are tied.

    Args:
        window: The window.
        scores: Scores by passage id. Passages without a score come last, in input order.
    """
    if not scores:
        return WindowRanking.unranked(window)
    ranked_ids = sorted((doc_id for doc_id in window.doc_ids if doc_id in scores), key=lambda doc_id: -scores[doc_id])
    tiers = [tuple(tier) for _, tier in groupby(ranked_ids, key=scores.__getitem__)]
    unranked_tiers = [(doc_id,) for doc_id in window.doc_ids if doc_id not in scores]
    return WindowRanking((*tiers, *unranked_tiers), frozenset(ranked_ids), True)


def _positions(rankings: Sequence[WindowRanking]) -> dict[str, list[float]]:
    """Return the positions of each passage in the rankings that have it, from 0 (first) to 1 (last)."""
    positions: dict[str, list[float]] = defaultdict(list)
    for ranking in rankings:
        preceding = 0
        last = max(len(ranking.ranked_ids) - 1, 1)
        for tier in ranking.tiers:
            ranked_ids = [doc_id for doc_id in tier if doc_id in ranking.ranked_ids]
            for doc_id in ranked_ids:
                positions[doc_id].append((preceding + (len(ranked_ids) - 1) / 2) / last)
            preceding += len(ranked_ids)
    return positions
