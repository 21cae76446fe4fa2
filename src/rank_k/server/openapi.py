"""What the API takes and gives, as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from rank_k.server import journal_viewer, schema
from rank_k.server.config import Limits

_STRING = {"type": "string"}
_JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_ERROR = {
    "type": "object",
    "properties": {"message": _STRING, "detail": _STRING, "field": _STRING},
    "required": ["message", "detail"],
}
_EVENT = {
    "type": "object",
    "properties": {"event": {"enum": ["window", "trace", "order", "ranking", "result", "error"]}, "data": _STRING},
    "required": ["event", "data"],
    "description": "each event",
}
_RERANK_ERRORS = {
    "400": "no JSON object in UTF-8",
    "401": "no key, or none that is known",
    "403": "a page of another origin",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "not application/json",
    "421": "an unknown name in the Host header",
    "422": "a field is not what it should be",
    "429": "too many requests wait; Retry-After says when to come again",
    "500": "the server failed",
    "502": "the model cannot be had",
    "503": "the server is stopping, or the model's is overloaded",
    "504": "the model did not answer in time",
    "507": "the answer could not be kept",
}
_JOURNAL_ERRORS = {
    "403": "without keys, the journal is shown on this machine only",
    "404": "there is no such query or window",
    "422": _RERANK_ERRORS["422"],
    "503": "the journal cannot be read",
}


def build_openapi(limits: Limits, *, needs_key: bool) -> dict[str, Any]:
    """Return the document for a server with these limits."""
    from rank_k import __version__

    request, texts_request, response = map(_reference, ("RerankRequest", "TextsRequest", "RerankResponse"))
    scores = {"type": "array", "items": _reference("Score")}
    paths = {
        "/v2/rerank": _rerank("v2_rerank", request, response),
        "/v1/rerank": _rerank("v1_rerank", request, response),
        "/rerank": _rerank("rerank", {"anyOf": [request, texts_request]}, {"anyOf": [response, scores]}),
        "/v1/models": _get("the model behind this server"),
        "/health": _get("alive", security=[]),
        "/metrics": _get("counters for Prometheus", {"text/plain": {"schema": _STRING}}),
        "/openapi.json": _get("this document"),
        "/demo": _get("the demo's questions and their passages"),
    }
    for path, view in journal_viewer.VIEWS.items():
        paths[path] = _get(view.summary, errors=_JOURNAL_ERRORS, parameters=schema.query_parameters(view.parameters))
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Rank-K",
            "version": __version__,
            "description": "Listwise reranking, see docs/how-to/serve.md",
        },
        "paths": paths,
        "components": {"schemas": {**schema.component_schemas(limits), "Error": _ERROR}},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _rerank(operation_id: str, request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": response}, "text/event-stream": {"schema": _EVENT}}
    operation = {
        "summary": "order documents by their relevance to a query",
        "operationId": operation_id,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": _responses("the ranking; with `stream`, server-sent events", content, _RERANK_ERRORS),
    }
    return {"post": operation}


def _get(
    summary: str,
    content: dict[str, Any] = _JSON_OBJECT,
    errors: dict[str, str] | None = None,
    **details: Any,
) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": _responses(summary, content, errors or {}), **details}}


def _responses(description: str, content: dict[str, Any], errors: dict[str, str]) -> dict[str, Any]:
    error_content = {"application/json": {"schema": _reference("Error")}}
    return {
        "200": {"description": description, "content": content},
        **{status: {"description": text, "content": error_content} for status, text in errors.items()},
    }
