"""A simulated model that records what it is asked, so that tests can compare prompts with the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rank_k.models.simulated import SimulatedModel
from rank_k.types import OnChunk, Request, Response


class RecordedPrompt(NamedTuple):
    query_id: str
    doc_ids: tuple[str, ...]
    text: str


class RecordingModel(SimulatedModel):
    """The noiseless simulated model. `prompts` are those of all requests, in order."""

    def __init__(self, grades: Mapping[str, Mapping[str, int]], context_length: int = 32_768) -> None:
        super().__init__(grades, context_length=context_length)
        self.prompts: list[RecordedPrompt] = []

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        context = request.context
        self.prompts.append(RecordedPrompt(context.query_id, context.doc_ids, request.messages[-1].content))
        return await super().complete(request, on_chunk)
