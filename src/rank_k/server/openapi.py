"""What the API takes and gives, as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from rank_k.server.config import Limits
from rank_k.strategies import STRATEGIES

_INTEGER = {"type": "integer", "minimum": 0}
_STRING = {"type": "string"}


def build_openapi(limits: Limits, *, needs_key: bool) -> dict[str, Any]:
    """For a server with these limits."""
    from rank_k import __version__

    texts = {
        "type": "array",
        "maxItems": limits.documents,
        "items": {"anyOf": [_STRING, _object({"text": _STRING}, "text")]},
        "description": f"query and documents together: at most {limits.characters:,} characters",
    }
    extension_fields = {
        "reasoning": _nullable(
            {"anyOf": [{"type": "string", "pattern": _REASONING_PATTERN}, {"type": "integer", "minimum": 1}]}
        ),
        "strategy": _nullable({"enum": list(STRATEGIES)}),
        "deadline_seconds": _nullable({"type": "number", "exclusiveMinimum": 0}),
        "return_trace": _nullable({"type": "boolean"}),
    }
    query = {"type": "string", "minLength": 1}
    rerank_schema = _object(
        {
            "model": _nullable(_STRING),
            "query": query,
            "documents": texts,
            "top_n": _nullable({**_INTEGER, "description": "0, null or absent: all"}),
            "return_documents": _nullable({"type": "boolean"}),
            "stream": _nullable({"type": "boolean"}),
            **extension_fields,
        },
        "query",
        "documents",
    )
    rerank_texts_schema = _object(
        {"query": query, "texts": texts, "return_text": _nullable({"type": "boolean"}), **extension_fields},
        "query",
        "texts",
    )
    paths: dict[str, Any] = {
        path: {
            "post": _rerank_operation(
                path, {"$ref": "#/components/schemas/Rerank"}, {"$ref": "#/components/schemas/Ranking"}
            )
        }
        for path in ("/v2/rerank", "/v1/rerank")
    }
    paths["/rerank"] = {
        "post": _rerank_operation(
            "/rerank",
            {"anyOf": [{"$ref": "#/components/schemas/Rerank"}, {"$ref": "#/components/schemas/RerankTexts"}]},
            {"anyOf": [{"$ref": "#/components/schemas/Ranking"}, {"$ref": "#/components/schemas/Scores"}]},
        )
    }
    paths["/v1/models"] = {
        "get": _get_operation("the model behind this server", "application/json", {"type": "object"})
    }
    paths["/health"] = {"get": {**_get_operation("alive", "application/json", {"type": "object"}), "security": []}}
    paths["/metrics"] = {"get": _get_operation("counters for Prometheus", "text/plain", {"type": "string"})}
    paths["/openapi.json"] = {"get": _get_operation("this document", "application/json", {"type": "object"})}
    paths["/demo"] = {
        "get": _get_operation("the demo's questions and their passages", "application/json", {"type": "object"})
    }
    paths |= {f"/journal/{view}": {"get": _journal_operation(*document)} for view, document in _JOURNAL_VIEWS.items()}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Rank-K", "version": __version__, "description": "Listwise reranking, see docs/serving.md"},
        "paths": paths,
        "components": {
            "schemas": {
                "Rerank": rerank_schema,
                "RerankTexts": rerank_texts_schema,
                "Ranking": _RANKING,
                "Scores": {"type": "array", "items": _object({"index": _INTEGER, "score": _SCORE}, "index", "score")},
                "Error": _object({"message": _STRING, "detail": _STRING, "field": _STRING}, "message", "detail"),
            }
        },
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_REASONING_PATTERN = "^(full|off|auto|[1-9][0-9]{0,8}k?)$"
_SCORE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "1 / rank"}
_RANKING = _object(
    {
        "id": _STRING,
        "object": {"const": "rerank"},
        "model": _STRING,
        "results": {
            "type": "array",
            "items": _object(
                {
                    "index": _INTEGER,
                    "relevance_score": _SCORE,
                    "tied": {"const": True, "description": "level with the result before"},
                    "document": _object({"text": _STRING}, "text"),
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
        "traces": {"type": "array", "items": _STRING},
    },
    "id",
    "model",
    "results",
    "usage",
    "meta",
    "finished",
)

_ERROR_STATUSES = {
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


def _rerank_operation(path: str, request_schema: dict[str, Any], response_schema: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    kinds = {"enum": ["window", "trace", "order", "ranking", "result", "error"]}
    events = {"schema": {**_object({"event": kinds, "data": _STRING}, "event", "data"), "description": "each event"}}
    return {
        "summary": "order documents by their relevance to a query",
        "operationId": path.strip("/").replace("/", "_"),
        "requestBody": {"required": True, "content": {"application/json": {"schema": request_schema}}},
        "responses": {
            "200": {
                "description": "the ranking; with `stream`, server-sent events",
                "content": {"application/json": {"schema": response_schema}, "text/event-stream": events},
            },
            **{
                status: {"description": description, "content": error}
                for status, description in _ERROR_STATUSES.items()
            },
        },
    }


_RUN = {"name": "run", "in": "query", "schema": _STRING, "description": "a run's name"}
_PLACE = {"name": "position", "in": "query", "required": True, "schema": _INTEGER, "description": "in its run, from 0"}
_OFFSET = {"name": "offset", "in": "query", "schema": _INTEGER, "description": "of the first row, from 0"}
_FIND = {"name": "find", "in": "query", "schema": _STRING, "description": "only those whose id or text holds this"}
_ROUND = {"name": "round", "in": "query", "required": True, "schema": _INTEGER, "description": "from 0"}
_WINDOW = {"name": "window", "in": "query", "required": True, "schema": _INTEGER, "description": "of the round, from 0"}
_JOURNAL_VIEWS: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "runs": ("the journal's runs, the last one begun first", (_OFFSET,)),
    "queries": ("queries of a run, or of all", (_RUN, _FIND, _OFFSET)),
    "query": ("a query's passages, rounds, windows and ranking", (_RUN, _PLACE)),
    "window": ("a window's passages, orders and calls", (_RUN, _PLACE, _ROUND, _WINDOW)),
}


def _journal_operation(summary: str, parameters: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    error_statuses = {
        "403": "without keys, the journal is shown on this machine only",
        "404": "there is no such query or window",
        "422": _ERROR_STATUSES["422"],
        "503": "the journal cannot be read",
    }
    operation = _get_operation(summary, "application/json", {"type": "object"})
    operation["responses"] |= {
        status: {"description": description, "content": error} for status, description in error_statuses.items()
    }
    return {**operation, "parameters": list(parameters)}


def _get_operation(summary: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {media_type: {"schema": schema}}}},
    }
