"""A model that plays back replies: for tests, documentation and trying things out without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rank_k.errors import ModelError
from rank_k.models.base import Capabilities
from rank_k.types import OnChunk, Request, Response, StreamChunk


class ScriptedModel:
    """Answers with `replies` in turn, or with what a function of the request returns.

    A reply may be a text, a `Reply`, or an exception, which is raised. `history` holds the requests asked. When
    the script is at its end, asking raises `ModelError`.
    """

    name = "scripted"
    identity = "scripted"

    def __init__(
        self,
        replies: Iterable[str | Response | Exception] | Callable[[Request], str | Response | Exception],
        *,
        context_length: int = 32_768,
        tokens: Callable[[str], int] | None = None,
        abilities: Capabilities = Capabilities(),
    ) -> None:
        self._reply = replies if callable(replies) else None
        self._script = iter(()) if callable(replies) else iter(replies)
        self._tokens = tokens
        self.capabilities = abilities
        self.context_length = context_length
        self.history: list[Request] = []

    async def prepare(self) -> None:
        """Nothing to find out."""

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

    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        self.history.append(request)
        found = self._reply(request) if self._reply is not None else next(self._script, None)
        if found is None:
            raise ModelError("the script is at its end", "give ScriptedModel more replies")
        if isinstance(found, Exception):
            raise found
        reply = Response(found, finish_reason="stop") if isinstance(found, str) else found
        if on_text is not None and on_text(StreamChunk(reply.reasoning or "", reply.text)):
            return Response(reply.text, reply.reasoning, "stopped", reply.usage, reply.seconds)
        return reply

    async def count_tokens(self, text: str) -> int | None:
        return None if self._tokens is None else self._tokens(text)

    async def close(self) -> None:
        """Nothing to free."""
