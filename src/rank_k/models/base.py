"""The interface to a language model: a request, its response, and the chunks of the response while it streams.

A model is anything with the attributes of `Model`: `http.HttpModel` (every real server, the embedded one included),
`simulated.SimulatedModel` and `mock.ScriptedModel`. Wrappers add what all models need:
`CachedModel(StopOnRepetition(HttpModel(...)))`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from rank_k.types import OnChunk, Request, Response


class Capabilities(NamedTuple):
    """What a model supports beyond a plain response. Responses are still checked, since servers ignore unknown fields.

    Attributes:
        prefill: It continues a given beginning of the answer.
        grammar: It constrains the answer to a ranking.
        reasoning_budget: It limits the reasoning tokens.
        logprobs: It returns the log-probabilities of its tokens.
        reasons: Its chat template contains reasoning. For other models, Rank-K opens the reasoning with a prefill.
        scores_given_text: It returns the probability of a given text.
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
        """The name that is shown to users."""

    @property
    def identity(self) -> str:
        """Everything but the request that determines the responses. It is part of the journal's keys."""

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

        Cancelling the call cancels the server's work.

        Args:
            request: The request.
            on_chunk: Called with each chunk of the response. The response ends early if it returns True.

        Raises:
            ModelError: If there is no response.
        """

    async def count_tokens(self, text: str) -> int | None:
        """Return the exact number of tokens of `text`, or None if this model cannot count them."""

    async def close(self) -> None:
        """Free all resources. The model cannot be used afterwards."""


class ModelWrapper(Model):
    """A model that delegates everything to `model`. Subclasses change `complete`."""

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
