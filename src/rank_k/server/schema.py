"""The requests and responses of the HTTP API and the MCP tool.

They are dataclasses. The metadata of their fields contains descriptions and bounds in the format of pydantic. The
validation of requests (`validate`), the OpenAPI document and the schemas of the MCP tool are derived from them.

The request formats are those of Cohere's v2 and Jina's API (`documents`) and of Text Embeddings Inference (`texts`).
Unknown fields are ignored, and a field with the value `null` counts as absent, because existing clients send both. The
fields of a request cannot make the server load a model, connect to an address, read a file or run code.
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
    """Return a dataclass field with a description, a default and pydantic's `constraints`."""
    return field(default=default, metadata={"description": description, **constraints})


def _with_public_options(cls: type[T]) -> type[T]:
    """Return the dataclass `cls` with a field for each option that clients may set.

    An option with named values accepts only these names. A MODULE:NAME would let clients choose the code to run.
    """
    fields: list[tuple[str, Any, Any]] = []
    for name, option in PUBLIC_OPTIONS.items():
        names = option.kind.schema.get("enum")
        description = option.kind.expected if names else option.help
        value_type = Literal[tuple(names)] | None if names else Any
        schema = {"anyOf": [option.kind.schema, {"type": "null"}]}
        fields.append((name, value_type, described(description, None, json_schema_extra=schema)))
    return make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True)


# --- requests ---


@dataclass(frozen=True, kw_only=True)
class Document:
    __pydantic_config__: ClassVar = {"extra": "ignore"}
    text: str


@_with_public_options
@dataclass(frozen=True, kw_only=True)
class RankingRequest:
    """The fields that all requests share."""

    query: str = described("the text of the query", json_schema_extra={"minLength": 1})
    documents: list[str | Document] = described(
        "the texts to rank, or objects with a text, in the order of the first-stage search", fail_fast=True
    )
    return_documents: bool | None = described("return the text of each document", None, strict=True)
    return_trace: bool | None = described("return the reasoning traces of the model", None, strict=True)
    deadline_seconds: float | None = described(
        "return the best ranking so far after this number of seconds, with finished: false", None, gt=0, strict=True
    )

    @property
    def texts(self) -> list[str]:
        """The texts of the documents."""
        return [document if isinstance(document, str) else document.text for document in self.documents]

    def options(self) -> dict[str, Any]:
        """Return the options that the client has set, by name. Raises `ApiError` if an option is invalid."""
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

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # tells the calling model about misspelled arguments
    top_n: int | None = described(
        "number of results to return; 0 or absent: all. It does not affect how many documents are ranked",
        None,
        ge=0,
        strict=True,
    )


@dataclass(frozen=True, kw_only=True)
class RerankRequest(ToolRequest):
    """A request of Cohere's v2 or Jina's API."""

    __pydantic_config__: ClassVar = {"extra": "ignore"}
    model: str | None = described("ignored, because this server has one model", None)
    stream: bool | None = described("return server-sent events", None, strict=True)


@dataclass(frozen=True, kw_only=True)
class TextsRequest(RankingRequest):
    """A request of Text Embeddings Inference's API."""

    documents: list[str | Document] = described("the texts to rank", alias="texts", fail_fast=True)
    return_documents: bool | None = described(
        "return the text of each document", None, strict=True, alias="return_text"
    )


# --- responses ---


@dataclass(frozen=True, kw_only=True)
class Score:
    """A result of Text Embeddings Inference's API."""

    index: int = described("position of the document in the request, from 0", ge=0)
    score: float = described("1 / rank", gt=0, le=1)
    text: str | None = described("the document, if requested", None)


@dataclass(frozen=True, kw_only=True)
class ToolScore(Score):
    """A result of the MCP tool."""

    tied: bool = described("whether the document is tied with the result before it")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A result of Cohere's v2 and Jina's API."""

    index: int = described("position of the document in the request, from 0", ge=0)
    relevance_score: float = described("1 / rank", gt=0, le=1)
    tied: Literal[True] | None = described("true if the document is tied with the result before it", None)
    document: Document | None = described("the document, if requested", None)


@dataclass(frozen=True, kw_only=True)
class RankingResponse:
    """The fields that all responses share, except for responses in the format of Text Embeddings Inference."""

    model: str
    finished: bool = described("false if the deadline passed before the ranking was finished")
    unranked_windows: int = described("number of windows that could not be ranked and kept their input order", ge=0)
    traces: list[str] | None = described("the reasoning traces, one per window, if requested", None)


@dataclass(frozen=True, kw_only=True)
class ToolResult(RankingResponse):
    """The structured content of the MCP tool's result."""

    results: list[ToolScore]
    usage: dict[str, int] = described("token counts")


@dataclass(frozen=True, kw_only=True)
class RerankResponse(RankingResponse):
    """A response that has the fields of both Cohere's v2 and Jina's API."""

    id: str
    object: Literal["rerank"] = "rerank"
    results: list[Result]
    usage: dict[str, int | dict[str, int]]
    meta: dict[str, Any]
    repairs: dict[str, int] = described("parse repairs and truncations by kind")


def rerank_response(request: RankingRequest, hits: RankedHits, model: str, request_id: str) -> Any:
    """Return the response to a request as JSON values. The score of a document is 1 / rank.

    Args:
        request: The request. Its class determines the format of the response.
        hits: The ranking.
        model: The name of the model.
        request_id: The id of the request.
    """
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
    """Return the warnings about a ranking: an exceeded deadline, unranked windows and documents beyond the depth."""
    compared = len(hits) - hits.not_compared
    windows = "1 window" if hits.unranked_windows == 1 else f"{hits.unranked_windows} windows"
    warnings = {
        "the deadline passed before the ranking was finished: this is the best ranking so far": not hits.finished,
        f"{windows} could not be ranked and kept the input order": hits.unranked_windows > 0,
        f"only the first {compared} of {len(hits)} documents were compared; the others follow in input order"
        " (see --depth)": hits.not_compared > 0,
    }
    return [warning for warning, applies in warnings.items() if applies]


def to_json(value: Any) -> dict[str, Any]:
    """Return an instance of one of these dataclasses as JSON values, without the fields that are None."""
    return asdict(value, dict_factory=lambda pairs: {name: item for name, item in pairs if item is not None})


# --- validation and JSON schemas ---


def validate(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return an instance of the dataclass `cls`.

    Args:
        cls: The dataclass.
        values: The values of the fields by name. A field with the value None counts as absent.

    Raises:
        ApiError: If a value is missing or invalid, or if a field is unknown and `cls` forbids unknown fields.
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
        remedy = descriptions.get(name) or f"the fields are {', '.join(descriptions)}"
        raise invalid_field(f"{printable(name)}{index}", f"{first['msg']} ({remedy})") from None
    return instance


def parse_request(cls: type[RequestT], body: Mapping[str, Any], limits: Limits) -> RequestT:
    """Return the request in the body of an HTTP request.

    Args:
        cls: The class of the request.
        body: The body as JSON values.
        limits: The limits of the server.

    Raises:
        ApiError: If the request is invalid or exceeds the limits.
    """
    request = validate(cls, body)
    if not request.query.strip():
        raise invalid_field("query", "must not be empty")
    documents_field = "texts" if isinstance(request, TextsRequest) else "documents"
    if len(request.documents) > limits.max_documents:
        message = f"at most {limits.max_documents:,} are allowed (got {len(request.documents):,})"
        raise invalid_field(documents_field, message)
    if sum(map(len, request.texts)) + len(request.query) > limits.max_characters:
        field_name = "query" if len(request.query) > limits.max_characters else documents_field
        message = f"query and documents together are longer than {limits.max_characters:,} characters"
        raise invalid_field(field_name, message)
    return request


def tool_schemas(limits: Limits, excluded: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON schemas of the arguments and of the result of the MCP tool.

    The schema of the arguments does not mention null, because models can leave arguments out instead.

    Args:
        limits: The limits of the server.
        excluded: Names of arguments that the schema omits.
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
    """Return the JSON schemas of the requests and responses of the HTTP API, by class name."""
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
    """Return the fields of the dataclass `cls` as query parameters in the format of OpenAPI."""
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
