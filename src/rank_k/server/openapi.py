"""The OpenAPI 3.1 document of the HTTP API."""

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
    "description": "one event of the stream",
}
_RERANK_ERRORS = {
    "400": "the body is not a JSON object in UTF-8",
    "401": "missing or unknown key",
    "403": "the request comes from a web page whose origin is not allowed",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "the Content-Type is not application/json",
    "421": "an unknown name in the Host header",
    "422": "a field of the request is invalid; its name is in `field`",
    "429": "too many requests are waiting; try again after the number of seconds in Retry-After",
    "500": "internal server error",
    "502": "the model server cannot be reached or failed",
    "503": "the server is stopping, or the model server is overloaded",
    "504": "the model did not respond in time",
    "507": "the response could not be stored in the journal",
}
_JOURNAL_ERRORS = {
    "403": "the server requires no key and other machines can reach it",
    "404": "the journal has no such query or window",
    "422": _RERANK_ERRORS["422"],
    "503": "the journal cannot be read",
}


def build_openapi(limits: Limits, *, needs_key: bool) -> dict[str, Any]:
    """Return the document as JSON values.

    Args:
        limits: The limits of the server.
        needs_key: Whether clients need a key.
    """
    from rank_k import __version__

    request, texts_request, response = map(_reference, ("RerankRequest", "TextsRequest", "RerankResponse"))
    scores = {"type": "array", "items": _reference("Score")}
    paths = {
        "/v2/rerank": _rerank("v2_rerank", request, response),
        "/v1/rerank": _rerank("v1_rerank", request, response),
        "/rerank": _rerank("rerank", {"anyOf": [request, texts_request]}, {"anyOf": [response, scores]}),
        "/v1/models": _get("the model of this server"),
        "/health": _get("whether the server is running", security=[]),
        "/metrics": _get("metrics for Prometheus", {"text/plain": {"schema": _STRING}}),
        "/openapi.json": _get("this document"),
        "/demo": _get("the questions of the demo and their passages"),
    }
    for path, view in journal_viewer.VIEWS.items():
        paths[path] = _get(view.summary, errors=_JOURNAL_ERRORS, parameters=schema.query_parameters(view.parameters))
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Rank-K",
            "version": __version__,
            "description": "Listwise reranking with a reasoning language model",
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
        "summary": "rank documents by relevance to a query",
        "operationId": operation_id,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": _responses(
            "the ranking, or server-sent events if the request has `stream`", content, _RERANK_ERRORS
        ),
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
