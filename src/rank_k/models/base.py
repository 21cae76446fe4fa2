"""The seam to a language model: one request in, one reply out, text on the way.

A model is anything with the attributes of `Model`. Three are shipped: `http.HttpModel` (every real
server, the embedded one included), `simulated.SimulatedJudge` and `scripted.ScriptedModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from rank_k.types import Message

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


class Capabilities(NamedTuple):
    """What a model can be asked for beyond a plain reply. A reply must still be checked: servers forget.

    `prefill`: to go on from a given beginning; `grammar`: to be held to a ranking; `budget`: to keep a
    reasoning budget itself; `logprobs`: to tell probabilities; `thinks`: it has a thought of its own, else
    one is begun for it (with `prefill`); `spells`: to say a given text and tell how probable it was.
    """

    prefill: bool = False
    grammar: bool = False
    reasoning_budget: bool = False
    logprobs: bool = False
    reasons: bool = True
    scores_given_text: bool = False


class Model(Protocol):
    @property
    def name(self) -> str:
        """How people know it."""

    @property
    def identity(self) -> str:
        """All that decides the answers apart from the request: part of the journal's key."""

    @property
    def context_length(self) -> int:
        """How many tokens prompt, thought and answer share. Known once `prepare` has run."""

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked for. Known once `prepare` has run."""

    async def prepare(self) -> None:
        """Find out what must be known before the first request. Raises `ModelError` or `InputError`."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        """The request as sent (JSON): the other part of the journal's key."""

    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        """Ask once. Cancelling the call cancels the server's work. Raises `ModelError`."""

    async def count_tokens(self, text: str) -> int | None:
        """Exact number of tokens of `text`, or None where this model cannot tell."""

    async def close(self) -> None:
        """Free what is held. The model is not asked again."""
