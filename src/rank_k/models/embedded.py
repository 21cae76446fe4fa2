"""The embedded model: a llama.cpp server of our own on this machine, spoken to like any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rank_k.errors import ConnectionFailed, RequestRejected, ServerError
from rank_k.models.base import Capabilities
from rank_k.models.http import HttpModel
from rank_k.models.launch import EmbeddedServer
from rank_k.models.weights import DEFAULT_WEIGHTS, Weights, checksum, locate
from rank_k.types import OnChunk, Request, Response


class EmbeddedModel:
    """`weights`: a name of `weights.NAMED`, the path of a GGUF file, or weights that were located; `adapter`: a LoRA
    adapter for them, as a GGUF file. The server starts in `prepare`.

    `context_length`: tokens per slot, None for what the weights were made for; `concurrency`: requests answered at a
    time; `threads`: None for all cores. Raises `MissingWeights` at once if the weights are not on this machine.
    """

    def __init__(
        self,
        weights: str | Path | Weights = DEFAULT_WEIGHTS,
        *,
        adapter: Path | None = None,
        context_length: int | None = None,
        concurrency: int = 1,
        threads: int | None = None,
    ) -> None:
        self.weights: Weights = weights if isinstance(weights, Weights) else locate(weights)
        self.adapter = adapter
        self.identity = self.weights.sha256 + ("" if adapter is None else f"+{checksum(adapter)}")
        self.name = self.weights.name
        self.default_method = self.weights.default_method
        self.context_length = context_length or self.weights.context_length or 8192
        self._concurrency = concurrency
        self._threads = threads
        self._server: EmbeddedServer | None = None
        self._http_model: HttpModel | None = None

    async def prepare(self) -> None:
        if self._http_model is not None:
            return
        self._server = await EmbeddedServer.start(
            self.weights,
            context_length=self.context_length,
            concurrency=self._concurrency,
            threads=self._threads,
            adapter=self.adapter,
        )
        self.context_length = self._server.context_length  # what it really has
        self._http_model = HttpModel(
            self._server.url,
            self.name,
            api_key=self._server.api_key,
            server_type="llamacpp",
            context_length=self.context_length,
            identity=self.identity,
            reasons=False,  # the chat template has no reasoning: Rank-K opens it with a prefill
        )

    @property
    def _prepared_model(self) -> HttpModel:
        assert self._http_model is not None, "prepare() comes before the first request"
        return self._http_model

    @property
    def capabilities(self) -> Capabilities:
        return self._prepared_model.capabilities

    def request_body(self, request: Request) -> Mapping[str, Any]:
        return self._prepared_model.request_body(request)

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        try:
            return await self._prepared_model.complete(request, on_chunk)
        except (ConnectionFailed, ServerError) as error:
            if self._server is not None and (failure := self._server.failure) is not None:
                raise RequestRejected(
                    f"the embedded server has died: {failure}", "start again; calls made are kept"
                ) from error
            raise

    async def count_tokens(self, text: str) -> int | None:
        return await self._prepared_model.count_tokens(text)

    async def close(self) -> None:
        if self._http_model is not None:
            await self._http_model.close()
        if self._server is not None:
            await self._server.close()
        self._http_model = self._server = None
