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
from rank_k.options import PUBLIC_OPTIONS
from rank_k.server.api_errors import ApiError
from rank_k.server.config import Limits
from rank_k.server.http_io import cancel_on_disconnect, json_object
from rank_k.server.schema import (
    ToolRequest,
    ToolResult,
    ToolScore,
    parse_request,
    response_warnings,
    to_json,
    tool_schemas,
)
from rank_k.server.service import ProgressListener, RerankService
from rank_k.types import RankedHits, Ranking
from rank_k.window.base import WindowReport

if TYPE_CHECKING:
    from mcp import types
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server

NAME = "rerank"
DISCONNECT_EVENT = "rank_k.gone"
"""In the state of an HTTP request: the event that is set when its client has disconnected."""

_DESCRIPTION = (
    "Orders documents by how relevant they are to a query, best first. A language model compares the documents with"
    " each other and reasons about them, so it takes seconds to minutes: use it on a few to a hundred candidates"
    " that a search has found, not on a whole collection. Results name documents by their index in the list given,"
    " from 0."
)
_EXCERPT_LENGTH = 100  # characters of a document in the text of a result


def make_mcp_server(service: RerankService) -> Server[Any]:
    """Return an MCP server, to be run over any transport, whose tool calls `service`. Raises `MissingExtra`."""
    protocol: Any = load("mcp.types")
    listwise_only = (*PUBLIC_OPTIONS, "return_trace")
    input_schema, output_schema = tool_schemas(service.limits, listwise_only if service.method == "likelihood" else ())
    tool = protocol.Tool(
        name=NAME,
        title="Rerank",
        description=_DESCRIPTION,
        input_schema=input_schema,
        output_schema=output_schema,
        annotations=protocol.ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )

    async def list_tools(context: object, params: object) -> types.ListToolsResult:
        result: types.ListToolsResult = protocol.ListToolsResult(tools=[tool])
        return result

    async def call_tool(
        context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        if params.name != NAME:
            raise load("mcp").MCPError(protocol.INVALID_PARAMS, f"there is no such tool here, only {NAME}")
        texts, content = await _call(service, context, params.arguments or {})
        blocks = [protocol.TextContent(type="text", text=text) for text in texts]
        result: types.CallToolResult = protocol.CallToolResult(
            content=blocks, structured_content=content, is_error=content is None
        )
        return result

    server: Server[Any] = load("mcp.server.lowlevel").Server(
        "rank-k",
        version=__version__,
        title="Rank-K",
        instructions=f"One tool, {NAME}: use it to order search results before reading them.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    return server


async def _call(
    service: RerankService, context: ServerRequestContext[Any, Any], arguments: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any] | None]:
    """Return the result of a call as texts and as JSON values: None for an error, which the text describes."""
    state = {} if context.request is None else context.request.scope["state"]
    disconnected: asyncio.Event = state.get(DISCONNECT_EVENT) or asyncio.Event()  # a pipe's end cancels this task
    progress = _Progress(context.session.report_progress)
    try:
        request = parse_tool_arguments(arguments, service.limits)
        work = service.rank(request, state.get("client", "pipe"), str(uuid4()), progress)
        hits = await cancel_on_disconnect(disconnected.wait(), work)
    except ApiError as error:
        return [error.message], None
    except Exception as fault:  # of this program: it is reported in full, but not to the client
        return [service.report_error(fault).message], None
    finally:
        progress.end()
    result = _tool_result(request, hits, service.model)
    texts = [_result_text(request, hits)]
    texts += [f"What the model thought of window {n}:\n{trace}" for n, trace in enumerate(result.traces or (), 1)]
    return texts, to_json(result)


class _Progress(ProgressListener):
    """Reports progress to the client, if it asked for it: once per round, the number of windows answered."""

    def __init__(self, report: Callable[[float, float | None, str], Awaitable[None]]) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._windows = 0
        self._reports: set[asyncio.Future[None]] = set()
        self._ended = False

    def on_result(self, round_number: int, window: int, report: WindowReport) -> None:
        self._windows += 1

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        best = ", ".join(ranking.doc_ids[:3])
        message = f"round {round_number + 1}, windows answered: {self._windows}, best so far: {best}"
        self._loop.call_soon_threadsafe(self._send, self._windows, message)

    def end(self) -> None:
        """Stop reporting: the protocol forbids progress of a finished call."""
        self._ended = True
        for report in self._reports:
            report.cancel()

    def _send(self, windows: int, message: str) -> None:
        if self._ended:
            return
        report = asyncio.ensure_future(self._report(windows, None, message))
        self._reports.add(report)
        report.add_done_callback(self._reports.discard)


def parse_tool_arguments(arguments: Mapping[str, Any], limits: Limits) -> ToolRequest:
    """Return the request in the arguments of a call, which are parsed like the body of one over HTTP.

    Raises:
        ApiError: If an argument is invalid, or does not exist.
    """
    try:
        raw = json.dumps(arguments).encode("ascii")
    except (ValueError, RecursionError):
        raise ApiError(400, "the arguments are nested too deeply, or hold a number that is too large") from None
    return parse_request(ToolRequest, json_object(raw), limits)


def _tool_result(request: ToolRequest, hits: RankedHits, model: str) -> ToolResult:
    usage = hits.usage
    rows = [
        ToolScore(
            index=hit.index,
            score=hit.score,
            tied=hit.tied,
            text=_replace_surrogates(hit.text) if request.return_documents else None,
        )
        for hit in hits[: request.top_n or None]
    ]
    return ToolResult(
        results=rows,
        model=model,
        finished=hits.finished,
        unranked_windows=hits.unranked_windows,
        usage={
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        },
        traces=[_replace_surrogates(trace) for trace in hits.traces] if request.return_trace else None,
    )


def _result_text(request: ToolRequest, hits: RankedHits) -> str:
    """Return the ranking as a list for a model. A document has one line, so that it cannot forge another's place."""
    top_hits = hits[: request.top_n or None]
    lines = [f"{len(top_hits)} of {len(hits)} documents, best first. Each is named by its index in the list given."]
    for hit in top_hits:
        tie_note = " (level with the one before)" if hit.tied else ""
        lines.append(f"{hit.rank}. index {hit.index}{tie_note}: {_excerpt(hit.text)}")
    return "\n".join([*lines, *(f"Note: {warning}." for warning in response_warnings(hits))])


def _excerpt(text: str) -> str:
    """Return the beginning of `text` without line breaks and invisible characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * _EXCERPT_LENGTH])
    line = " ".join(line.split())
    is_whole = len(line) <= _EXCERPT_LENGTH and len(text) <= 4 * _EXCERPT_LENGTH
    return line if is_whole else f"{line[:_EXCERPT_LENGTH]}..."


def _replace_surrogates(text: str) -> str:
    """Return `text` with question marks for lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
