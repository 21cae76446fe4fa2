"""The tool `rerank` for programs that speak the Model Context Protocol, whichever way their messages come.

What a call may ask for, and what becomes of it, is as over HTTP: arguments are read by the same code, admitted by the
same service, refused with the same words. A refusal is the tool's result, marked as an error, so that the model that
called can read it and do better. A client that cancels, or goes away, ends the model's work.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rank_k import __version__
from rank_k.optional_deps import load
from rank_k.server.api_errors import ApiError, invalid_field
from rank_k.server.app import cancel_on_disconnect
from rank_k.server.config import Limits
from rank_k.server.openapi import build_openapi
from rank_k.server.requests import RerankRequest, parse_rerank_request
from rank_k.server.responses import response_warnings
from rank_k.server.service import ProgressListener, RerankService
from rank_k.types import Hit, RankedHits, Ranking, ScoringMethod, StreamChunk, Window
from rank_k.window.base import WindowReport

if TYPE_CHECKING:
    from mcp import types
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server

NAME = "rerank"
DISCONNECT_EVENT = "rank_k.gone"
"""In the state of an HTTP request: the event that is set when its client has gone away."""

_DESCRIPTION = (
    "Orders documents by how relevant they are to a query, best first. A language model compares the documents with"
    " each other and reasons about them, so it takes seconds to minutes: use it on a few to a hundred candidates"
    " that a search has found, not on a whole collection. Results name documents by their index in the list given,"
    " from 0."
)

_ARGUMENTS = {
    "query": "what is being looked for, in words",
    "documents": "the texts to be ordered, or objects with a text, in the order of the search that found them",
    "top_n": "how many results to return; 0 or absent: all. As many documents are compared either way",
    "return_documents": "repeat each document's whole text in its result",
    "reasoning": "how to reason about each window of documents: full, off, auto, or a number of tokens such as 500",
    "strategy": "which windows of documents are compared; leave it out unless you know",
    "deadline_seconds": "after so many seconds the best ranking so far is returned, with finished: false",
    "return_trace": "return the model's reasoning too",
}
_LISTWISE_ONLY = ("reasoning", "strategy", "return_trace")
_EXCERPT_LENGTH = 100  # characters of a document in the text of a result


def make_mcp_server(service: RerankService) -> Server[Any]:
    """An MCP server, to be run over any transport, that takes calls to `service`. Raises `MissingExtra`."""
    protocol: Any = load("mcp.types")
    tool = _Tool(service)
    definition = tool.definition()

    async def list_tools(context: object, params: object) -> types.ListToolsResult:
        result: types.ListToolsResult = protocol.ListToolsResult(tools=[definition])
        return result

    server: Server[Any] = load("mcp.server.lowlevel").Server(
        "rank-k",
        version=__version__,
        title="Rank-K",
        instructions=f"One tool, {NAME}: use it to order search results before reading them.",
        on_list_tools=list_tools,
        on_call_tool=tool.call,
    )
    return server


class _Tool:
    def __init__(self, service: RerankService) -> None:
        self._service = service
        self._types: Any = load("mcp.types")

    def definition(self) -> types.Tool:
        tool: types.Tool = self._types.Tool(
            name=NAME,
            title="Rerank",
            description=_DESCRIPTION,
            input_schema=input_schema(self._service.limits, self._service.method),
            output_schema=_OUTPUT,
            annotations=self._types.ToolAnnotations(
                read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
            ),
        )
        return tool

    async def call(
        self, context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        if params.name != NAME:
            error: type[Exception] = load("mcp").MCPError
            raise error(self._types.INVALID_PARAMS, f"there is no such tool here, only {NAME}")
        try:
            request = parse_tool_arguments(params.arguments or {}, self._service.limits)
            return self._success_result(request, await self._rank(request, context))
        except ApiError as api_error:
            return self._error_result(api_error)
        except Exception as fault:  # of this program: whoever runs it hears of it, the client gets one line
            return self._error_result(self._service.report_error(fault))

    async def _rank(self, request: RerankRequest, context: ServerRequestContext[Any, Any]) -> RankedHits:
        """The ranking, for as long as there is somebody to be told. Raises `ApiError`."""
        state = {} if context.request is None else context.request.scope["state"]
        disconnected: asyncio.Event = (
            state.get(DISCONNECT_EVENT) or asyncio.Event()
        )  # a pipe's end cancels this task instead
        progress = _Progress(context.session.report_progress)
        try:
            work = self._service.rank(request, state.get("client", "pipe"), str(uuid4()), progress)
            return await cancel_on_disconnect(disconnected.wait(), work)
        finally:
            progress.end()

    def _success_result(self, request: RerankRequest, hits: RankedHits) -> types.CallToolResult:
        texts = [
            _result_text(request, hits),
            *(_trace_text(n, trace) for n, trace in enumerate(_traces(request, hits), 1)),
        ]
        result: types.CallToolResult = self._types.CallToolResult(
            content=[self._text_content(text) for text in texts],
            structured_content=_structured_content(request, hits, self._service.model),
        )
        return result

    def _error_result(self, api_error: ApiError) -> types.CallToolResult:
        result: types.CallToolResult = self._types.CallToolResult(
            content=[self._text_content(api_error.message)], is_error=True
        )
        return result

    def _text_content(self, text: str) -> types.TextContent:
        content: types.TextContent = self._types.TextContent(type="text", text=text)
        return content


class _Progress(ProgressListener):
    """Tells a client that wants to know how far its ranking is: once a round, the number of windows answered."""

    def __init__(self, report: Callable[[float, float | None, str], Awaitable[None]]) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._windows = 0
        self._reports: set[asyncio.Future[None]] = set()
        self._ended = False

    def on_window(self, round_number: int, number: int, window: Window) -> None:
        pass

    def on_chunk(self, round_number: int, window: int, chunk: StreamChunk) -> None:
        pass

    def on_result(self, round_number: int, window: int, report: WindowReport) -> None:
        self._windows += 1

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        best = ", ".join(ranking.doc_ids[:3])
        message = f"round {round_number + 1}, windows answered: {self._windows}, best so far: {best}"
        self._loop.call_soon_threadsafe(self._send, self._windows, message)

    def end(self) -> None:
        """Nothing more is told: a client must not hear of a call that is over."""
        self._ended = True
        for report in self._reports:
            report.cancel()

    def _send(self, windows: int, message: str) -> None:
        if self._ended:
            return
        report = asyncio.ensure_future(self._report(windows, None, message))
        self._reports.add(report)
        report.add_done_callback(self._reports.discard)


def parse_tool_arguments(arguments: Mapping[str, Any], limits: Limits) -> RerankRequest:
    """The request in the arguments of a call, which is read as the body of one over HTTP is. Raises `ApiError`.

    Arguments that there are not are refused, not ignored: a model that has misremembered a name should hear of it.
    """
    for name in arguments:
        if name not in _ARGUMENTS:
            raise invalid_field(_single_line(name, 60), f"there is no such argument, only {', '.join(_ARGUMENTS)}")
    try:
        raw = json.dumps(arguments).encode("ascii")
    except (ValueError, RecursionError):
        raise ApiError(400, "the arguments are nested too deeply, or hold a number that is too large") from None
    return parse_rerank_request(raw, limits)


def input_schema(limits: Limits, method: ScoringMethod | None = "listwise") -> dict[str, Any]:
    """What the HTTP API's document says of these fields, without the nulls, which models need not know of, and without
    those that this server has no use for.
    """
    fields = build_openapi(limits, needs_key=False)["components"]["schemas"]["Rerank"]["properties"]
    excluded = _LISTWISE_ONLY if method == "likelihood" else ()
    return {
        "type": "object",
        "properties": {
            name: {**_without_null(fields[name]), "description": description}
            for name, description in _ARGUMENTS.items()
            if name not in excluded
        },
        "required": ["query", "documents"],
        "additionalProperties": False,
    }


def _without_null(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds: list[Mapping[str, Any]] = schema.get("anyOf", [])
    return kinds[0] if kinds[1:] == [{"type": "null"}] else schema


# --- what is answered ---

_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_OUTPUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "results": {
            "type": "array",
            "description": "best first",
            "items": {
                "type": "object",
                "properties": {
                    "index": {**_COUNT, "description": "of the document in the list given, from 0"},
                    "score": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "1 / rank"},
                    "tied": {"type": "boolean", "description": "level with the result before"},
                    "text": _TEXT,
                },
                "required": ["index", "score", "tied"],
            },
        },
        "model": _TEXT,
        "finished": {"type": "boolean", "description": "false: the deadline came first"},
        "unranked_windows": {**_COUNT, "description": "had no usable answer and kept their order"},
        "usage": {"type": "object", "additionalProperties": _COUNT, "description": "tokens"},
        "traces": {"type": "array", "items": _TEXT, "description": "the model's reasoning, one for each window"},
    },
    "required": ["results", "model", "finished", "unranked_windows", "usage"],
}


def _structured_content(request: RerankRequest, hits: RankedHits, model: str) -> dict[str, Any]:
    usage = hits.usage
    content: dict[str, Any] = {
        "results": [_result_row(hit, request.return_documents) for hit in hits[: request.top_n]],
        "model": model,
        "finished": hits.finished,
        "unranked_windows": hits.unranked_windows,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        },
    }
    return {**content, "traces": _traces(request, hits)} if request.return_trace else content


def _result_row(hit: Hit, with_text: bool) -> dict[str, Any]:
    row = {"index": hit.index, "score": hit.score, "tied": hit.tied}
    return {**row, "text": _replace_surrogates(hit.text)} if with_text else row


def _traces(request: RerankRequest, hits: RankedHits) -> list[str]:
    return [_replace_surrogates(trace) for trace in hits.traces] if request.return_trace else []


def _result_text(request: RerankRequest, hits: RankedHits) -> str:
    """The ranking as a list for a model to read. A document has one line, so that none can forge another's place."""
    top_hits = hits[: request.top_n]
    lines = [f"{len(top_hits)} of {len(hits)} documents, best first. Each is named by its index in the list given."]
    for hit in top_hits:
        tie_note = " (level with the one before)" if hit.tied else ""
        lines.append(f"{hit.rank}. index {hit.index}{tie_note}: {_single_line(hit.text, _EXCERPT_LENGTH)}")
    return "\n".join([*lines, *(f"Note: {warning}." for warning in response_warnings(hits))])


def _trace_text(number: int, trace: str) -> str:
    return f"What the model thought of window {number}:\n{trace}"


def _single_line(text: str, max_length: int) -> str:
    """The beginning of `text` without line breaks and what cannot be seen."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * max_length])
    line = " ".join(line.split())
    return line if len(line) <= max_length and len(text) <= 4 * max_length else f"{line[:max_length]}..."


def _replace_surrogates(text: str) -> str:
    """Halves of surrogate pairs, which UTF-8 cannot hold, become question marks."""
    return text.encode("utf-8", "replace").decode()
