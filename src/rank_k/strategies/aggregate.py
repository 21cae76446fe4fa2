"""Aggregate the samples of a window to one ranking."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

from rank_k.types import WindowRanking, WindowResult


def consensus_ranking(result: WindowResult) -> WindowRanking:
    """Return the passages of a window by their mean position in its samples (Borda), equal means tied.

    The members of a tier share the mean of its positions. A passage counts only where a sample ranked it;
    one that no sample ranked comes last, in input order. Positions are scaled by the number of passages that a sample
    ranked, so that a short answer does not favor its passages.
    """
    rankings = [ranking for ranking in result.rankings if ranking.is_valid]
    if not rankings:
        return WindowRanking.unranked(result.window)
    if len(rankings) == 1:
        return rankings[0]
    positions = _positions(rankings)
    means = {doc_id: round(sum(values) / len(values), 9) for doc_id, values in positions.items()}
    ranked_ids = [doc_id for doc_id in result.window.doc_ids if doc_id in means]
    tiers = [tuple(tier) for _, tier in groupby(sorted(ranked_ids, key=means.__getitem__), key=means.__getitem__)]
    tiers.extend((doc_id,) for doc_id in result.window.doc_ids if doc_id not in means)
    return WindowRanking(tuple(tiers), frozenset(means), True)


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
