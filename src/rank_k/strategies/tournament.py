"""TourRank: groups, of which the better part goes on to the next stage, and a point for every stage survived.

Chen et al., "TourRank: Utilizing Large Language Models for Documents Ranking with a Tournament-Inspired Strategy"
(arXiv 2406.11678).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from rank_k.errors import InputError
from rank_k.strategies.aggregate import consensus
from rank_k.strategies.base import StrategyGenerator, TieTracker, check_window
from rank_k.types import Candidate, Round, Window, WindowResult


@dataclass(frozen=True)
class Tournament:
    """For 100 candidates and a window of 20 the paper's stages: 100 to 50 in five groups of 20, to 20 in five of 10,
    then to 10, 5 and 2 in one group each. Other lengths go down the same series 500, 200, 100, 50, 20, 10, 5, 2,
    from the first that is no more than half. Groups of a stage are asked side by side.

    `tournaments` (TourRank-r): so many of them, side by side, differ in the order in which groups are shown; their
    points are added. Passages of equal points stand as in the first stage.
    """

    window: int = 20
    tournaments: int = 1

    def __post_init__(self) -> None:
        check_window(self.window)
        if self.tournaments < 1:
            raise InputError(f"tournaments is {self.tournaments}", "give 1 or more")

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        ids = [candidate.doc_id for candidate in candidates]
        rank = {doc_id: i for i, doc_id in enumerate(ids)}
        random = Random(seed)
        ties = TieTracker()
        points = Counter(dict.fromkeys(ids, 0))
        pools = [ids] * self.tournaments  # of each tournament: who is still in it, as the first stage ranks them
        plan = stages(len(ids), self.window)
        for number, (count, promoted) in enumerate(plan):
            groups = [pool[first::count] for pool in pools for first in range(count)]
            asked = [random.sample(group, len(group)) for group in groups if len(group) > 1]
            # with one tournament, who has left it stays below all who are still in it
            worst = len(pools[0]) if self.tournaments == 1 else len(ids)
            left = len(asked) + self.tournaments * sum(groups_then for groups_then, _ in plan[number + 1 :])
            windows = tuple(Window(tuple(group), (1, worst)) for group in asked)
            outcomes = iter((yield Round(windows, ties.ranking(_by_points(ids, points)), left)))
            survivors: list[list[str]] = []
            for pool_number in range(self.tournaments):
                through: list[str] = []
                for place in range(count):
                    group = groups[pool_number * count + place]
                    share = promoted // count + (place < promoted % count)
                    best = _best_first(next(outcomes), rank, ties) if len(group) > 1 else group
                    through.extend(best[:share])
                points.update(through)
                survivors.append(sorted(through, key=rank.__getitem__))
            pools = survivors
        return ties.ranking(_by_points(ids, points))


def stages(length: int, window: int) -> list[tuple[int, int]]:
    """(number of groups, how many passages go on) of each stage of a tournament of `length` passages."""
    found: list[tuple[int, int]] = []
    while length > (2 if found else 1):
        least = ceil(length / window)
        promoted = max(_half(length), least)  # of every group at least one goes on
        # groups of one size with one number to go on, where not too many are needed for that
        even = (n for n in range(least, 2 * least) if length % n == 0 and promoted % n == 0)
        found.append((next(even, least), promoted))
        length = promoted
    return found


def _half(length: int) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, 100, ... that is no more than half of `length`."""
    unit = 1
    while 20 * unit <= length:
        unit *= 10
    return max(step * unit for step in (1, 2, 5) if 2 * step * unit <= length)


def _best_first(outcome: WindowResult, rank: dict[str, int], ties: TieTracker) -> list[str]:
    """The group as the model ranks it; the first stage decides ties, and about those whom the model forgot."""
    order = consensus(outcome)
    if order.is_valid:
        ties.record(order)
    tier = {doc_id: number for number, members in enumerate(order.tiers) for doc_id in members}
    return sorted(
        outcome.window.doc_ids,
        key=lambda doc_id: (
            doc_id not in order.ranked_ids,
            tier[doc_id] if doc_id in order.ranked_ids else 0,
            rank[doc_id],
        ),
    )


def _by_points(ids: Sequence[str], points: Counter[str]) -> list[str]:
    return sorted(ids, key=lambda doc_id: -points[doc_id])
