"""The requests and responses of the HTTP API and the MCP tool, each defined once.

Each is a dataclass whose fields have their description and their bounds as metadata, as pydantic reads them. From these
classes come the validation of what clients send (`validate`), the OpenAPI document and the schemas of the MCP tool.

The request formats are Cohere's v2 and Jina's (`documents`), and that of Text Embeddings Inference (`texts`). Unknown
fields are ignored, and `null` is the same as left out, since clients send both. Nothing in a request names a model to
load, an address, a file or code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.options import PUBLIC_OPTIONS, parse_option
from rank_k.server.api_errors import invalid_field
from rank_k.server.config import Limits
from rank_k.server.http_io import printable
from rank_k.types import RankedHits

T = TypeVar("T")
RequestT = TypeVar("RequestT", bound="RankingRequest")


def described(description: str, default: Any = MISSING, **constraints: Any) -> Any:
    """Return the field of a dataclass, with its description and pydantic's `constraints`."""
    return field(default=default, metadata={"description": description, **constraints})


def _with_public_options(cls: type[T]) -> type[T]:
    """Return the dataclass `cls` with a field for each option that clients may set.

    If its values have names, no others are accepted: a module's name would be code of the client's choice.
    """
    fields: list[tuple[str, Any, Any]] = []
    for name, option in PUBLIC_OPTIONS.items():
        names = option.kind.schema.get("enum")
        description = option.kind.expected if names else option.help
        value_type = Literal[tuple(names)] | None if names else Any
        fields.append((name, value_type, described(description, None, json_schema_extra=option.kind.schema)))
    return make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True)


# --- requests ---


@dataclass(frozen=True, kw_only=True)
class Document:
    __pydantic_config__: ClassVar = {"extra": "ignore"}
    text: str


@_with_public_options
@dataclass(frozen=True, kw_only=True)
class RankingRequest:
    """What all requests have in common."""

    query: str = described("what is being looked for, in words", json_schema_extra={"minLength": 1})
    documents: list[str | Document] = described(
        "the texts to be ordered, or objects with a text, in the order of the search that found them", fail_fast=True
    )
    return_documents: bool | None = described("repeat each document's whole text in its result", None, strict=True)
    return_trace: bool | None = described("return the model's reasoning too", None, strict=True)
    deadline_seconds: float | None = described(
        "return the best ranking so far after this time, with finished: false", None, gt=0, strict=True
    )

    @property
    def texts(self) -> list[str]:
        return [document if isinstance(document, str) else document.text for document in self.documents]

    def options(self) -> dict[str, Any]:
        """Return the options that the client has set. Raises `ApiError` for an invalid one."""
        options = {}
        for name in PUBLIC_OPTIONS:
            if (value := getattr(self, name)) is not None:
                try:
                    options[name] = parse_option(name, value, PUBLIC_OPTIONS)
                except InputError as error:
                    raise invalid_field(name, error.remedy) from None
        return options


@dataclass(frozen=True, kw_only=True)
class ToolRequest(RankingRequest):
    """The arguments of the MCP tool."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a model that has misremembered a name should hear of it
    top_n: int | None = described(
        "how many results to return; 0 or absent: all. As many documents are compared either way",
        None,
        ge=0,
        strict=True,
    )


@dataclass(frozen=True, kw_only=True)
class RerankRequest(ToolRequest):
    """A request of Cohere's v2 or Jina's API."""

    __pydantic_config__: ClassVar = {"extra": "ignore"}
    model: str | None = described("ignored: this server has one model", None)
    stream: bool | None = described("send server-sent events", None, strict=True)


@dataclass(frozen=True, kw_only=True)
class TextsRequest(RankingRequest):
    """A request of Text Embeddings Inference's API."""

    documents: list[str | Document] = described("the texts to be ordered", alias="texts", fail_fast=True)
    return_documents: bool | None = described("repeat each text in its result", None, strict=True, alias="return_text")


# --- responses ---


@dataclass(frozen=True, kw_only=True)
class Score:
    """A result of Text Embeddings Inference's API."""

    index: int = described("position of the document in the request, from 0", ge=0)
    score: float = described("1 / rank", gt=0, le=1)
    text: str | None = described("the document, if requested", None)


@dataclass(frozen=True, kw_only=True)
class ToolScore(Score):
    tied: bool = described("level with the result before")


@dataclass(frozen=True, kw_only=True)
class Result:
    index: int = described("position of the document in the request, from 0", ge=0)
    relevance_score: float = described("1 / rank", gt=0, le=1)
    tied: Literal[True] | None = described("level with the result before", None)
    document: Document | None = described("the document, if requested", None)


@dataclass(frozen=True, kw_only=True)
class RankingResponse:
    """What the responses have in common, except for Text Embeddings Inference's."""

    model: str
    finished: bool = described("false: the deadline came first")
    unranked_windows: int = described("windows that had no usable answer and kept their order", ge=0)
    traces: list[str] | None = described("the model's reasoning, one for each window, if requested", None)


@dataclass(frozen=True, kw_only=True)
class ToolResult(RankingResponse):
    """The structured content of the MCP tool's result."""

    results: list[ToolScore]
    usage: dict[str, int] = described("tokens")


@dataclass(frozen=True, kw_only=True)
class RerankResponse(RankingResponse):
    """A response of Cohere's v2 and Jina's API in one."""

    id: str
    object: Literal["rerank"] = "rerank"
    results: list[Result]
    usage: dict[str, int | dict[str, int]]
    meta: dict[str, Any]
    repairs: dict[str, int] = described("what had to be repaired in the model's answers, by kind")


def rerank_response(request: RankingRequest, hits: RankedHits, model: str, request_id: str) -> Any:
    """Return the response to `request` as JSON values. Scores are 1 / rank: within (0, 1] and strictly decreasing."""
    texts = [hit.text if request.return_documents else None for hit in hits]
    if not isinstance(request, RerankRequest):
        return [
            to_json(Score(index=hit.index, score=hit.score, text=text)) for hit, text in zip(hits, texts, strict=True)
        ]
    usage = hits.usage
    results = [
        Result(
            index=hit.index,
            relevance_score=hit.score,
            tied=hit.tied or None,
            document=None if text is None else Document(text=text),
        )
        for hit, text in zip(hits, texts, strict=True)
    ]
    response = RerankResponse(
        id=request_id,
        model=model,
        results=results[: request.top_n or None],
        usage={
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": usage.reasoning_tokens,
                **({"reasoning_tokens_estimated": usage.reasoning_tokens} if usage.reasoning_is_estimated else {}),
            },
        },
        meta={
            "api_version": {"version": "2"},
            "tokens": {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens},
            "warnings": response_warnings(hits),
        },
        finished=hits.finished,
        unranked_windows=hits.unranked_windows,
        repairs={kind: number for kind, number in sorted(hits.repairs.items()) if number},
        traces=list(hits.traces) if request.return_trace else None,
    )
    return to_json(response)


def response_warnings(hits: RankedHits) -> list[str]:
    """Return what a reader should know before trusting the ranking."""
    compared = len(hits) - hits.not_compared
    warnings = {
        "the deadline came first: this is the best ranking so far": not hits.finished,
        f"{hits.unranked_windows} windows had no usable answer and kept their order": hits.unranked_windows > 0,
        f"only the first {compared} of {len(hits)} documents were compared: see --depth": hits.not_compared > 0,
    }
    return [warning for warning, applies in warnings.items() if applies]


def to_json(value: Any) -> dict[str, Any]:
    """Return one of these dataclasses as JSON values. Fields that are None are left out."""
    return asdict(value, dict_factory=lambda pairs: {name: item for name, item in pairs if item is not None})


# --- validation and JSON schemas ---


def validate(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return the dataclass `cls` with these values. None is the same as left out.

    Raises:
        ApiError: If a value is missing or invalid, or `cls` has no such field and forbids others.
    """
    request_class: Any = cls
    given = {name: value for name, value in values.items() if value is not None}
    try:
        instance: T = _adapter(request_class).validate_python(given)
    except load("pydantic").ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name, *path = first["loc"]
        index = f"[{path[0]}]" if path and isinstance(path[0], int) else ""
        descriptions = {f.metadata.get("alias", f.name): f.metadata["description"] for f in fields(request_class)}
        remedy = descriptions.get(name) or f"there are only {', '.join(descriptions)}"
        raise invalid_field(f"{printable(name)}{index}", f"{first['msg']} ({remedy})") from None
    return instance


def parse_request(cls: type[RequestT], body: Mapping[str, Any], limits: Limits) -> RequestT:
    """Return the request in `body`. Raises `ApiError` if it is invalid or exceeds the limits."""
    request = validate(cls, body)
    if not request.query:
        raise invalid_field("query", "a text is needed")
    documents_field = "texts" if isinstance(request, TextsRequest) else "documents"
    if len(request.documents) > limits.max_documents:
        message = f"{len(request.documents):,} are given, at most {limits.max_documents:,} are taken"
        raise invalid_field(documents_field, message)
    if sum(map(len, request.texts)) + len(request.query) > limits.max_characters:
        field_name = "query" if len(request.query) > limits.max_characters else documents_field
        message = f"query and documents together have more than {limits.max_characters:,} characters"
        raise invalid_field(field_name, message)
    return request


def tool_schemas(limits: Limits, excluded: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON schemas of the MCP tool's arguments and result.

    The arguments are without `excluded` ones, and without the nulls, which models need not know of.
    """
    schema: dict[str, Any] = _adapter(ToolRequest).json_schema()
    _add_limits(schema["properties"]["documents"], limits)
    schema["properties"] = {
        name: _without_null(field) for name, field in schema["properties"].items() if name not in excluded
    }
    return schema, _adapter(ToolResult).json_schema(mode="serialization")


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    types = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return {key: value for key, value in schema.items() if key not in ("anyOf", "default")} | (
        types[0] if types else {}
    )


def component_schemas(limits: Limits) -> dict[str, Any]:
    """Return the JSON schemas of the HTTP API's requests and responses, by the name of their class."""
    modes = {
        RerankRequest: "validation",
        TextsRequest: "validation",
        RerankResponse: "serialization",
        Score: "serialization",
    }
    _, definitions = load("pydantic").TypeAdapter.json_schemas(
        [(cls, mode, _adapter(cls)) for cls, mode in modes.items()], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = definitions["$defs"]
    _add_limits(schemas["RerankRequest"]["properties"]["documents"], limits)
    _add_limits(schemas["TextsRequest"]["properties"]["texts"], limits)
    return schemas


def query_parameters(cls: type) -> list[dict[str, Any]]:
    """Return the fields of the dataclass `cls` as OpenAPI has the parameters of an address."""
    schema = _adapter(cls).json_schema()
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "description": described_schema.pop("description"),
            "schema": described_schema,
        }
        for name, described_schema in schema["properties"].items()
    ]


def _add_limits(documents: dict[str, Any], limits: Limits) -> None:
    documents["maxItems"] = limits.max_documents
    documents["description"] += f"; with the query, at most {limits.max_characters:,} characters"


@cache
def _adapter(cls: Any) -> Any:
    return load("pydantic").TypeAdapter(cls)
