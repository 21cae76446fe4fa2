"""Setwise: heapsort in which one question compares a parent with all its children.

Zhuang et al., "A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking with Large Language Models"
(arXiv 2310.09497), whose c children are `window` - 1 here (3 in the paper).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from rank_k.errors import InputError
from rank_k.strategies.aggregate import consensus
from rank_k.strategies.base import StrategyGenerator, TieTracker, check_window
from rank_k.types import Candidate, Round, Window, WindowResult


@dataclass(frozen=True)
class Setwise:
    """A heap whose nodes have `window` - 1 children is built, subtrees of one level side by side, and gives up its
    best passage `k` times. Only the first of an answer counts; the rest of the candidates stay as they were."""

    window: int = 20
    k: int = 10

    def __post_init__(self) -> None:
        check_window(self.window)
        if self.k < 1:
            raise InputError(f"k is {self.k}", "give 1 or more: how many passages are to be ranked")

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        ids = [candidate.doc_id for candidate in candidates]
        heap = list(ids)
        best: list[str] = []
        ties = TieTracker()
        levels = _levels(len(heap), self.window - 1)

        def sift(places: Sequence[int], levels_left: int) -> Generator[Round, list[WindowResult], None]:
            """Let the passages at `places` sink to where no child is better, all at once."""
            while windows := self._families(places, heap, len(best)):
                left = len(windows) + levels_left + (self.k - len(best) - 1) * len(levels)
                outcomes = yield Round(tuple(windows.values()), ties.ranking(_led(best, ids)), left)
                sunk = []
                for place, outcome in zip(windows, outcomes, strict=True):
                    winner = heap.index(_winner(outcome, ties))
                    if winner != place:
                        heap[place], heap[winner] = heap[winner], heap[place]
                        sunk.append(winner)
                places = sunk

        for number, level in enumerate(levels):
            yield from sift(level, sum(map(len, levels[number + 1 :])))
        while heap and len(best) < self.k:
            best.append(heap[0])
            last = heap.pop()
            if heap and len(best) < self.k:
                heap[0] = last
                yield from sift([0], 0)
        return ties.ranking(_led(best, ids))

    def _families(self, places: Sequence[int], heap: Sequence[str], ranked: int) -> dict[int, Window]:
        """A window of parent and children for each of `places` that has children.

        The heap is the list that is being sorted: a window changes nothing below the last of its children, and later
        windows show its winner again until that has risen to the head.
        """
        count = self.window - 1
        windows: dict[int, Window] = {}
        for place in places:
            if children := heap[count * place + 1 : count * (place + 1) + 1]:
                worst = ranked + count * place + 1 + len(children)
                windows[place] = Window((heap[place], *children), (ranked + 1, worst))
        return windows


def _levels(length: int, children: int) -> list[list[int]]:
    """The places of a heap that have children, level by level, the deepest first."""
    levels: list[list[int]] = []
    first, size = 0, 1
    while children * first + 1 < length:
        levels.append([place for place in range(first, first + size) if children * place + 1 < length])
        first, size = first + size, size * children
    return levels[::-1]


def _winner(outcome: WindowResult, ties: TieTracker) -> str:
    """The best of a window. The parent, shown first, stays where the model put nothing above it or forgot it."""
    order = consensus(outcome)
    parent = outcome.window.doc_ids[0]
    if not order.is_valid or parent not in order.ranked_ids:
        return parent
    ties.record(order)
    return parent if parent in order.tiers[0] else order.tiers[0][0]


def _led(best: Sequence[str], ids: Sequence[str]) -> list[str]:
    """`best`, then the rest of `ids` as they stand."""
    return list(dict.fromkeys([*best, *ids]))
