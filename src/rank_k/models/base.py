"""The interface to a language model: one request in, one response out, text while it streams.

A model is anything with the attributes of `Model`: `http.HttpModel` (every real server, the embedded one included),
`simulated.SimulatedModel` and `mock.ScriptedModel`. Models that wrap another one add to it what all models need:
`CachedModel(StopOnRepetition(HttpModel(...)))`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from rank_k.types import OnChunk, Request, Response


class Capabilities(NamedTuple):
    """What a model supports beyond a plain response. Responses are checked all the same: servers ignore fields.

    `prefill`: continue a given beginning of the answer. `grammar`: constrained decoding to a ranking.
    `reasoning_budget`: limit the reasoning tokens itself. `logprobs`: return log-probabilities. `reasons`: its chat
    template has reasoning; otherwise Rank-K opens it with `prefill`. `scores_given_text`: return the probability of a
    given text.
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
        """All that decides the answers apart from the request. It is part of the key of calls in the journal."""

    @property
    def context_length(self) -> int:
        """How many tokens prompt, reasoning and answer share. Known once `prepare` has run."""

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked for. Known once `prepare` has run."""

    async def prepare(self) -> None:
        """Find out what must be known before the first request. Raises `ModelError` or `InputError`."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        """The request as sent (JSON): the other part of the journal's key."""

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        """Send one request. Cancelling the call cancels the server's work. Raises `ModelError`."""

    async def count_tokens(self, text: str) -> int | None:
        """Return the exact number of tokens of `text`, or None where this model cannot count them."""

    async def close(self) -> None:
        """Free all resources. No request follows."""


class ModelWrapper(Model):
    """A model that passes everything on to `model`. A subclass changes `complete`."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def identity(self) -> str:
        return self.model.identity

    @property
    def context_length(self) -> int:
        return self.model.context_length

    @property
    def capabilities(self) -> Capabilities:
        return self.model.capabilities

    async def prepare(self) -> None:
        await self.model.prepare()

    def request_body(self, request: Request) -> Mapping[str, Any]:
        return self.model.request_body(request)

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        return await self.model.complete(request, on_chunk)

    async def count_tokens(self, text: str) -> int | None:
        return await self.model.count_tokens(text)

    async def close(self) -> None:
        await self.model.close()
