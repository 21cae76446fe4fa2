"""A ranking as its readers expect it: Cohere's and Jina's in one object, Text Embeddings Inference's as a bare list."""

from __future__ import annotations

import json
from typing import Any

from rank_k.server.requests import RerankRequest
from rank_k.types import Hit, RankedHits


def ranking_response(wanted: RerankRequest, hits: RankedHits, model: str, name: str) -> Any:
    """What `wanted`, the request called `name`, is answered with. Scores are 1 / rank: within (0, 1] and strictly
    decreasing."""
    if wanted.bare_list:
        return [_bare(hit, wanted.return_documents) for hit in hits]
    usage = hits.usage
    told: dict[str, Any] = {
        "id": name,
        "object": "rerank",
        "model": model,
        "results": [_result(hit, wanted.return_documents) for hit in hits[: wanted.top_n]],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
        "meta": {
            "api_version": {"version": "2"},
            "tokens": {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens},
            "warnings": response_warnings(hits),
        },
        "finished": hits.finished,
        "unranked_windows": hits.unranked_windows,
        "repairs": {kind: number for kind, number in sorted(hits.repairs.items()) if number},
    }
    if wanted.return_trace:
        told["traces"] = list(hits.traces)
    return told


def to_json_bytes(value: Any) -> bytes:
    """As JSON in ASCII: halves of surrogate pairs, which UTF-8 cannot hold, come back as they were sent."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _result(hit: Hit, with_document: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"index": hit.index, "relevance_score": hit.score}
    if hit.tied:
        told["tied"] = True
    if with_document:
        told["document"] = {"text": hit.text}
    return told


def _bare(hit: Hit, with_text: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"index": hit.index, "score": hit.score}
    return {**told, "text": hit.text} if with_text else told


def response_warnings(hits: RankedHits) -> list[str]:
    """What a reader should know before trusting the ranking."""
    found = []
    if not hits.finished:
        found.append("the deadline came first: this is the best ranking so far")
    if hits.unranked_windows:
        found.append(f"{hits.unranked_windows} windows had no usable answer and kept their order")
    if hits.not_compared:
        compared = len(hits) - hits.not_compared
        found.append(f"only the first {compared} of {len(hits)} documents were compared: see --depth")
    return found
