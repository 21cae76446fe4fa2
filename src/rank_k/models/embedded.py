"""The embedded model: a llama.cpp server of our own on this machine, which Rank-K uses like any other server."""

from __future__ import annotations

from pathlib import Path

from rank_k.errors import ConnectionFailed, RequestRejected, ServerError
from rank_k.models.http import HttpModel
from rank_k.models.launch import EmbeddedServer
from rank_k.models.weights import DEFAULT_WEIGHTS, Weights, checksum, locate
from rank_k.types import OnChunk, Request, Response


class EmbeddedModel(HttpModel):
    """A model whose server starts in `prepare` and ends with `close`.

    Its chat template has no reasoning: Rank-K opens it with a prefill.

    Args:
        weights: a name of `weights.NAMED`, the path of a GGUF file, or weights that were located.
        adapter: a LoRA adapter for them, as a GGUF file.
        context_length: tokens per request (default: what the weights were trained for).
        concurrency: requests at a time.
        threads: default: all cores.

    Raises:
        MissingWeights: if the weights are not on this machine.
        FormatError: if a file is not a GGUF file.
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
        self.default_method = self.weights.default_method
        self._concurrency = concurrency
        self._threads = threads
        self._server: EmbeddedServer | None = None
        super().__init__(
            "localhost",  # the address is known when the server has started
            self.weights.name,
            server_type="llamacpp",
            context_length=context_length or self.weights.context_length or 8192,
            identity=self.weights.sha256 + ("" if adapter is None else f"+{checksum(adapter)}"),
            reasons=False,
        )

    async def prepare(self) -> None:
        if self._server is None:
            self._server = await EmbeddedServer.start(
                self.weights,
                context_length=self.context_length,
                concurrency=self._concurrency,
                threads=self._threads,
                adapter=self.adapter,
            )
            self.url, self._api_key = self._server.url, self._server.api_key
            self._context_length = self._server.context_length  # what it really has

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        try:
            return await super().complete(request, on_chunk)
        except (ConnectionFailed, ServerError) as error:
            if self._server is not None and (failure := self._server.failure) is not None:
                raise RequestRejected(
                    f"the embedded server has died: {failure}", "start again; calls made are kept"
                ) from error
            raise

    async def close(self) -> None:
        await super().close()
        if self._server is not None:
            await self._server.close()
        self._server = None
