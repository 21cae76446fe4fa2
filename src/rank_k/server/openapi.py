"""What the API takes and gives, as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from rank_k.server.config import Limits
from rank_k.strategies import STRATEGIES

_INTEGER = {"type": "integer", "minimum": 0}
_NAME = {"type": "string"}


def document(limits: Limits, *, needs_key: bool) -> dict[str, Any]:
    """For a server with these limits."""
    from rank_k import __version__

    texts = {
        "type": "array",
        "maxItems": limits.documents,
        "items": {"anyOf": [_NAME, _object({"text": _NAME}, "text")]},
        "description": f"query and documents together: at most {limits.characters:,} characters",
    }
    ours = {
        "reasoning": _or_null({"anyOf": [{"type": "string", "pattern": _THINK}, {"type": "integer", "minimum": 1}]}),
        "strategy": _or_null({"enum": list(STRATEGIES)}),
        "deadline_seconds": _or_null({"type": "number", "exclusiveMinimum": 0}),
        "return_trace": _or_null({"type": "boolean"}),
    }
    query = {"type": "string", "minLength": 1}
    asked = _object(
        {
            "model": _or_null(_NAME),
            "query": query,
            "documents": texts,
            "top_n": _or_null({**_INTEGER, "description": "0, null or absent: all"}),
            "return_documents": _or_null({"type": "boolean"}),
            "stream": _or_null({"type": "boolean"}),
            **ours,
        },
        "query",
        "documents",
    )
    asked_bare = _object(
        {"query": query, "texts": texts, "return_text": _or_null({"type": "boolean"}), **ours}, "query", "texts"
    )
    paths: dict[str, Any] = {
        path: {"post": _rerank(path, {"$ref": "#/components/schemas/Rerank"}, {"$ref": "#/components/schemas/Ranking"})}
        for path in ("/v2/rerank", "/v1/rerank")
    }
    paths["/rerank"] = {
        "post": _rerank(
            "/rerank",
            {"anyOf": [{"$ref": "#/components/schemas/Rerank"}, {"$ref": "#/components/schemas/RerankTexts"}]},
            {"anyOf": [{"$ref": "#/components/schemas/Ranking"}, {"$ref": "#/components/schemas/Scores"}]},
        )
    }
    paths["/v1/models"] = {"get": _got("the model behind this server", "application/json", {"type": "object"})}
    paths["/health"] = {"get": {**_got("alive", "application/json", {"type": "object"}), "security": []}}
    paths["/metrics"] = {"get": _got("counters for Prometheus", "text/plain", {"type": "string"})}
    paths["/openapi.json"] = {"get": _got("this document", "application/json", {"type": "object"})}
    paths["/demo"] = {"get": _got("the demo's questions and their passages", "application/json", {"type": "object"})}
    paths |= {f"/journal/{what}": {"get": _looked(*told)} for what, told in _LOOKS.items()}
    told: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Rank-K", "version": __version__, "description": "Listwise reranking, see docs/serving.md"},
        "paths": paths,
        "components": {
            "schemas": {
                "Rerank": asked,
                "RerankTexts": asked_bare,
                "Ranking": _RANKING,
                "Scores": {"type": "array", "items": _object({"index": _INTEGER, "score": _SCORE}, "index", "score")},
                "Error": _object({"message": _NAME, "detail": _NAME, "field": _NAME}, "message", "detail"),
            }
        },
    }
    if needs_key:
        told["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        told["security"] = [{"key": []}]
    return told


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_THINK = "^(full|off|auto|[1-9][0-9]{0,8}k?)$"
_SCORE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "1 / rank"}
_RANKING = _object(
    {
        "id": _NAME,
        "object": {"const": "rerank"},
        "model": _NAME,
        "results": {
            "type": "array",
            "items": _object(
                {
                    "index": _INTEGER,
                    "relevance_score": _SCORE,
                    "tied": {"const": True, "description": "level with the result before"},
                    "document": _object({"text": _NAME}, "text"),
                },
                "index",
                "relevance_score",
            ),
        },
        "usage": _object({"prompt_tokens": _INTEGER, "completion_tokens": _INTEGER, "total_tokens": _INTEGER}),
        "meta": {"type": "object"},
        "finished": {"type": "boolean", "description": "false: the deadline came first"},
        "unranked_windows": _INTEGER,
        "repairs": {"type": "object", "additionalProperties": _INTEGER},
        "traces": {"type": "array", "items": _NAME},
    },
    "id",
    "model",
    "results",
    "usage",
    "meta",
    "finished",
)

_REFUSALS = {
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


def _rerank(path: str, asked: dict[str, Any], answered: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    kinds = {"enum": ["window", "trace", "order", "ranking", "result", "error"]}
    events = {"schema": {**_object({"event": kinds, "data": _NAME}, "event", "data"), "description": "each event"}}
    return {
        "summary": "order documents by their relevance to a query",
        "operationId": path.strip("/").replace("/", "_"),
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": {
            "200": {
                "description": "the ranking; with `stream`, server-sent events",
                "content": {"application/json": {"schema": answered}, "text/event-stream": events},
            },
            **{status: {"description": said, "content": error} for status, said in _REFUSALS.items()},
        },
    }


_RUN = {"name": "run", "in": "query", "schema": _NAME, "description": "a run's name"}
_PLACE = {"name": "position", "in": "query", "required": True, "schema": _INTEGER, "description": "in its run, from 0"}
_OFFSET = {"name": "offset", "in": "query", "schema": _INTEGER, "description": "of the first row, from 0"}
_FIND = {"name": "find", "in": "query", "schema": _NAME, "description": "only those whose id or text holds this"}
_ROUND = {"name": "round", "in": "query", "required": True, "schema": _INTEGER, "description": "from 0"}
_WINDOW = {"name": "window", "in": "query", "required": True, "schema": _INTEGER, "description": "of the round, from 0"}
_LOOKS: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "runs": ("the journal's runs, the last one begun first", (_OFFSET,)),
    "queries": ("queries of a run, or of all", (_RUN, _FIND, _OFFSET)),
    "query": ("a query's passages, rounds, windows and ranking", (_RUN, _PLACE)),
    "window": ("a window's passages, orders and calls", (_RUN, _PLACE, _ROUND, _WINDOW)),
}


def _looked(summary: str, parameters: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refused = {
        "403": "without keys, the journal is shown on this machine only",
        "404": "there is no such query or window",
        "422": _REFUSALS["422"],
        "503": "the journal cannot be read",
    }
    told = _got(summary, "application/json", {"type": "object"})
    told["responses"] |= {status: {"description": said, "content": error} for status, said in refused.items()}
    return {**told, "parameters": list(parameters)}


def _got(summary: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {kind: {"schema": schema}}}},
    }
