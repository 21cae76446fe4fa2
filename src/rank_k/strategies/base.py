"""The strategy protocol and its validation, and what strategies share: argument checks, seeds and ties."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any, Protocol, TypeAlias
from zlib import crc32

from rank_k.errors import InputError, StrategyError
from rank_k.strategies.aggregate import consensus_ranking
from rank_k.types import Candidate, Ranking, Round, WindowRanking, WindowResult

StrategyGenerator: TypeAlias = Generator[Round, list[WindowResult], Ranking]
"""Yields rounds; is sent, for each, the results of its windows in their order; returns the ranking."""


class Strategy(Protocol):
    """A generator function: candidates, best first by the first stage, and a seed -> rounds.

    It is deterministic: the same candidates, seed and results give the same rounds and the same ranking, so
    that work can be resumed, simulated and stopped. Every ranking, of a round and returned, is a permutation
    of the candidates. A window has two passages or more.
    """

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator: ...


def run_validated(strategy: Strategy, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
    """Run `strategy` and check every round and the ranking: a passage that it forgets would be lost unnoticed.

    Raises `StrategyError` where the strategy breaks its protocol, `InputError` for a candidate that is listed twice.
    """
    ids = frozenset(candidate.doc_id for candidate in candidates)
    if len(ids) < len(candidates):
        raise InputError("a document stands twice among the candidates of a query", "name each once")
    name = getattr(strategy, "__name__", type(strategy).__name__)

    def strategy_error(violation: str) -> StrategyError:
        return StrategyError(
            f"strategy {name}: {violation}",
            "test it with rank_k.strategies.testing.check_strategy (docs/how-to/strategies.md)",
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
    """Return how a round over the candidates `ids` breaks the protocol of strategies; empty if it does not."""
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
    """Return how a ranking, a round's or the last one, breaks the protocol; empty if it does not."""
    if not isinstance(ranking, Ranking):
        return f"a {type(ranking).__name__} where a Ranking must be"
    if len(ranking.doc_ids) != len(ids) or set(ranking.doc_ids) != ids:
        return "a ranking must list every candidate exactly once, and nothing else"
    if len(ranking.tied) != len(ranking.doc_ids):
        return "tied must have one entry per passage"
    return ""


def lowest_rank(doc_ids: Iterable[str], ranked: Iterable[str]) -> int:
    """Return the rank, from 1, of the last of `doc_ids` in the list `ranked`, which holds them all."""
    id_set = set(doc_ids)
    return max(rank for rank, doc_id in enumerate(ranked, 1) if doc_id in id_set)


def query_seed(query_id: str) -> int:
    """Return the seed of a query, which depends on nothing but its id."""
    return crc32(query_id.encode("utf-8", "surrogateescape"))


Ties: TypeAlias = dict[str, tuple[int, int]]
"""By passage id: the number of the last window that ranked it, and its tier there.

Two neighbors of a ranking are tied if the last window that ranked each is the same one and it put both into one tier.
"""


def record_consensus(ties: Ties, result: WindowResult) -> WindowRanking:
    """Return the consensus of the samples of a window, and record its tiers in `ties` if it is valid."""
    ranking = consensus_ranking(result)
    if ranking.is_valid:
        record_ties(ties, ranking)
    return ranking


def record_ties(ties: Ties, ranking: WindowRanking) -> None:
    """Record the tiers of a window's ranking in `ties`."""
    number = 1 + max((number for number, _ in ties.values()), default=0)
    for tier_number, tier in enumerate(ranking.tiers):
        for doc_id in tier:
            if doc_id in ranking.ranked_ids:
                ties[doc_id] = (number, tier_number)
            else:
                ties.pop(doc_id, None)


def tied_ranking(ties: Ties, doc_ids: Iterable[str]) -> Ranking:
    """Return the ranking of `doc_ids` in the given order, with their ties."""
    ids = tuple(doc_ids)
    tiers = [ties.get(doc_id) for doc_id in ids]
    return Ranking(ids, tuple(i > 0 and tier is not None and tier == tiers[i - 1] for i, tier in enumerate(tiers)))


def at_least(minimum: int, default: int, reason: str = "") -> Any:
    """Return a field of `WindowStrategy` that must be `minimum` or more. `reason` is the end of the remedy."""
    return field(default=default, metadata={"minimum": minimum, "reason": reason})


@dataclass(frozen=True)
class WindowStrategy:
    """The base of strategies that show windows of at most `window` passages.

    Raises `InputError` if a field made by `at_least` is below its minimum.
    """

    window: int = at_least(2, 20, ": a single passage cannot be compared")

    def __post_init__(self) -> None:
        for option in fields(self):
            value, minimum = getattr(self, option.name), option.metadata.get("minimum")
            if minimum is not None and value < minimum:
                raise InputError(f"{option.name} is {value}", f"give {minimum} or more{option.metadata['reason']}")


def check_first_stage_weight(weight: float) -> None:
    if not isfinite(weight) or weight < 0:
        raise InputError(f"first_stage_weight is {weight}", "give 0 (ignore the first stage) or more; 1 is usual")
