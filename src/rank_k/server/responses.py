"""A ranking as its readers expect it: Cohere's and Jina's in one object, Text Embeddings Inference's as a bare list."""

from __future__ import annotations

import json
from typing import Any

from rank_k.server.requests import RerankRequest
from rank_k.types import Hit, RankedHits


def ranking_response(request: RerankRequest, hits: RankedHits, model: str, request_id: str) -> Any:
    """Return the response to `request` as JSON values. Scores are 1 / rank: within (0, 1] and strictly decreasing."""
    if request.bare_list:
        return [_bare_result(hit, request.return_documents) for hit in hits]
    usage = hits.usage
    body: dict[str, Any] = {
        "id": request_id,
        "object": "rerank",
        "model": model,
        "results": [_result(hit, request.return_documents) for hit in hits[: request.top_n]],
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
    if request.return_trace:
        body["traces"] = list(hits.traces)
    return body


def to_json_bytes(value: Any) -> bytes:
    """As JSON in ASCII: halves of surrogate pairs, which UTF-8 cannot hold, come back as they were sent."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _result(hit: Hit, with_document: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"index": hit.index, "relevance_score": hit.score}
    if hit.tied:
        row["tied"] = True
    if with_document:
        row["document"] = {"text": hit.text}
    return row


def _bare_result(hit: Hit, with_text: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"index": hit.index, "score": hit.score}
    return {**row, "text": hit.text} if with_text else row


def response_warnings(hits: RankedHits) -> list[str]:
    """What a reader should know before trusting the ranking."""
    warnings = []
    if not hits.finished:
        warnings.append("the deadline came first: this is the best ranking so far")
    if hits.unranked_windows:
        warnings.append(f"{hits.unranked_windows} windows had no usable answer and kept their order")
    if hits.not_compared:
        compared = len(hits) - hits.not_compared
        warnings.append(f"only the first {compared} of {len(hits)} documents were compared: see --depth")
    return warnings
