"""The values that every other module uses: queries, windows, rankings, requests, responses and results.

Everything here is frozen data or a protocol, except `CallTotals`, which counts. Nothing reads or writes files, and
nothing calls a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, overload


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
    """A passage. `text` is all that the model sees; it starts with the title, if there is one."""

    doc_id: str
    text: str


class PassageSource(Protocol):
    """A source of passages by id: an open corpus, or any other object with this method."""

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """Return the passage of a document, which may depend on the query. Raises `InputError` if there is none."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of a first-stage run. Its rank is its position in the list."""

    doc_id: str
    score: float


Run = Mapping[str, Sequence[Candidate]]
"""`query_id -> candidates, best first`."""


@dataclass(frozen=True, slots=True)
class Window:
    """Passages to be ranked together, in the order in which the prompt presents them.

    `rank_range`: the best and the worst final rank, counted from 1, that this window can still affect. `method`: how
    the passages are ranked, with a listwise prompt or by the likelihood of the query after each passage
    (`window/scorers.py`).
    """

    doc_ids: tuple[str, ...]
    rank_range: tuple[int, int]
    method: Literal["listwise", "likelihood"] = "listwise"


@dataclass(frozen=True, slots=True)
class WindowRanking:
    """One ranking of a window.

    `tiers`: best first; the passages of one tier are tied. Together, the tiers contain all passages of the window.
    `ranked_ids`: the ids that the model itself ranked. Other ids were added afterwards and do not count as comparisons.
    `is_valid`: False if there was no usable answer; `tiers` then has the input order without ties.
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
    """What a strategy receives for a window: its rankings, one per sample (never empty).

    `likelihoods`: for each id, the log-likelihood of the query after the passage; empty for listwise windows.
    """

    window: Window
    rankings: tuple[WindowRanking, ...]
    likelihoods: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Ranking:
    """A ranking of all candidates, best first.

    `tied[i]`: whether passage i is tied with passage i - 1 (`tied[0]` is always False).
    `probability`: for each id, the probability of being in the top 10; None unless the strategy fits a pairwise model.
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
    def untied(cls, doc_ids: Iterable[str]) -> Ranking:
        """Return the ranking of `doc_ids` in the given order, without ties."""
        ids = tuple(doc_ids)
        return cls(ids, (False,) * len(ids))


@dataclass(frozen=True, slots=True)
class Round:
    """All windows of one query that can be ranked at the same time.

    `ranking`: the best ranking so far, which is the result if the run stops here.
    `remaining_windows`: the number of windows of this query that are not ranked yet, including those of this round (an
    estimate if later rounds depend on the answers). The scheduler prefers the query with the most remaining windows.
    """

    windows: tuple[Window, ...]
    ranking: Ranking
    remaining_windows: int


# --- requests to a model and its responses ---

ScoringMethod = Literal["listwise", "likelihood", "combined"]
"""listwise: the model compares the passages of a window. likelihood: the score of each passage is the log-likelihood of
the query. combined: a weighted sum of both and the first-stage score (`strategies/combined.py`)."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The query and the passages of a request. The journal, simulated models and the web page use it; servers do not.

    `doc_ids`: the passages, in the order in which the prompt presents them. `purpose`: the step of ranking that the
    request belongs to, as the journal stores it ("ask", "direct", "close", "likelihood" or "probe").
    """

    query_id: str = ""
    doc_ids: tuple[str, ...] = ()
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a model, independent of the server type.

    `max_tokens`: the limit of reasoning and answer together.
    `reasoning`: None leaves the choice to the model, False requests an answer without reasoning.
    `reasoning_budget`: the limit of reasoning tokens, for servers that support one.
    `prefill`: the beginning of the assistant's message; the response continues it.
    `stop`: strings that end the response.
    `constrain_to_ranking_of`: constrain the response to a ranking of that many passages.
    `logprobs`: request the log-probability of each token.
    `forced_text`: continue the messages' text, without a chat template, with exactly this text, and return the
    log-probability of each of its tokens; sampling options are ignored.
    `sample`: distinguishes repeated requests in the journal.

    A request uses only what the model supports (`Model.capabilities`).
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float | None = 0.5
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    reasoning: bool | None = None
    reasoning_budget: int | None = None
    prefill: str = ""
    stop: tuple[str, ...] = ()
    constrain_to_ranking_of: int | None = None
    logprobs: bool = False
    forced_text: str | None = None
    sample: int = 0
    context: RequestContext = field(default=RequestContext(), compare=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a response.

    Attributes:
        estimated: Whether all counts are estimates of Rank-K, because the server sent none.
        reasoning_estimated: Whether only `reasoning_tokens` is an estimate, because the server did not count reasoning
            tokens separately. It is computed from the fraction of the response's characters that are in the trace.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False
    reasoning_estimated: bool = False

    @property
    def reasoning_is_estimated(self) -> bool:
        """Whether `reasoning_tokens` is an estimate."""
        return self.estimated or self.reasoning_estimated

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cached_tokens + other.cached_tokens,
            self.estimated or other.estimated,
            self.reasoning_estimated or other.reasoning_estimated,
        )


@dataclass(frozen=True, slots=True)
class Response:
    """A response. `reasoning`: the separate reasoning field of the server's response; None if there is none.

    `finish_reason`: the server's value ("stop", "length", ...), or "stopped" if the callback ended the response.
    `tokens`: (text, log-probability) of each token of the answer, if requested and sent; for `forced_text`, without
    tokens that may differ between prompts. `call_key`: the key of the call in the journal. `cached`: whether the
    response comes from the journal, or from an identical request in flight.
    """

    text: str
    reasoning: str | None = None
    finish_reason: str | None = None
    usage: Usage = Usage()
    seconds: float = 0.0
    tokens: tuple[tuple[str, float], ...] | None = None
    call_key: str = field(default="", compare=False)
    cached: bool = field(default=False, compare=False)


@dataclass(slots=True)
class CallTotals:
    """Totals over the calls of a window, a query, a run or a file. `totals += other` adds other totals.

    `calls`: the number of calls. `new_calls`: the number of calls that were sent to the model now, without
    cache hits. `model_seconds`: the total time of the responses. `saved_tokens`: the number of tokens that were not
    generated, because repetitive responses were stopped. `repairs`: parse repairs and truncations by kind.
    """

    calls: int = 0
    new_calls: int = 0
    usage: Usage = Usage()
    model_seconds: float = 0.0
    saved_tokens: int = 0
    repairs: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: CallTotals) -> Self:
        self.calls += other.calls
        self.new_calls += other.new_calls
        self.usage += other.usage
        self.model_seconds += other.model_seconds
        self.saved_tokens += other.saved_tokens
        self.repairs.update(other.repairs)
        return self


class StreamChunk(NamedTuple):
    """A part of a streamed response. Either field may be empty."""

    reasoning: str
    text: str


OnChunk = Callable[[StreamChunk], bool | None]
"""Called with each chunk when it arrives. If it returns True, the response is stopped."""


# --- what `Reranker.rank` receives and returns ---

Document = str | Mapping[str, Any]
"""A text, or a mapping with the key "text" and any other keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A ranked document.

    Attributes:
        index: The document's position in the input, from 0.
        text: The text that was ranked.
        rank: The rank, from 1.
        score: 1 / rank.
        tied: Whether the document is tied with the previous hit.
        probability: The probability of being in the top 10; None unless the strategy fits a pairwise model.
        likelihood: The natural logarithm of the probability of the query after this text; None unless the method
            uses it.
        document: The document that the caller passed.
    """

    index: int
    text: str
    rank: int
    score: float
    tied: bool = False
    probability: float | None = None
    likelihood: float | None = None
    document: Document = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class RankedHits(Sequence[Hit]):
    """The hits of a query, best first. It is a sequence that is displayed as a table, also in notebooks.

    Attributes:
        hits: The hits.
        traces: The reasoning traces, one per window in the order of rounds; empty for query likelihood.
        usage: Token counts.
        repairs: Parse repairs and truncations by kind.
        unranked_windows: The number of windows that kept their input order.
        finished: False if time ran out.
        not_compared: The number of documents beyond the reranker's `depth`, which come last in their input order.
    """

    hits: tuple[Hit, ...]
    traces: tuple[str, ...] = ()
    usage: Usage = Usage()
    repairs: Mapping[str, int] = field(default_factory=dict)
    unranked_windows: int = 0
    finished: bool = True
    not_compared: int = 0

    MAX_SHOWN: ClassVar[int] = 10

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __repr__(self) -> str:
        return f"<RankedHits hits={len(self)} completion_tokens={self.usage.completion_tokens}>"

    def __str__(self) -> str:
        rows = [f"{hit.rank:>4}  {_shorten(hit.text, 100)}" for hit in self[: self.MAX_SHOWN]]
        if len(self) > self.MAX_SHOWN:
            rows.append(f" ...  and {len(self) - self.MAX_SHOWN} more")
        return "\n".join(rows) or repr(self)

    def _repr_html_(self) -> str:
        """Return the table that notebooks show."""
        rows = (
            f"<tr><td>{hit.rank}</td><td>{hit.index}</td><td>{escape(_shorten(hit.text, 200))}</td></tr>"
            for hit in self[: self.MAX_SHOWN]
        )
        head = "<tr><th>rank</th><th>index</th><th>text</th></tr>"
        more = f"<p>and {len(self) - self.MAX_SHOWN} more</p>" if len(self) > self.MAX_SHOWN else ""
        return f"<table>{head}{''.join(rows)}</table>{more}"


def _shorten(text: str, max_characters: int) -> str:
    """Return `text` on one line, without control characters, truncated to `max_characters`."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= max_characters else line[: max_characters - 1] + "…"


def keep_input_order(texts: Sequence[str], documents: Sequence[Document] = (), top_n: int | None = None) -> RankedHits:
    """Return the documents in their input order, as the result if time ran out before any window was ranked."""
    hits = tuple(
        Hit(index=i, text=text, rank=i + 1, score=1 / (i + 1), document=document)
        for i, (text, document) in enumerate(zip(texts, documents or texts, strict=True))
    )
    return RankedHits(hits[:top_n], finished=False)
