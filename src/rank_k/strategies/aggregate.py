"""Several orders of one window -> one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

from rank_k.types import WindowRanking, WindowResult


def consensus(outcome: WindowResult) -> WindowRanking:
    """The order that the samples of a window agree on: by mean position (Borda), equal means tied.

    The members of a tier share the mean of its positions. A passage counts only where a sample placed it;
    one that no sample placed comes last, in input order. Positions are scaled by how many passages a sample
    placed, so that a short answer does not flatter its ids.
    """
    orders = [order for order in outcome.rankings if order.is_valid]
    if not orders:
        return WindowRanking.unranked(outcome.window)
    if len(orders) == 1:
        return orders[0]
    positions = _positions(orders)
    means = {doc_id: round(sum(found) / len(found), 9) for doc_id, found in positions.items()}
    shown = [doc_id for doc_id in outcome.window.doc_ids if doc_id in means]
    tiers = [tuple(tier) for _, tier in groupby(sorted(shown, key=means.__getitem__), key=means.__getitem__)]
    tiers.extend((doc_id,) for doc_id in outcome.window.doc_ids if doc_id not in means)
    return WindowRanking(tuple(tiers), frozenset(means), True)


def _positions(orders: Sequence[WindowRanking]) -> dict[str, list[float]]:
    """Per passage, its position in each order that placed it, from 0 (first) to 1 (last)."""
    positions: dict[str, list[float]] = defaultdict(list)
    for order in orders:
        before = 0
        last = max(len(order.ranked_ids) - 1, 1)
        for tier in order.tiers:
            placed = [doc_id for doc_id in tier if doc_id in order.ranked_ids]
            for doc_id in placed:
                positions[doc_id].append((before + (len(placed) - 1) / 2) / last)
            before += len(placed)
    return positions
