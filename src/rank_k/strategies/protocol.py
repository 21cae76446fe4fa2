"""What a strategy is, and what goes with every one: the seed of a query, and which neighbours are tied."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol, TypeAlias
from zlib import crc32

from rank_k.errors import InputError
from rank_k.records import Candidate, Order, Outcome, Ranking, Round

Steps: TypeAlias = Generator[Round, list[Outcome], Ranking]
"""Yields rounds; is sent, for each, the outcomes of its windows in their order; returns the ranking."""


class Strategy(Protocol):
    """Candidates, best first by the first stage, and a seed -> rounds.

    Deterministic: the same candidates, seed and outcomes give the same rounds and the same ranking, so
    that work can be resumed, simulated and stopped. Every ranking, of a round and returned, is a permutation
    of the candidates. A window has two passages or more.
    """

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> Steps: ...


def lowest_rank(doc_ids: Iterable[str], ranked: Iterable[str]) -> int:
    """The rank, from 1, of the last of `doc_ids` in the list `ranked`, which holds them all."""
    wanted = set(doc_ids)
    return max(rank for rank, doc_id in enumerate(ranked, 1) if doc_id in wanted)


def seed_of(query_id: str) -> int:
    """The seed of a query: the same whoever asks, today and tomorrow."""
    return crc32(query_id.encode("utf-8", "surrogateescape"))


class Ties:
    """Remembers, per passage, the tier it last stood in, to tell which neighbours of a ranking are tied.

    Two neighbours are tied if the last window that ranked each is the same one and it put both into one tier.
    """

    def __init__(self) -> None:
        self._tier_of: dict[str, tuple[int, int]] = {}
        self._orders = 0

    def record(self, order: Order) -> None:
        self._orders += 1
        for number, tier in enumerate(order.tiers):
            for doc_id in tier:
                if doc_id in order.placed:
                    self._tier_of[doc_id] = (self._orders, number)
                else:
                    self._tier_of.pop(doc_id, None)

    def ranking(self, doc_ids: Iterable[str]) -> Ranking:
        ids = tuple(doc_ids)
        tiers = [self._tier_of.get(doc_id) for doc_id in ids]
        tied = tuple(i > 0 and tiers[i] is not None and tiers[i] == tiers[i - 1] for i in range(len(ids)))
        return Ranking(ids, tied)


def check_window(window: int) -> None:
    if window < 2:
        raise InputError(f"window is {window}", "give at least 2: a single passage cannot be compared")
