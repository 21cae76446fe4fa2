"""The embedded model: a llama.cpp server on this machine that Rank-K starts and uses like any other server."""

from __future__ import annotations

from pathlib import Path

from rank_k.errors import ConnectionFailed, RequestRejected, ServerError
from rank_k.models.http import HttpModel
from rank_k.models.launch import EmbeddedServer
from rank_k.models.weights import DEFAULT_WEIGHTS, Weights, checksum, locate
from rank_k.types import OnChunk, Request, Response


class EmbeddedModel(HttpModel):
    """A model whose server is started by `prepare` and ended by `close`.

    Its chat template is assumed not to support reasoning, so Rank-K opens the reasoning with a prefill.

    Args:
        weights: A name in `weights.NAMED`, the path of a GGUF file, or the result of `weights.locate`.
        adapter: A LoRA adapter for the weights, as a GGUF file.
        context_length: The context length in tokens (default: the length that the weights were trained for, or 8,192
            if it is not known).
        concurrency: The maximum number of requests in flight.
        threads: The number of threads (default: all cores).

    Raises:
        MissingWeights: If the weights are not on this machine.
        FormatError: If the weights or the adapter are not a GGUF file.
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
            "localhost",  # the address is known after the server has started
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
            self._context_length = self._server.context_length  # the server may have changed it

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        try:
            return await super().complete(request, on_chunk)
        except (ConnectionFailed, ServerError) as error:
            if self._server is not None and (failure := self._server.failure) is not None:
                raise RequestRejected(
                    f"the embedded server has ended: {failure}", "run the same command again; finished calls are kept"
                ) from error
            raise

    async def close(self) -> None:
        await super().close()
        if self._server is not None:
            await self._server.close()
        self._server = None
