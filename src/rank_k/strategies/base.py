"""The protocol of strategies, its validation, and functions that strategies share."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Protocol, TypeAlias
from zlib import crc32

from rank_k.errors import InputError, StrategyError
from rank_k.strategies.aggregate import consensus_ranking
from rank_k.types import Candidate, Ranking, Round, WindowRanking, WindowResult

StrategyGenerator: TypeAlias = Generator[Round, list[WindowResult], Ranking]
"""Yields rounds, receives the results of each round's windows in their order, and returns the final ranking."""


class Strategy(Protocol):
    """A function that ranks the candidates of a query, in rounds of windows.

    Its arguments are the candidates, sorted by the first stage (best first), and a seed for random choices. It returns
    a generator. A strategy must be deterministic: the same candidates, seed and results lead to the same rounds and
    the same ranking, so that an interrupted run can be resumed. Every ranking is a permutation of the candidates. A
    window has at least two passages.
    """

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator: ...


def run_validated(strategy: Strategy, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
    """Run a strategy and validate its rounds and its ranking, so that a strategy cannot silently lose passages.

    Args:
        strategy: The strategy.
        candidates: The candidates of a query, best first.
        seed: The seed for random choices.

    Raises:
        StrategyError: If the strategy violates the protocol.
        InputError: If a candidate appears twice.
    """
    ids = frozenset(candidate.doc_id for candidate in candidates)
    if len(ids) < len(candidates):
        raise InputError("a document appears twice among the candidates of a query", "list each document once")
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
        raise strategy_error("it is not a generator: it must yield rounds and return a ranking")
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
    """Return how a round violates the protocol, or an empty string.

    Args:
        candidate_round: What the strategy yielded.
        ids: The ids of all candidates.
    """
    if not isinstance(candidate_round, Round):
        return f"it yields a {type(candidate_round).__name__} instead of a Round"
    if not candidate_round.windows:
        return "it yields a round without windows"
    for window in candidate_round.windows:
        if len(window.doc_ids) < 2:
            return "a window has fewer than two passages"
        window_ids = set(window.doc_ids)
        if len(window_ids) < len(window.doc_ids):
            return "a passage appears twice in a window"
        if not window_ids <= ids:
            return "a window has an id that is not a candidate"
    return ranking_violation(candidate_round.ranking, ids)


def ranking_violation(ranking: object, ids: AbstractSet[str]) -> str:
    """Return how the ranking of a round or the final ranking violates the protocol, or an empty string.

    Args:
        ranking: The ranking.
        ids: The ids of all candidates.
    """
    if not isinstance(ranking, Ranking):
        return f"its ranking is a {type(ranking).__name__} instead of a Ranking"
    if len(ranking.doc_ids) != len(ids) or set(ranking.doc_ids) != ids:
        return "a ranking must have every candidate exactly once"
    if len(ranking.tied) != len(ranking.doc_ids):
        return "`tied` of a ranking must have one entry per passage"
    return ""


def query_seed(query_id: str) -> int:
    """Return the seed of a query, which depends only on its id."""
    return crc32(query_id.encode("utf-8", "surrogateescape"))


Ties: TypeAlias = dict[str, tuple[int, int]]
"""For each passage, by id: the number of the last window that ranked it, and its tier in that window.

Two neighbors of a ranking are tied if the same window ranked both last, in the same tier.
"""


def record_consensus(ties: Ties, result: WindowResult) -> WindowRanking:
    """Return the consensus of a window's samples, and record its tiers in `ties` if it is valid."""
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
    """Return the ranking of `doc_ids` in the given order, with the recorded ties."""
    ids = tuple(doc_ids)
    tiers = [ties.get(doc_id) for doc_id in ids]
    return Ranking(ids, tuple(i > 0 and tier is not None and tier == tiers[i - 1] for i, tier in enumerate(tiers)))


def at_least(minimum: int, default: float, reason: str = "") -> Any:
    """Return a field of a `WindowStrategy` that has a minimum.

    Args:
        minimum: The smallest valid value.
        default: The default value.
        reason: The end of the error message: why the value must not be smaller.
    """
    return field(default=default, metadata={"minimum": minimum, "reason": reason})


@dataclass(frozen=True)
class WindowStrategy:
    """The base class of strategies whose windows have at most `window` passages (default: 20).

    Raises:
        InputError: If a field that was created by `at_least` is below its minimum.
    """

    window: int = at_least(2, 20, ": a single passage cannot be compared")

    def __post_init__(self) -> None:
        for option in fields(self):
            value, minimum = getattr(self, option.name), option.metadata.get("minimum")
            if minimum is not None and not minimum <= value < inf:
                raise InputError(f"{option.name} is {value}", f"give {minimum} or more{option.metadata['reason']}")
