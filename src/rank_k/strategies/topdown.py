"""Top-down partitioning: compare all passages with a good pivot, keep the passages ranked above it, and repeat.

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
    """Rank the head of the list, and then only the passages that are better than a pivot from its middle.

    The first round ranks the first `window` passages. The passage in the middle of this ranking is the pivot. The
    second round divides all other passages into parts and ranks each part together with the pivot. Passages ranked
    above the pivot join the upper half of the head, and the procedure is repeated until no passage is ranked above the
    pivot. 100 passages take three to five rounds; the sliding window takes nine.
    """

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        contenders = [candidate.doc_id for candidate in candidates]  # these may still reach the top
        settled: list[str] = []  # these rank below every contender, best first
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
    """Divide `doc_ids` into consecutive parts of nearly the same length, none longer than `size`."""
    count = ceil(len(doc_ids) / size)
    bounds = [round(i * len(doc_ids) / count) for i in range(count + 1)]
    return [tuple(doc_ids[a:b]) for a, b in pairwise(bounds)]


def _split_at_pivot(pivot: str, result: WindowResult, ties: Ties) -> tuple[list[str], list[str]]:
    """Return the passages ranked above the pivot, and all other passages except the pivot.

    If there is no valid ranking, or if the model left the pivot out, no passage counts as ranked above it.
    """
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
    """Return the first passages of all lists, then the second ones, and so on, since lists cannot be compared."""
    return [doc_id for doc_id in chain.from_iterable(zip_longest(*lists)) if doc_id is not None]
