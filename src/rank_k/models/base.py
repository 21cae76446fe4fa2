"""The interface to a language model: a request, its response, and the chunks of the response while it streams.

A model is any object that implements `Model`. Rank-K contains `http.HttpModel` (for every server, including the
embedded one), `simulated.SimulatedModel` and `mock.ScriptedModel`. Wrappers add features to any model, for example
`CachedModel(StopOnRepetition(HttpModel(...)))`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from rank_k.types import OnChunk, Request, Response


class Capabilities(NamedTuple):
    """The optional features that a model supports.

    Rank-K still checks the effect of a feature on the response, because servers ignore unknown fields.

    Attributes:
        prefill: Whether the model can continue a given beginning of the answer.
        grammar: Whether the server can constrain the answer to a ranking.
        reasoning_budget: Whether the server can limit the number of reasoning tokens.
        logprobs: Whether the server returns the log-probabilities of the generated tokens.
        reasons: Whether the chat template supports reasoning. If not, Rank-K opens the reasoning with a prefill.
        scores_given_text: Whether the server can return the probability of a given text.
    """

    prefill: bool = False
    grammar: bool = False
    reasoning_budget: bool = False
    logprobs: bool = False
    reasons: bool = True
    scores_given_text: bool = False


class Model(Protocol):
    """A language model."""

    @property
    def name(self) -> str:
        """The name of the model, as shown to users."""

    @property
    def identity(self) -> str:
        """A text that identifies what determines the responses, besides the request. Part of the journal's keys."""

    @property
    def context_length(self) -> int:
        """The number of tokens that prompt, reasoning and answer share. Known after `prepare`."""

    @property
    def capabilities(self) -> Capabilities:
        """What the model supports. Known after `prepare`."""

    async def prepare(self) -> None:
        """Get ready for requests: start or query the server. Raises `ModelError` or `InputError`."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        """Return the JSON that is sent for a request. It is part of the journal's keys."""

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        """Send a request and return its response.

        If the call is cancelled, the server stops generating.

        Args:
            request: The request.
            on_chunk: Called with each chunk of the response. The response ends early if it returns True.

        Raises:
            ModelError: If there is no response.
        """

    async def count_tokens(self, text: str) -> int | None:
        """Return the exact number of tokens of `text`, or None if this model cannot count tokens."""

    async def close(self) -> None:
        """Free all resources. The model cannot be used after this call."""


class ModelWrapper(Model):
    """A model that delegates all calls to `model`. Subclasses override `complete`."""

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
