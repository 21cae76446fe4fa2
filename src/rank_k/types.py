"""The words of the package as frozen values: what is ranked, what is asked, what came back.

Everything here is data. Nothing computes, reads or writes; every other module speaks in these terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple


class Message(NamedTuple):
    """One turn of a conversation with a model."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Query:
    query_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """What a window holds. `text` is all the model sees: a title, where there is one, leads it."""

    doc_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of a first-stage run. Rank is the position in the list it stands in."""

    doc_id: str
    score: float


Run = Mapping[str, Sequence[Candidate]]
"""`query_id -> candidates, best first`."""


@dataclass(frozen=True, slots=True)
class Window:
    """The passages of one question, in the order in which they are shown.

    `reach` is the (best, worst) final rank, counted from 1, that this window can still affect. `by`: what orders them,
    the model's comparison, or the likelihood of the query after each (`likelihood.py`).
    """

    doc_ids: tuple[str, ...]
    rank_range: tuple[int, int]
    method: Literal["listwise", "likelihood"] = "listwise"


@dataclass(frozen=True, slots=True)
class WindowRanking:
    """One answer to one window.

    `tiers`: best first, the passages of one tier tied; always a partition of the window.
    `placed`: the ids that the model itself ranked. The rest were filled in and are no evidence.
    `ranked`: False where there was no usable answer; `tiers` is then the input order, one by one.
    """

    tiers: tuple[tuple[str, ...], ...]
    ranked_ids: frozenset[str]
    is_valid: bool

    @property
    def doc_ids(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(self.tiers))

    @classmethod
    def unranked(cls, window: Window) -> WindowRanking:
        return cls(tuple((doc_id,) for doc_id in window.doc_ids), frozenset(), False)


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What a strategy is sent for a window: its orders, one per sample (never empty).

    `likelihoods`: by id, the log-probability of the query after the passage, where windows are ordered by that.
    """

    window: Window
    rankings: tuple[WindowRanking, ...]
    likelihoods: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Ranking:
    """A ranking of all candidates, best first.

    `tied[i]` says that passage i was tied with passage i - 1 (`tied[0]` is always False).
    `probability` (P(among the top 10), by id) exists only where a pairwise fit made it.
    """

    doc_ids: tuple[str, ...]
    tied: tuple[bool, ...]
    probability: Mapping[str, float] | None = None

    @property
    def tiers(self) -> tuple[tuple[str, ...], ...]:
        tiers: list[list[str]] = []
        for doc_id, tied in zip(self.doc_ids, self.tied, strict=True):
            if tied:
                tiers[-1].append(doc_id)
            else:
                tiers.append([doc_id])
        return tuple(map(tuple, tiers))

    @classmethod
    def of(cls, doc_ids: Iterable[str]) -> Ranking:
        """The ranking without ties that lists `doc_ids` as they come."""
        ids = tuple(doc_ids)
        return cls(ids, (False,) * len(ids))


@dataclass(frozen=True, slots=True)
class Round:
    """All windows of one query that can be asked at the same time.

    `ranking`: the best so far, a valid answer should the work stop here.
    `windows_left`: how many windows this query will still ask, these included (an estimate where
    later rounds depend on the answers). Whoever schedules serves the longest queue first.
    """

    windows: tuple[Window, ...]
    ranking: Ranking
    remaining_windows: int
