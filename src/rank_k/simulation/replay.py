"""Strategies before a simulated judge: what they are worth and what they cost, without a model and without waiting.

A strategy never knows who answers. Here a `SimulatedModel` does, query by query, and its replies are read as any
model's are, malformed ones too. Every seed is another judge; all strategies meet the same ones, so that their
differences are theirs and not the judges'. Nothing here reads files or clocks, and the same arguments give the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import log2, nan, sqrt
from statistics import fmean, stdev
from sys import maxsize
from typing import NamedTuple

from rank_k.models.simulated import Grades, Noise, SimulatedModel
from rank_k.strategies.base import Strategy, StrategyGenerator, query_seed, run_validated
from rank_k.types import Candidate, Ranking, Run, Window, WindowRanking, WindowResult
from rank_k.window.parsing import parse_ranking

CUTOFF = 10
"""Quality is nDCG at this rank."""

_MAX_UNPARSED_SIZE = 1_000
"""Passages in a window up to which a well-formed answer is certain to be read as it was written."""


class RoundSizes(NamedTuple):
    """A round as it costs: how many passages each of its windows shows, and how many windows were still to come,
    these included."""

    sizes: tuple[int, ...]
    remaining_windows: int


class ReplayedQuery(NamedTuple):
    """One query from its first round to its ranking."""

    doc_ids: tuple[str, ...]
    rounds: tuple[RoundSizes, ...]


def replay_strategy(
    strategy: Strategy, candidates: Sequence[Candidate], query_id: str, judge: SimulatedModel
) -> ReplayedQuery:
    """What `strategy` makes of `candidates` (best first) with `judge`, under the seed that the engine gives it."""
    generator = run_validated(strategy, candidates, query_seed(query_id))
    rounds: list[RoundSizes] = []
    try:
        current_round = next(generator)
        while True:
            rounds.append(
                RoundSizes(
                    tuple(len(window.doc_ids) for window in current_round.windows), current_round.remaining_windows
                )
            )
            current_round = generator.send(
                [WindowResult(window, (judge_window(judge, query_id, window),)) for window in current_round.windows]
            )
    except StopIteration as stop:
        return ReplayedQuery(stop.value.doc_ids, _intern_rounds(tuple(rounds)))


@lru_cache(maxsize=4096)
def _intern_rounds(rounds: tuple[RoundSizes, ...]) -> tuple[RoundSizes, ...]:
    """`rounds` as they are: most queries take the same ones, which need not be kept for each."""
    return rounds


def without_calls(candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
    """The strategy that asks nothing: the first stage as it is, to compare with."""
    yield from ()
    return Ranking.untied(candidate.doc_id for candidate in candidates)


def judge_window(judge: SimulatedModel, query_id: str, window: Window) -> WindowRanking:
    """The judge's answer as the order that it is read as.

    Malformed answers go through the parser; the others need not, since it reads them as they were meant.
    """
    ids = window.doc_ids
    if len(ids) <= _MAX_UNPARSED_SIZE and judge.is_well_formed(query_id, ids):
        return WindowRanking(
            tuple(tuple(ids[i] for i in tier) for tier in judge.tiers(query_id, ids)), frozenset(ids), True
        )
    answer = parse_ranking(judge.ranking_text(query_id, ids), len(ids), finish_reason="stop")
    tiers = tuple(tuple(ids[i - 1] for i in tier) for tier in answer.tiers)
    return WindowRanking(tiers, frozenset(ids[i - 1] for i in answer.ranked_numbers), answer.is_valid)


def ndcg(doc_ids: Sequence[str], grades: Mapping[str, int], cutoff: int = CUTOFF) -> float:
    """nDCG with linear gains and the ideal of all judgments, as trec_eval has it; 0 where nothing is relevant."""

    def gain(ordered: Iterable[int]) -> float:
        return sum(max(grade, 0) / log2(rank + 1) for rank, grade in enumerate(ordered, 1))

    ideal = gain(sorted(grades.values(), reverse=True)[:cutoff])
    return gain(grades.get(doc_id, 0) for doc_id in doc_ids[:cutoff]) / ideal if ideal else 0.0


@dataclass
class SimulationTotals:
    """One strategy before the judges of one kind of noise.

    `ndcg`: by query, the nDCG@10 with each judge. `plays`: the rounds of all queries, one list per judge.
    """

    ndcg: dict[str, list[float]] = field(default_factory=dict)
    plays: list[list[tuple[RoundSizes, ...]]] = field(default_factory=list)

    def update(self, other: SimulationTotals) -> None:
        """Take in what other judges found."""
        for query_id, values in other.ndcg.items():
            self.ndcg.setdefault(query_id, []).extend(values)
        self.plays.extend([_intern_rounds(rounds) for rounds in play] for play in other.plays)

    def by_query(self) -> dict[str, float]:
        """nDCG@10, the mean over judges."""
        return {query_id: fmean(values) for query_id, values in self.ndcg.items()}

    @property
    def quality(self) -> Mean:
        return Mean.of(list(self.by_query().values()))

    @property
    def calls(self) -> float:
        """Per query, as the others."""
        return self._per_query(sum(len(round_sizes.sizes) for round_sizes in self._rounds()))

    @property
    def passages(self) -> float:
        return self._per_query(sum(sum(round_sizes.sizes) for round_sizes in self._rounds()))

    @property
    def rounds(self) -> float:
        return self._per_query(sum(1 for _ in self._rounds()))

    @property
    def most(self) -> tuple[int, int]:
        """The most calls and the most rounds that any query took."""
        query_rounds = [rounds for play in self.plays for rounds in play]
        calls = (sum(len(round_sizes.sizes) for round_sizes in rounds) for rounds in query_rounds)
        return max(calls, default=0), max(map(len, query_rounds), default=0)

    def _rounds(self) -> Iterator[RoundSizes]:
        return (round_sizes for play in self.plays for rounds in play for round_sizes in rounds)

    def _per_query(self, total: int) -> float:
        return total / max(sum(map(len, self.plays)), 1)


class Cell(NamedTuple):
    """What was simulated, by its names."""

    run: str
    noise: str
    strategy: str


def simulate(
    runs: Mapping[str, Run],
    grades: Grades,
    strategies: Mapping[str, Strategy],
    noises: Mapping[str, Noise],
    seed: int,
    depth: int = maxsize,
) -> dict[Cell, SimulationTotals]:
    """All strategies on the first `depth` candidates of all runs, the rest following as it is, before the judges of
    one seed.

    Over every query of `grades`; one for which a run has nothing counts as zero, as when runs are evaluated.
    """
    judges = {name: SimulatedModel(grades, noise, seed=seed) for name, noise in noises.items()}
    cells = {Cell(*cell_names): SimulationTotals(plays=[[]]) for cell_names in product(runs, judges, strategies)}
    # query by query: the judges of a seed remember what they drew for the last few
    for query_id, query_grades in grades.items():
        for cell, totals in cells.items():
            candidates = runs[cell.run].get(query_id, ())
            replayed = replay_strategy(strategies[cell.strategy], candidates[:depth], query_id, judges[cell.noise])
            tail = tuple(candidate.doc_id for candidate in candidates[depth:][:CUTOFF])
            totals.ndcg[query_id] = [ndcg(replayed.doc_ids + tail, query_grades)]
            totals.plays[0].append(replayed.rounds)
    return cells


class Mean(NamedTuple):
    """Over queries, with its standard error (NaN for a single query)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        return cls(fmean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else nan)

    @property
    def interval(self) -> tuple[float, float]:
        """That holds the true mean 95 times of a hundred, by the normal distribution."""
        return self.mean - 1.96 * self.error, self.mean + 1.96 * self.error


def difference(ours: SimulationTotals, baseline: SimulationTotals) -> Mean:
    """Of nDCG@10, paired by query after averaging over the same judges."""
    our_ndcg, baseline_ndcg = ours.by_query(), baseline.by_query()
    return Mean.of([our_ndcg[query_id] - baseline_ndcg[query_id] for query_id in baseline_ndcg])
