"""Blocks side by side, one fit over all answers, then windows where the head is decided.

The design that came out best of a simulation (see docs/strategies.md): as good as the sliding window or better, in
two rounds instead of nine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from random import Random
from typing import TypeVar

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.strategies.aggregate import consensus
from rank_k.strategies.base import StrategyGenerator, TieTracker, check_window, lowest_reachable_rank
from rank_k.strategies.bradley_terry import fit
from rank_k.types import Candidate, Ranking, Round, Window, WindowResult

T = TypeVar("T")

CUT = 10
"""The rank whose two sides the last windows tell apart: quality is read at 10."""


@dataclass(frozen=True)
class Blocks:
    """All candidates at once in blocks of at most `window`; then the best `window` together and, at the same time, the
    `window` passages of which it is least certain whether they belong to the first ten. A `boundary` above 1 asks about
    those of which it is least certain by then, once more for each; 0 leaves them out.

    A block holds passages from all over the first stage's list; with `partitions` above 1 further divisions of the
    list, drawn at random, are asked in the same round. The ranking is that of the pairwise fit to all answers, with
    the first stage as prior of weight `fuse` (0: ignore it). 100 candidates take 7 windows in 2 rounds.

    Needs numpy. Raises `InputError` for settings that make no sense and `MissingExtra` without numpy.
    """

    window: int = 20
    partitions: int = 1
    boundary: int = 1
    first_stage_weight: float = 1.0

    def __post_init__(self) -> None:
        check_window(self.window)
        if self.partitions < 1:
            raise InputError(f"partitions is {self.partitions}", "give 1 or more")
        if self.boundary < 0:
            raise InputError(f"boundary is {self.boundary}", "give 0 or more")
        if not isfinite(self.first_stage_weight) or self.first_stage_weight < 0:
            raise InputError(
                f"first_stage_weight is {self.first_stage_weight}",
                "give 0 (ignore the first stage) or more; 1 is usual",
            )
        load("numpy")  # now, not after the first round has been paid for

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        ids = tuple(candidate.doc_id for candidate in candidates)
        everywhere = (1, len(ids))  # a block holds passages from all over the list
        outcomes: list[WindowResult] = []
        ties = TieTracker()
        blocks = self._blocks(ids, Random(seed))
        if not blocks:
            return ties.ranking(ids)
        later = 1 + self.boundary if len(ids) > self.window else 0
        answered = yield Round(
            tuple(Window(block, everywhere) for block in blocks), Ranking.of(ids), len(blocks) + later
        )
        ranking = self._ranking(ids, answered, outcomes, ties)
        asked = set(blocks)
        shown = self._decisive(ranking)
        while later > 0:
            fresh = [doc_ids for doc_ids in shown if doc_ids not in asked]
            if not fresh:  # the same question has the same answer, which must not count twice
                break
            asked.update(fresh)
            # it decides among the ranks that its passages stand at; through the fit, others move a little
            windows = (Window(doc_ids, (1, lowest_reachable_rank(doc_ids, ranking.doc_ids))) for doc_ids in fresh)
            answered = yield Round(tuple(windows), ranking, later)
            later -= len(shown)
            ranking = self._ranking(ids, answered, outcomes, ties)
            shown = [_undecided(ranking, self.window)]
        return ranking

    def _decisive(self, ranking: Ranking) -> list[tuple[str, ...]]:
        """What to ask once the blocks are answered: the head and, at the same time, the boundary.

        Where the least certain passages are those of the head itself, its better half meets those that follow it: what
        the blocks may have put too low.
        """
        head = ranking.doc_ids[: self.window]
        if not self.boundary:
            return [head]
        undecided = _undecided(ranking, self.window)
        if undecided == head:
            half = self.window // 2
            undecided = head[:half] + ranking.doc_ids[self.window : self.window + half]
        return [head, undecided]

    def _blocks(self, ids: Sequence[str], random: Random) -> list[tuple[str, ...]]:
        """What to ask in the first round. A passage left over alone has nothing to be compared with."""
        count = ceil(len(ids) / self.window)
        divisions = [snake_deal(ids, count)]
        if count > 1:
            for _ in range(self.partitions - 1):
                shuffled = random.sample(range(len(ids)), len(ids))
                divisions.append([tuple(ids[i] for i in sorted(part)) for part in snake_deal(shuffled, count)])
        return [block for division in divisions for block in division if len(block) > 1]

    def _ranking(
        self, ids: Sequence[str], answered: Sequence[WindowResult], outcomes: list[WindowResult], ties: TieTracker
    ) -> Ranking:
        """The best so far, once `answered` has joined `outcomes` and `ties`."""
        outcomes.extend(answered)
        for outcome in answered:
            order = consensus(outcome)
            if order.is_valid:
                ties.record(order)
        fitted = fit(ids, outcomes, self.first_stage_weight)
        ranking = ties.ranking(fitted.ranked())
        return Ranking(ranking.doc_ids, ranking.tied, fitted.in_top(CUT))


def snake_deal(items: Sequence[T], count: int) -> list[tuple[T, ...]]:
    """`items` dealt to `count` hands, forth and back, so that each has its share of the best. Hands keep the order
    of `items` and differ in size by one at most."""
    hands: list[list[T]] = [[] for _ in range(count)]
    for start in range(0, len(items), count or 1):
        turn = hands if start // count % 2 == 0 else hands[::-1]
        for hand, item in zip(turn, items[start : start + count], strict=False):
            hand.append(item)
    return [tuple(hand) for hand in hands]


def _undecided(ranking: Ranking, size: int) -> tuple[str, ...]:
    """The `size` passages whose being among the first ten is least certain, best first."""
    chance = ranking.probability or {}
    doubtful = sorted(ranking.doc_ids, key=lambda doc_id: -round(chance[doc_id] * (1 - chance[doc_id]), 7))[:size]
    return tuple(doc_id for doc_id in ranking.doc_ids if doc_id in set(doubtful))
