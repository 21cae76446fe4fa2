"""A model that replays given responses, for tests and documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rank_k.errors import ModelError
from rank_k.models.base import Capabilities
from rank_k.types import OnChunk, Request, Response, StreamChunk


class ScriptedModel:
    """A model that returns given responses.

    Args:
        responses: The responses in order, or a function that returns the response to a request. A response is a text, a
            `Response`, or an exception to raise.
        context_length: The context length in tokens.
        tokens: A function that counts the tokens of a text (default: the model cannot count tokens).
        capabilities: The capabilities of the model.

    Attributes:
        history: The requests so far.

    A request raises `ModelError` if no response is left.
    """

    name = "scripted"
    identity = "scripted"

    def __init__(
        self,
        responses: Iterable[str | Response | Exception] | Callable[[Request], str | Response | Exception],
        *,
        context_length: int = 32_768,
        tokens: Callable[[str], int] | None = None,
        capabilities: Capabilities = Capabilities(),
    ) -> None:
        remaining = iter(()) if callable(responses) else iter(responses)
        self._respond = responses if callable(responses) else lambda request: next(remaining, None)
        self._count_tokens = tokens
        self.capabilities = capabilities
        self.context_length = context_length
        self.history: list[Request] = []

    async def prepare(self) -> None:
        """Do nothing."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        return {
            "messages": [list(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "reasoning": request.reasoning,
            "budget": request.reasoning_budget,
            "prefill": request.prefill,
            "ranking_of": request.constrain_to_ranking_of,
            "spelling": request.forced_text,
        }

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        self.history.append(request)
        scripted = self._respond(request)
        if scripted is None:
            raise ModelError("ScriptedModel has no response left", "give it more responses")
        if isinstance(scripted, Exception):
            raise scripted
        response = Response(scripted, finish_reason="stop") if isinstance(scripted, str) else scripted
        if on_chunk is not None and on_chunk(StreamChunk(response.reasoning or "", response.text)):
            return Response(response.text, response.reasoning, "stopped", response.usage, response.seconds)
        return response

    async def count_tokens(self, text: str) -> int | None:
        return None if self._count_tokens is None else self._count_tokens(text)

    async def close(self) -> None:
        """Do nothing."""
