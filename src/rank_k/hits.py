"""What `Reranker.rank` returns: the documents in their new order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from rank_k.models.base import Usage


@dataclass(frozen=True, slots=True)
class Hit:
    """One document in its new place. `index` is its place in the input (from 0), `rank` counts from 1.

    `score` is 1 / rank. `tied` says that the model put it level with the hit before. `probability` (of being
    among the ten best) is None unless the strategy fits one. `likelihood` (natural logarithm of the probability of the
    query after this text) is None unless that is what was ranked by.
    """

    index: int
    text: str
    rank: int
    score: float
    tied: bool
    probability: float | None = None
    likelihood: float | None = None


@dataclass(frozen=True, slots=True)
class RankedHits(Sequence[Hit]):
    """All documents, best first.

    `traces`: the model's reasoning, one per window in the order asked; none where likelihood was ranked by. `usage`:
    tokens. `repairs`: what had to be mended, by kind. `unranked`: windows that kept their input order. `finished`:
    False if time ran out. `beyond`: how many lay beyond the reranker's `depth`: not compared, they come last, in the
    order in which they came.
    """

    hits: tuple[Hit, ...]
    traces: tuple[str, ...] = ()
    usage: Usage = Usage()
    repairs: Mapping[str, int] = field(default_factory=dict)
    unranked_windows: int = 0
    finished: bool = True
    not_compared: int = 0

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)


def unranked_hits(texts: Sequence[str]) -> RankedHits:
    """The documents as they are, where time ran out before any was looked at."""
    return RankedHits(tuple(Hit(i, text, i + 1, 1 / (i + 1), False) for i, text in enumerate(texts)), finished=False)
