"""TourRank: the best passages of each group advance to the next stage and earn a point.

Chen et al., "TourRank: Utilizing Large Language Models for Documents Ranking with a Tournament-Inspired Strategy"
(arXiv 2406.11678).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from rank_k.strategies.base import (
    StrategyGenerator,
    Ties,
    WindowStrategy,
    at_least,
    record_consensus,
    tied_ranking,
)
from rank_k.types import Candidate, Round, Window, WindowResult


@dataclass(frozen=True)
class Tournament(WindowStrategy):
    """Rank passages by their points in a tournament.

    For 100 candidates and windows of 20, the stages are the same as in the paper: from 100 passages to 50 in five
    groups of 20, to 20 in five groups of 10, and to 10, 5 and 2 in one group each. For other numbers of candidates, the
    number of passages after the first stage is the largest of 500, 200, 100, 50, 20, 10, 5 and 2 that is at most half
    of that number. The groups of a stage form one round. Passages with equal points keep the order of the first stage.

    Attributes:
        tournaments: Number of parallel tournaments, r in TourRank-r (default: 1). The order of passages within groups
            is random, and the points of all tournaments are added.
    """

    tournaments: int = at_least(1, 1)

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        ids = [candidate.doc_id for candidate in candidates]
        rank = {doc_id: i for i, doc_id in enumerate(ids)}
        random = Random(seed)
        ties: Ties = {}
        points = Counter(dict.fromkeys(ids, 0))
        pools = [ids] * self.tournaments  # the passages of each tournament that remain, in first-stage order
        stages = plan_stages(len(ids), self.window)
        for stage_number, (count, promoted) in enumerate(stages):
            groups = [pool[first::count] for pool in pools for first in range(count)]
            compared_groups = [random.sample(group, len(group)) for group in groups if len(group) > 1]
            # in a single tournament, eliminated passages rank below all passages that remain
            worst = len(pools[0]) if self.tournaments == 1 else len(ids)
            remaining_windows = len(compared_groups) + self.tournaments * sum(
                later_groups for later_groups, _ in stages[stage_number + 1 :]
            )
            windows = tuple(Window(tuple(group), (1, worst)) for group in compared_groups)
            results = iter((yield Round(windows, tied_ranking(ties, _by_points(ids, points)), remaining_windows)))
            rankings = [_rank_group(next(results), rank, ties) if len(group) > 1 else group for group in groups]
            promoted_counts = [promoted // count + (number < promoted % count) for number in range(count)]
            pools = []
            for first in range(0, len(rankings), count):  # for each tournament
                tournament = zip(rankings[first : first + count], promoted_counts, strict=True)
                promoted_ids = [doc_id for ranking, size in tournament for doc_id in ranking[:size]]
                points.update(promoted_ids)
                pools.append(sorted(promoted_ids, key=rank.__getitem__))
        return tied_ranking(ties, _by_points(ids, points))


def plan_stages(length: int, window: int) -> list[tuple[int, int]]:
    """Return the number of groups and the number of passages that advance, for each stage of a tournament.

    Args:
        length: Number of candidates.
        window: Maximum number of passages per group.
    """
    stages: list[tuple[int, int]] = []
    while length > (2 if stages else 1):
        min_groups = ceil(length / window)
        promoted = max(_half_or_less(length), min_groups)  # at least one passage of each group advances
        # prefer groups of equal size with equal numbers of passages that advance, if there are not too many groups
        even_counts = (n for n in range(min_groups, 2 * min_groups) if length % n == 0 and promoted % n == 0)
        stages.append((next(even_counts, min_groups), promoted))
        length = promoted
    return stages


def _half_or_less(length: int) -> int:
    """Return the largest of 1, 2, 5, 10, 20, 50, 100, ... that is at most half of `length`, which is 2 or more."""
    series: Iterator[int] = (step * 10**power for power in range(len(str(length))) for step in (1, 2, 5))
    return max(size for size in series if 2 * size <= length)


def _rank_group(result: WindowResult, rank: dict[str, int], ties: Ties) -> list[str]:
    """Return the passages of a group in the order in which the model ranked them.

    Passages that the model left out come last. These and tied passages keep the order of the first stage (`rank`).
    """
    ranking = record_consensus(ties, result)
    tier = {doc_id: number for number, members in enumerate(ranking.tiers) for doc_id in members}
    return sorted(
        result.window.doc_ids,
        key=lambda doc_id: (
            doc_id not in ranking.ranked_ids,
            tier[doc_id] if doc_id in ranking.ranked_ids else 0,
            rank[doc_id],
        ),
    )


def _by_points(ids: Sequence[str], points: Counter[str]) -> list[str]:
    return sorted(ids, key=lambda doc_id: -points[doc_id])
