"""What a strategy is, and what goes with every one: the seed of a query, and which neighbors are tied."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from typing import Protocol, TypeAlias
from zlib import crc32

from rank_k.errors import InputError, StrategyError
from rank_k.types import Candidate, Ranking, Round, WindowRanking, WindowResult

StrategyGenerator: TypeAlias = Generator[Round, list[WindowResult], Ranking]
"""Yields rounds; is sent, for each, the outcomes of its windows in their order; returns the ranking."""


class Strategy(Protocol):
    """Candidates, best first by the first stage, and a seed -> rounds.

    Deterministic: the same candidates, seed and outcomes give the same rounds and the same ranking, so
    that work can be resumed, simulated and stopped. Every ranking, of a round and returned, is a permutation
    of the candidates. A window has two passages or more.
    """

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator: ...


def run_validated(strategy: Strategy, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
    """The steps of `strategy`, which raise `StrategyError` where it breaks a promise: a passage that it forgets would
    be lost from the ranking, and nobody would notice. Raises `InputError` for a candidate that stands twice."""
    ids = frozenset(candidate.doc_id for candidate in candidates)
    if len(ids) < len(candidates):
        raise InputError("a document stands twice among the candidates of a query", "name each once")
    name = getattr(strategy, "__name__", type(strategy).__name__)

    def strategy_error(violation: str) -> StrategyError:
        return StrategyError(
            f"strategy {name}: {violation}",
            "test it with rank_k.strategies.testing.check_strategy (docs/strategies.md)",
        )

    try:
        generator = strategy(candidates, seed)
    except TypeError as error:
        raise strategy_error(f"it cannot be called with candidates and a seed ({error})") from error
    if not isinstance(generator, Generator):
        raise strategy_error("it is no generator: it must yield rounds and return a ranking")
    with closing(generator):
        try:
            next_round = next(generator)
            while True:
                if violation := round_violation(next_round, ids):
                    raise strategy_error(violation)
                next_round = generator.send((yield next_round))
        except StopIteration as stop:
            if violation := ranking_violation(stop.value, ids):
                raise strategy_error(violation) from None
            ranking: Ranking = stop.value
            return ranking


def round_violation(candidate_round: object, ids: AbstractSet[str]) -> str:
    """What a round over the candidates `ids` does not keep of the promises of a strategy; empty if it keeps them."""
    if not isinstance(candidate_round, Round):
        return f"a {type(candidate_round).__name__} where a Round must be"
    if not candidate_round.windows:
        return "a round without windows: yield only what is to be asked"
    for window in candidate_round.windows:
        if len(window.doc_ids) < 2:
            return "a window with fewer than two passages asks nothing"
        window_ids = set(window.doc_ids)
        if len(window_ids) < len(window.doc_ids):
            return "a passage stands twice in a window"
        if not window_ids <= ids:
            return "a window holds an id that is no candidate"
    return ranking_violation(candidate_round.ranking, ids)


def ranking_violation(ranking: object, ids: AbstractSet[str]) -> str:
    """The same of a ranking, a round's or the last one."""
    if not isinstance(ranking, Ranking):
        return f"a {type(ranking).__name__} where a Ranking must be"
    if len(ranking.doc_ids) != len(ids) or set(ranking.doc_ids) != ids:
        return "a ranking must list every candidate exactly once, and nothing else"
    if len(ranking.tied) != len(ranking.doc_ids):
        return "tied must have one entry per passage"
    return ""


def lowest_rank(doc_ids: Iterable[str], ranked: Iterable[str]) -> int:
    """The rank, from 1, of the last of `doc_ids` in the list `ranked`, which holds them all."""
    id_set = set(doc_ids)
    return max(rank for rank, doc_id in enumerate(ranked, 1) if doc_id in id_set)


def query_seed(query_id: str) -> int:
    """The seed of a query: the same whoever asks, today and tomorrow."""
    return crc32(query_id.encode("utf-8", "surrogateescape"))


class TieTracker:
    """Remembers, per passage, the tier it last stood in, to tell which neighbors of a ranking are tied.

    Two neighbors are tied if the last window that ranked each is the same one and it put both into one tier.
    """

    def __init__(self) -> None:
        self._last_tier: dict[str, tuple[int, int]] = {}
        self._ranking_count = 0

    def record(self, ranking: WindowRanking) -> None:
        self._ranking_count += 1
        for tier_number, tier in enumerate(ranking.tiers):
            for doc_id in tier:
                if doc_id in ranking.ranked_ids:
                    self._last_tier[doc_id] = (self._ranking_count, tier_number)
                else:
                    self._last_tier.pop(doc_id, None)

    def ranking(self, doc_ids: Iterable[str]) -> Ranking:
        ids = tuple(doc_ids)
        tiers = [self._last_tier.get(doc_id) for doc_id in ids]
        tied = tuple(i > 0 and tiers[i] is not None and tiers[i] == tiers[i - 1] for i in range(len(ids)))
        return Ranking(ids, tied)


def check_window_size(window: int) -> None:
    if window < 2:
        raise InputError(f"window is {window}", "give at least 2: a single passage cannot be compared")
