"""The values that every other module uses: queries, windows, rankings, requests, responses and results.

Everything here is frozen data. Nothing reads or writes files, and nothing calls a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple, overload


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


# --- requests to a model and its responses ---

ScoringMethod = Literal["listwise", "likelihood", "combined"]
"""Passages side by side and a reasoned answer about them, or each by itself (`likelihood.py`); or first the one and
from there the other (`cascade.py`)."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request is about. Never sent to a server: for judges that simulate, logs and pages."""

    query_id: str
    doc_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model, before any server's dialect.

    `max_tokens` covers thought and answer together. `think` None leaves the model its own way, False
    asks it to answer directly. `budget`: reasoning tokens, for servers that keep one themselves. `prefill`:
    what the assistant's turn says already; the reply goes on from there. `stop`: texts that end the reply.
    `ranking_of`: hold the reply to a ranking of so many passages. `logprobs`: tell each token's probability.
    `spelling`: go on from the messages' text as it stands, without a chat template, by exactly this, and tell how
    probable each token of it was; how to sample then goes without saying.
    `sample` tells repeated questions apart in the journal. What a model cannot do (`Model.abilities`) it
    is not asked for.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float | None = 0.5
    top_p: float | None = None
    seed: int | None = None
    reasoning: bool | None = None
    reasoning_budget: int | None = None
    prefill: str = ""
    stop: tuple[str, ...] = ()
    constrain_to_ranking_of: int | None = None
    logprobs: bool = False
    forced_text: str | None = None
    sample: int = 0
    context: RequestContext = field(default=RequestContext("", ()), compare=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply. `estimated` says that the server did not count and we did, roughly."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cached_tokens + other.cached_tokens,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Response:
    """What came back. `reasoning` is the separate field where the server has one, else None.

    `finish_reason` is the server's word ("stop", "length", ...); "stopped" where `on_text` said stop.
    `tokens`: (text, log-probability) of each token of the answer, where that was asked for and told; of a spelling, of
    those tokens that are the same behind every prompt.
    """

    text: str
    reasoning: str | None = None
    finish_reason: str | None = None
    usage: Usage = Usage()
    seconds: float = 0.0
    tokens: tuple[tuple[str, float], ...] | None = None


class StreamChunk(NamedTuple):
    """A piece of a reply while it streams. Either part may be empty."""

    reasoning: str
    text: str


OnChunk = Callable[[StreamChunk], bool | None]
"""Called with every piece as it arrives. Returning True ends the reply there."""


# --- what `Reranker.rank` returns ---


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
