"""What a listener of streamed responses receives: reasoning and answer apart, for every way to request them."""

from __future__ import annotations

from typing import Any

import pytest

from rank_k.models.base import Capabilities
from rank_k.models.mock import ScriptedModel
from rank_k.reranker import Reranker
from rank_k.types import Response, StreamChunk

DOCUMENTS = ["the sea", "the sky"]


def stream(responses: list[str | Response], capabilities: Capabilities, **options: Any) -> tuple[str, str]:
    """Return all streamed reasoning and all streamed answers of a query."""
    chunks: list[StreamChunk] = []
    model = ScriptedModel(responses, capabilities=capabilities)
    with Reranker(model, concurrency=1, **options) as reranker:
        reranker.rank("why is it blue", DOCUMENTS, on_chunk=lambda round_, window, chunk: chunks.append(chunk))
    return "".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize(
    "response",
    [
        "<think>Passage [2].</think>[2] > [1]",
        "Passage [2].</think>[2] > [1]",
        Response("[2] > [1]", "Passage [2].", "stop"),
    ],
)
def test_rank_streams_reasoning_apart_from_the_answer(response: str | Response) -> None:
    assert stream([response], Capabilities()) == ("Passage [2].", "[2] > [1]")


def test_rank_streams_prefilled_reasoning_as_reasoning() -> None:
    """As for rank-k-nano, whose reasoning Rank-K opens and ends."""
    responses: list[str | Response] = [Response("[1] no\n[2] yes", None, "stop"), "[2] > [1]"]
    capabilities = Capabilities(prefill=True, reasons=False)
    assert stream(responses, capabilities) == ("[1] no\n[2] yes", "[2] > [1]")


def test_rank_without_reasoning_streams_an_answer() -> None:
    assert stream(["The order is [2] > [1]"], Capabilities(), reasoning="off") == ("", "The order is [2] > [1]")
