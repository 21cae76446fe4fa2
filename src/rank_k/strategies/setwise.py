"""Setwise: heapsort in which one window compares a parent with all of its children.

Zhuang et al., "A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking with Large Language Models"
(arXiv 2310.09497). Every node of the heap has `window` - 1 children. The paper uses c = 3 children.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from rank_k.strategies.aggregate import consensus_ranking
from rank_k.strategies.base import StrategyGenerator, Ties, WindowStrategy, at_least, record_ties, tied_ranking
from rank_k.types import Candidate, Round, Window, WindowResult


@dataclass(frozen=True)
class Setwise(WindowStrategy):
    """Rank the best `k` passages with a heap whose nodes have `window` - 1 children.

    The heap is built level by level, with all windows of a level in parallel. Then the best passage is removed `k`
    times. Only the first passage of each ranking is used. The other candidates keep their order.

    Attributes:
        k: Number of passages to rank (default: 10).
    """

    k: int = at_least(1, 10, ": it is the number of passages to rank")

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        ids = [candidate.doc_id for candidate in candidates]
        heap = list(ids)
        best: list[str] = []
        ties: Ties = {}
        levels = _levels(len(heap), self.window - 1)

        def sift(positions: Sequence[int], remaining_in_levels: int) -> Generator[Round, list[WindowResult], None]:
            """Move the passages at `positions` down, in parallel, until no child is better."""
            while windows := self._family_windows(positions, heap, len(best)):
                remaining_windows = len(windows) + remaining_in_levels + (self.k - len(best) - 1) * len(levels)
                results = yield Round(
                    tuple(windows.values()), tied_ranking(ties, _with_best_first(best, ids)), remaining_windows
                )
                next_positions = []
                for position, result in zip(windows, results, strict=True):
                    winner = heap.index(_winner(result, ties))
                    if winner != position:
                        heap[position], heap[winner] = heap[winner], heap[position]
                        next_positions.append(winner)
                positions = next_positions

        for level_number, level in enumerate(levels):
            yield from sift(level, sum(map(len, levels[level_number + 1 :])))
        while heap and len(best) < self.k:
            best.append(heap[0])
            last = heap.pop()
            if heap and len(best) < self.k:
                heap[0] = last
                yield from sift([0], 0)
        return tied_ranking(ties, _with_best_first(best, ids))

    def _family_windows(self, positions: Sequence[int], heap: Sequence[str], ranked_count: int) -> dict[int, Window]:
        """Return, for each of `positions` that has children, a window of the passage there and its children.

        Args:
            positions: Positions in the heap.
            heap: The heap, which holds the passages that are not ranked yet.
            ranked_count: Number of passages that are ranked. They precede the heap in the final ranking.
        """
        child_count = self.window - 1
        windows: dict[int, Window] = {}
        for position in positions:
            if children := heap[child_count * position + 1 : child_count * (position + 1) + 1]:
                worst = ranked_count + child_count * position + 1 + len(children)
                windows[position] = Window((heap[position], *children), (ranked_count + 1, worst))
        return windows


def _levels(length: int, child_count: int) -> list[list[int]]:
    """Return the positions in a heap that have children, level by level. The deepest level is first."""
    levels: list[list[int]] = []
    first, size = 0, 1
    while child_count * first + 1 < length:
        levels.append([position for position in range(first, first + size) if child_count * position + 1 < length])
        first, size = first + size, size * child_count
    return levels[::-1]


def _winner(result: WindowResult, ties: Ties) -> str:
    """Return the best passage of a window.

    This is the parent, which comes first in the window, if the ranking is invalid or lacks the parent, or if the parent
    is tied with the best passage.
    """
    ranking = consensus_ranking(result)
    parent = result.window.doc_ids[0]
    if not ranking.is_valid or parent not in ranking.ranked_ids:
        return parent
    record_ties(ties, ranking)
    return parent if parent in ranking.tiers[0] else ranking.tiers[0][0]


def _with_best_first(best: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Return `best`, followed by the other `ids` in their order."""
    return list(dict.fromkeys([*best, *ids]))
