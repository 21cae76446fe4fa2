"""Top-down partitioning: compare everything with a good pivot, keep what beats it, repeat.

Parry, MacAvaney and Ganguly, "Top-Down Partitioning for Efficient List-Wise Ranking" (arXiv 2405.14589).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest
from math import ceil

from rank_k.strategies.aggregate import consensus_ranking
from rank_k.strategies.base import (
    StrategyGenerator,
    Ties,
    WindowStrategy,
    record_consensus,
    record_ties,
    tied_ranking,
)
from rank_k.types import Candidate, Round, Window, WindowResult


@dataclass(frozen=True)
class TopDown(WindowStrategy):
    """Rank the head, take the passage in its middle as pivot, and rank the pivot with each part of the rest, all parts
    in one round. Whatever is ranked above the pivot joins the head's upper half, and so on until nothing new beats the
    pivot. 100 passages take three to five rounds; the sliding window takes nine.
    """

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        contenders = [candidate.doc_id for candidate in candidates]  # may still reach the top
        settled: list[str] = []  # below every contender, best first
        ties: Ties = {}
        while len(contenders) > 1:
            head, rest = contenders[: self.window], contenders[self.window :]
            remaining_windows = 1 + (ceil(len(rest) / (self.window - 1)) + 1 if rest else 0)
            window = Window(tuple(head), (1, len(contenders)))
            [result] = yield Round((window,), tied_ranking(ties, contenders + settled), remaining_windows)
            head = list(record_consensus(ties, result).doc_ids)
            if not rest:
                return tied_ranking(ties, head + settled)
            pivot_position = max(len(head) // 2 - 1, 0)
            above, pivot, below = head[:pivot_position], head[pivot_position], head[pivot_position + 1 :]
            parts = _partition(rest, self.window - 1)
            windows = tuple(Window((pivot, *part), (1, len(contenders))) for part in parts)
            results = yield Round(windows, tied_ranking(ties, head + rest + settled), len(windows) + 1)
            splits = [_split_at_pivot(pivot, part_result, ties) for part_result in results]
            settled = [pivot, *below, *_interleave([worse for _, worse in splits]), *settled]
            winners = _interleave([better for better, _ in splits])
            if not winners:
                return tied_ranking(ties, above + settled)
            contenders = above + winners
        return tied_ranking(ties, contenders + settled)


def _partition(doc_ids: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return `doc_ids` in consecutive parts of nearly the same length, none longer than `size`."""
    count = ceil(len(doc_ids) / size)
    bounds = [round(i * len(doc_ids) / count) for i in range(count + 1)]
    return [tuple(doc_ids[a:b]) for a, b in pairwise(bounds)]


def _split_at_pivot(pivot: str, result: WindowResult, ties: Ties) -> tuple[list[str], list[str]]:
    """Return the passages ranked above the pivot, and the rest. Without a ranking, or without the pivot in it, no
    passage has beaten the pivot: what a model forgot is no evidence."""
    ranking = consensus_ranking(result)
    if not ranking.is_valid or pivot not in ranking.ranked_ids:
        return [], [doc_id for doc_id in ranking.doc_ids if doc_id != pivot]
    record_ties(ties, ranking)
    better: list[str] = []
    for tier in ranking.tiers:
        if pivot in tier:
            break
        better.extend(tier)
    excluded = {pivot, *better}
    return better, [doc_id for doc_id in ranking.doc_ids if doc_id not in excluded]


def _interleave(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return all firsts, then all seconds, and so on: across parts, only ranks within parts are known."""
    return [doc_id for doc_id in chain.from_iterable(zip_longest(*lists)) if doc_id is not None]
