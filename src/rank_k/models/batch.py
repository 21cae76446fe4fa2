"""A model whose requests are collected for batch files instead of being sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from rank_k.errors import ResponsePending
from rank_k.journal import call_key
from rank_k.models.http import HttpModel
from rank_k.types import OnChunk, Request


class BatchModel(HttpModel):
    """A model that is not connected to a server.

    Its requests, and therefore the journal's keys, are those of an `HttpModel` with the same name and server type.
    Token counts are estimated.

    Args:
        name: The model's name on the server.
        server_type: A name in `SERVER_TYPES` (default: "plain", which uses only fields of OpenAI's API).
        context_length: The context length in tokens (default: `DEFAULT_CONTEXT_LENGTH`).
        revision: The revision of the model, as part of the journal's keys.
    """

    def __init__(
        self, name: str, *, server_type: str = "plain", context_length: int | None = None, revision: str = ""
    ) -> None:
        super().__init__(
            "http://batch.invalid/v1", name, server_type=server_type, context_length=context_length, revision=revision
        )
        self.add_request: Callable[[str, Request, Mapping[str, Any]], None] = _ignore
        """Called with the key, the request and its body. Raises `ModelError` if the server has refused this request."""

    async def prepare(self) -> None:
        """Do nothing: there is no server to query."""

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> NoReturn:
        """Pass the request to `add_request`, and raise `ResponsePending`."""
        body = self.request_body(request)
        self.add_request(call_key(self.identity, body, request.sample), request, body)
        raise ResponsePending("the request waits in a batch file")

    async def count_tokens(self, text: str) -> None:
        """Return None: there is no tokenizer."""


def _ignore(key: str, request: Request, body: Mapping[str, Any]) -> None:
    pass
