"""Run strategies on simulated models, and compute their quality and cost without calling a real model.

A `SimulatedModel` ranks the windows, and its answers are parsed like any model's answers. Each seed gives a different
simulated model. All strategies are compared with the same simulated models. Results are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import nan, sqrt
from statistics import fmean, stdev
from sys import maxsize
from typing import NamedTuple

from rank_k.evaluation.measures import ndcg
from rank_k.models.simulated import Grades, Noise, SimulatedModel
from rank_k.strategies.base import Strategy, StrategyGenerator, query_seed, run_validated
from rank_k.types import Candidate, Ranking, Round, Run, Window, WindowRanking, WindowResult
from rank_k.window.parsing import parse_ranking

_MAX_UNPARSED_SIZE = 1_000
"""The largest window for which well-formed answers are not parsed, because parsing would not change them."""


class RoundSizes(NamedTuple):
    """A round's number of passages in each window, and the number of windows that remained before the round."""

    sizes: tuple[int, ...]
    remaining_windows: int


class ReplayedQuery(NamedTuple):
    """The final ranking of a query, and its rounds."""

    doc_ids: tuple[str, ...]
    rounds: tuple[RoundSizes, ...]


def run_strategy(
    strategy: Strategy,
    candidates: Sequence[Candidate],
    query_id: str,
    rank_round: Callable[[Round], list[WindowResult]],
) -> tuple[list[Round], Ranking]:
    """Run `strategy` for one query, with the same seed as in the engine.

    Args:
        strategy: The strategy.
        candidates: The candidates, best first.
        query_id: The query. It determines the seed.
        rank_round: Returns the results of the windows of a round.

    Returns:
        The rounds and the final ranking.
    """
    generator = run_validated(strategy, candidates, query_seed(query_id))
    rounds: list[Round] = []
    try:
        rounds.append(next(generator))
        while True:
            rounds.append(generator.send(rank_round(rounds[-1])))
    except StopIteration as stop:
        return rounds, stop.value


def replay_strategy(
    strategy: Strategy, candidates: Sequence[Candidate], query_id: str, judge: SimulatedModel
) -> ReplayedQuery:
    """Run `strategy` on `candidates`. The simulated model `judge` ranks the windows.

    Args:
        strategy: The strategy.
        candidates: The candidates, best first.
        query_id: The query.
        judge: The simulated model.

    Returns:
        The final ranking and the rounds.
    """

    def rank_round(current: Round) -> list[WindowResult]:
        return [WindowResult(window, (judge_window(judge, query_id, window),)) for window in current.windows]

    rounds, ranking = run_strategy(strategy, candidates, query_id, rank_round)
    sizes = (
        RoundSizes(tuple(len(window.doc_ids) for window in current.windows), current.remaining_windows)
        for current in rounds
    )
    return ReplayedQuery(ranking.doc_ids, _intern_rounds(tuple(sizes)))


@lru_cache(maxsize=4096)
def _intern_rounds(rounds: tuple[RoundSizes, ...]) -> tuple[RoundSizes, ...]:
    """Return an existing value that equals `rounds`, to save memory. Most queries have the same rounds."""
    return rounds


def without_calls(candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
    """Keep the order of the first stage. This strategy without windows is a baseline."""
    yield from ()
    return Ranking.untied(candidate.doc_id for candidate in candidates)


def judge_window(judge: SimulatedModel, query_id: str, window: Window) -> WindowRanking:
    """Return the ranking of a window by the simulated model `judge`. Only malformed answers go through the parser."""
    ids = window.doc_ids
    if len(ids) <= _MAX_UNPARSED_SIZE and judge.is_well_formed(query_id, ids):
        tiers = tuple(tuple(ids[i] for i in tier) for tier in judge.tiers(query_id, ids))
        return WindowRanking(tiers, frozenset(ids), True)
    answer = parse_ranking(judge.ranking_text(query_id, ids), len(ids), finish_reason="stop")
    tiers = tuple(tuple(ids[i - 1] for i in tier) for tier in answer.tiers)
    return WindowRanking(tiers, frozenset(ids[i - 1] for i in answer.ranked_numbers), answer.is_valid)


@dataclass
class SimulationTotals:
    """The quality and cost of one strategy with one or more simulated models.

    Attributes:
        ndcg: For each query, the nDCG@10 with each simulated model.
        plays: For each simulated model, the rounds of each query.
    """

    ndcg: dict[str, list[float]] = field(default_factory=dict)
    plays: list[list[tuple[RoundSizes, ...]]] = field(default_factory=list)

    def update(self, other: SimulationTotals) -> None:
        """Add the results with different simulated models."""
        for query_id, values in other.ndcg.items():
            self.ndcg.setdefault(query_id, []).extend(values)
        self.plays.extend([_intern_rounds(rounds) for rounds in play] for play in other.plays)

    def by_query(self) -> dict[str, float]:
        """Return the nDCG@10 of each query, averaged over the simulated models."""
        return {query_id: fmean(values) for query_id, values in self.ndcg.items()}

    @property
    def quality(self) -> Mean:
        return Mean.of(list(self.by_query().values()))

    @property
    def calls(self) -> float:
        """The mean number of calls per query. `passages` and `rounds` are also means per query."""
        return self._per_query(lambda round_sizes: len(round_sizes.sizes))

    @property
    def passages(self) -> float:
        return self._per_query(lambda round_sizes: sum(round_sizes.sizes))

    @property
    def rounds(self) -> float:
        return self._per_query(lambda round_sizes: 1)

    @property
    def most(self) -> tuple[int, int]:
        """The largest number of calls and the largest number of rounds of any query."""
        query_rounds = [rounds for play in self.plays for rounds in play]
        calls = (sum(len(round_sizes.sizes) for round_sizes in rounds) for rounds in query_rounds)
        return max(calls, default=0), max(map(len, query_rounds), default=0)

    def _per_query(self, count: Callable[[RoundSizes], int]) -> float:
        """Sum `count` over the rounds of each query, and return the mean over all queries and simulated models."""
        query_rounds = [rounds for play in self.plays for rounds in play]
        return sum(count(round_sizes) for rounds in query_rounds for round_sizes in rounds) / max(len(query_rounds), 1)


class Cell(NamedTuple):
    """The names of the run, the noise and the strategy of one result."""

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
    """Simulate every combination of run, noise and strategy with one seed.

    Args:
        runs: Runs by name.
        grades: The relevance judgments, from which the simulated models rank. Judged queries that are missing from a
            run score 0, as in an evaluation.
        strategies: Strategies by name.
        noises: The noise of each simulated model, by name.
        seed: The seed of the simulated models.
        depth: The number of candidates to rerank (default: all). Other candidates follow in their order.

    Returns:
        The totals of each combination.
    """
    judges = {name: SimulatedModel(grades, noise, seed=seed) for name, noise in noises.items()}
    cells = {Cell(*cell_names): SimulationTotals(plays=[[]]) for cell_names in product(runs, judges, strategies)}
    # The outer loop is over queries, because a simulated model caches the errors of only the last few queries.
    for query_id, query_grades in grades.items():
        for cell, totals in cells.items():
            candidates = runs[cell.run].get(query_id, ())
            replayed = replay_strategy(strategies[cell.strategy], candidates[:depth], query_id, judges[cell.noise])
            doc_ids = [*replayed.doc_ids, *(candidate.doc_id for candidate in candidates[depth:])]
            ranked_grades = [query_grades.get(doc_id, 0) for doc_id in doc_ids]
            totals.ndcg[query_id] = [ndcg(ranked_grades, query_grades.values())]
            totals.plays[0].append(replayed.rounds)
    return cells


class Mean(NamedTuple):
    """A mean over queries and its standard error (NaN for a single query)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        return cls(fmean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else nan)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval by the normal distribution."""
        return self.mean - 1.96 * self.error, self.mean + 1.96 * self.error


def difference(ours: SimulationTotals, baseline: SimulationTotals) -> Mean:
    """Return the difference in nDCG@10 between two strategies, paired by query.

    The values of each query are averaged over the simulated models first, which must be the same for both strategies.
    """
    our_ndcg, baseline_ndcg = ours.by_query(), baseline.by_query()
    return Mean.of([our_ndcg[query_id] - baseline_ndcg[query_id] for query_id in baseline_ndcg])
