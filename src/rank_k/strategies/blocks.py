"""Rank blocks in parallel, fit a Bradley-Terry model to all rankings, and then rank the most important passages again.

In simulations, this strategy was as good as the sliding window or better, in two rounds instead of nine
(docs/how-to/strategies.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import TypeVar

from rank_k.optional_deps import load
from rank_k.strategies.base import (
    StrategyGenerator,
    Ties,
    WindowStrategy,
    at_least,
    record_consensus,
    tied_ranking,
)
from rank_k.strategies.bradley_terry import fit_strengths
from rank_k.types import Candidate, Ranking, Round, Window, WindowResult

T = TypeVar("T")

RANK_CUTOFF = 10
"""The second round decides which passages are in the top 10, because quality is measured at 10."""


@dataclass(frozen=True)
class Blocks(WindowStrategy):
    """Rank all candidates in blocks, and then the head and the least certain passages.

    The first round ranks all candidates in blocks of at most `window` passages from all parts of the list. The second
    round ranks two windows: the best `window` passages, and the least certain passages, whose probability of being in
    the top 10 is closest to 1/2. The final ranking is sorted by the strengths of a Bradley-Terry model, which is fitted
    to all rankings. 100 candidates take 7 windows in 2 rounds. numpy is required.

    Attributes:
        partitions: Number of times that the first round ranks all candidates (default: 1). The blocks of the second
            and later partitions are random.
        boundary: Number of windows with the least certain passages (default: 1). Each window after the first takes an
            additional round.
        first_stage_weight: Weight of the first-stage ranking, which is the prior of the model (default: 1; 0 ignores
            the first stage).

    Raises:
        InputError: If an option is out of range.
        MissingExtra: If numpy is not installed.
    """

    partitions: int = at_least(1, 1)
    boundary: int = at_least(0, 1)
    first_stage_weight: float = at_least(0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        load("numpy")  # fail now, before the first round has cost anything

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        ids = tuple(candidate.doc_id for candidate in candidates)
        full_range = (1, len(ids))  # a block has passages from all parts of the list
        results: list[WindowResult] = []
        ties: Ties = {}
        blocks = self._first_round_blocks(ids, Random(seed))
        if not blocks:
            return tied_ranking(ties, ids)
        remaining_windows = 1 + self.boundary if len(ids) > self.window else 0
        round_results = yield Round(
            tuple(Window(block, full_range) for block in blocks), Ranking.untied(ids), len(blocks) + remaining_windows
        )
        ranking = self._update_ranking(ids, round_results, results, ties)
        submitted = set(blocks)
        next_windows = self._second_round_windows(ranking)
        while remaining_windows > 0:
            new_windows = [doc_ids for doc_ids in next_windows if doc_ids not in submitted]
            if not new_windows:  # the same window has the same result, which must not count twice
                break
            submitted.update(new_windows)
            # a window decides about the ranks of its passages; other passages hardly move
            windows = (Window(doc_ids, (1, 1 + max(map(ranking.doc_ids.index, doc_ids)))) for doc_ids in new_windows)
            round_results = yield Round(tuple(windows), ranking, remaining_windows)
            remaining_windows -= len(next_windows)
            ranking = self._update_ranking(ids, round_results, results, ties)
            next_windows = [_least_certain(ranking, self.window)]
        return ranking

    def _second_round_windows(self, ranking: Ranking) -> list[tuple[str, ...]]:
        """Return the windows of the second round: the head and the least certain passages.

        If these are the same passages, the second window has the better half of the head and the passages that follow
        the head, because the first round may have ranked them too low.
        """
        head = ranking.doc_ids[: self.window]
        if not self.boundary:
            return [head]
        boundary_window = _least_certain(ranking, self.window)
        if boundary_window == head:
            half = self.window // 2
            boundary_window = head[:half] + ranking.doc_ids[self.window : self.window + half]
        return [head, boundary_window]

    def _first_round_blocks(self, ids: Sequence[str], random: Random) -> list[tuple[str, ...]]:
        """Return the blocks of the first round, except those with a single passage."""
        count = ceil(len(ids) / self.window)
        partitions = [snake_deal(ids, count)]
        if count > 1:
            for _ in range(self.partitions - 1):
                shuffled = random.sample(range(len(ids)), len(ids))
                partitions.append([tuple(ids[i] for i in sorted(indices)) for indices in snake_deal(shuffled, count)])
        return [block for partition in partitions for block in partition if len(block) > 1]

    def _update_ranking(
        self, ids: Sequence[str], round_results: Sequence[WindowResult], results: list[WindowResult], ties: Ties
    ) -> Ranking:
        """Add the results of a round to `results` and `ties`, and return the best ranking so far."""
        results.extend(round_results)
        for result in round_results:
            record_consensus(ties, result)
        fitted = fit_strengths(ids, results, self.first_stage_weight)
        ranking = tied_ranking(ties, fitted.ranked_ids())
        return Ranking(ranking.doc_ids, ranking.tied, fitted.top_k_probabilities(RANK_CUTOFF))


def snake_deal(items: Sequence[T], group_count: int) -> list[tuple[T, ...]]:
    """Deal `items` into groups, back and forth, so that all groups get similar shares of the best items.

    Groups keep the order of `items`. Their sizes differ by at most one.
    """
    groups: list[list[T]] = [[] for _ in range(group_count)]
    for start in range(0, len(items), group_count or 1):
        ordered_groups = groups if start // group_count % 2 == 0 else groups[::-1]
        for group, item in zip(ordered_groups, items[start : start + group_count], strict=False):
            group.append(item)
    return [tuple(group) for group in groups]


def _least_certain(ranking: Ranking, size: int) -> tuple[str, ...]:
    """Return the `size` passages whose probability of being in the top 10 is closest to 1/2, in ranking order."""
    probability = ranking.probability or {}
    least_certain_ids = sorted(
        ranking.doc_ids, key=lambda doc_id: -round(probability[doc_id] * (1 - probability[doc_id]), 7)
    )[:size]
    return tuple(doc_id for doc_id in ranking.doc_ids if doc_id in set(least_certain_ids))
