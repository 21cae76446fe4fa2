"""Top-down partitioning: compare everything with a good pivot, keep what beats it, repeat.

Parry, MacAvaney and Ganguly, "Top-Down Partitioning for Efficient List-Wise Ranking" (arXiv 2405.14589).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest
from math import ceil

from rank_k.strategies.aggregate import consensus
from rank_k.strategies.base import StrategyGenerator, TieTracker, check_window
from rank_k.types import Candidate, Round, Window, WindowResult


@dataclass(frozen=True)
class TopDown:
    """Rank the head, take the passage in its middle as pivot, show the pivot with each part of the rest, all
    parts at once; whatever is put before the pivot joins the head's upper half, and so on until nothing new
    beats the pivot. Three to five rounds for 100 passages, where the sliding window has nine.
    """

    window: int = 20

    def __post_init__(self) -> None:
        check_window(self.window)

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        contenders = [candidate.doc_id for candidate in candidates]  # may still reach the top
        settled: list[str] = []  # below every contender, best first
        ties = TieTracker()
        while len(contenders) > 1:
            head, rest = contenders[: self.window], contenders[self.window :]
            left = 1 + (ceil(len(rest) / (self.window - 1)) + 1 if rest else 0)
            [outcome] = yield Round(
                (Window(tuple(head), (1, len(contenders))),), ties.ranking(contenders + settled), left
            )
            order = consensus(outcome)
            head = list(order.doc_ids)
            if order.is_valid:
                ties.record(order)
            if not rest:
                return ties.ranking(head + settled)
            cut = max(len(head) // 2 - 1, 0)
            above, pivot, below = head[:cut], head[cut], head[cut + 1 :]
            parts = _parts(rest, self.window - 1)
            windows = tuple(Window((pivot, *part), (1, len(contenders))) for part in parts)
            outcomes = yield Round(windows, ties.ranking(head + rest + settled), len(windows) + 1)
            winners, losers = [], []
            for part_outcome in outcomes:
                better, worse = _split_at(pivot, part_outcome, ties)
                winners.append(better)
                losers.append(worse)
            settled = [pivot, *below, *_dealt(losers), *settled]
            risen = _dealt(winners)
            if not risen:
                return ties.ranking(above + settled)
            contenders = above + risen
        return ties.ranking(contenders + settled)


def _parts(doc_ids: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """`doc_ids` in consecutive parts of nearly the same length, none longer than `size`."""
    count = ceil(len(doc_ids) / size)
    bounds = [round(i * len(doc_ids) / count) for i in range(count + 1)]
    return [tuple(doc_ids[a:b]) for a, b in pairwise(bounds)]


def _split_at(pivot: str, outcome: WindowResult, ties: TieTracker) -> tuple[list[str], list[str]]:
    """Those placed before the pivot, and the rest. Without an order, or without the pivot in it, nobody has
    beaten the pivot: what a model forgot is no evidence."""
    order = consensus(outcome)
    if not order.is_valid or pivot not in order.ranked_ids:
        return [], [doc_id for doc_id in order.doc_ids if doc_id != pivot]
    ties.record(order)
    better: list[str] = []
    for tier in order.tiers:
        if pivot in tier:
            break
        better.extend(tier)
    found = {pivot, *better}
    return better, [doc_id for doc_id in order.doc_ids if doc_id not in found]


def _dealt(lists: Sequence[Sequence[str]]) -> list[str]:
    """All firsts, then all seconds, ...: ranks within parts are the only thing known across parts."""
    return [doc_id for doc_id in chain.from_iterable(zip_longest(*lists)) if doc_id is not None]
