"""Rank a window by scores, and aggregate the samples of a window to one ranking."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean

from rank_k.types import Window, WindowRanking, WindowResult


def consensus_ranking(result: WindowResult) -> WindowRanking:
    """Return the passages of a window by their mean position in its samples (Borda), equal means tied.

    The members of a tier share the mean of its positions. A passage counts only where a sample ranked it;
    one that no sample ranked comes last, in input order. Positions are scaled by the number of passages that a sample
    ranked, so that a short answer does not favor its passages.
    """
    rankings = [ranking for ranking in result.rankings if ranking.is_valid]
    if len(rankings) == 1:
        return rankings[0]
    scores = {doc_id: -round(fmean(positions), 9) for doc_id, positions in _positions(rankings).items()}
    return order_by_score(result.window, scores)


def order_by_score(window: Window, scores: Mapping[str, float]) -> WindowRanking:
    """Rank `window` by `scores`: highest first, equal scores tied, passages without one last in their input order."""
    if not scores:
        return WindowRanking.unranked(window)
    ranked_ids = sorted((doc_id for doc_id in window.doc_ids if doc_id in scores), key=lambda doc_id: -scores[doc_id])
    tiers = [tuple(tier) for _, tier in groupby(ranked_ids, key=scores.__getitem__)]
    unranked_tiers = [(doc_id,) for doc_id in window.doc_ids if doc_id not in scores]
    return WindowRanking((*tiers, *unranked_tiers), frozenset(ranked_ids), True)


def _positions(rankings: Sequence[WindowRanking]) -> dict[str, list[float]]:
    """Return, per passage, its position in each ranking that has it, from 0 (first) to 1 (last)."""
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
