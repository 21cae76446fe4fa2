"""The tool `rerank` of the Model Context Protocol (MCP), over HTTP or standard input and output.

Calls of the tool are validated and queued like requests to the HTTP API, with the same error messages. An error is
returned as the result of the tool, marked as an error, so that the calling model can read it and correct its call. If a
client cancels a call or disconnects, the requests to the model that ranks for this call are cancelled.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, BinaryIO
from uuid import uuid4

from rank_k import __version__
from rank_k.data.lines import replace_surrogates
from rank_k.loop_thread import LoopThread
from rank_k.optional_deps import load
from rank_k.options import PUBLIC_OPTIONS
from rank_k.server.api_errors import ApiError
from rank_k.server.app import assemble_app
from rank_k.server.config import AccessConfig, Limits
from rank_k.server.http_io import (
    App,
    Receive,
    Request,
    RouteGroup,
    Scope,
    Send,
    client_disconnected,
    json_object,
    read_body,
    route,
    run_until,
)
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

NAME = "rerank"
DISCONNECT_EVENT = "rank_k.gone"
"""The key of an event in the state of an HTTP request. The event is set when the client disconnects."""

_DESCRIPTION = (
    "Ranks documents by relevance to a query, the best first. A language model compares the documents with each other"
    " and reasons about them, which takes seconds to minutes. Use it for up to about 100 search results, not for a"
    " whole collection. Results identify documents by their index in the list of documents, from 0."
)
PATH = "/mcp"

_CORS_HEADERS = {
    "Access-Control-Allow-Methods": "POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Mcp-Session-Id, Mcp-Protocol-Version, Mcp-Method,"
    " Mcp-Name",
    "Access-Control-Expose-Headers": "mcp-session-id",
}
_IDLE_SECONDS = 30 * 60.0  # after which an unused session ends
_EXCERPT_LENGTH = 100  # characters of a document in the text of a result


def make_mcp_server(service: RerankService) -> Any:
    """Return an MCP server, for any transport. Its tool ranks documents with `service`.

    Raises:
        MissingExtra: If the extra `mcp` is not installed.
    """
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

    async def list_tools(context: Any, params: Any) -> Any:
        return protocol.ListToolsResult(tools=[tool])

    async def call_tool(context: Any, params: Any) -> Any:
        if params.name != NAME:
            raise load("mcp").MCPError(protocol.INVALID_PARAMS, f"unknown tool; the only tool is {NAME}")
        texts, content = await _call(service, context, params.arguments or {})
        blocks = [protocol.TextContent(type="text", text=text) for text in texts]
        return protocol.CallToolResult(content=blocks, structured_content=content, is_error=content is None)

    return load("mcp.server.lowlevel").Server(
        "rank-k",
        version=__version__,
        title="Rank-K",
        instructions=f"Use the tool {NAME} to rank search results before reading them.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _call(
    service: RerankService, context: Any, arguments: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any] | None]:
    """Return the result of a call as texts and as JSON values. If the call fails, the JSON values are None."""
    state = {} if context.request is None else context.request.scope["state"]
    # Only HTTP requests have this event. Over standard input and output, the SDK cancels this task instead.
    disconnected: asyncio.Event = state.get(DISCONNECT_EVENT) or asyncio.Event()
    progress = _Progress(context.session.report_progress)
    try:
        request = parse_tool_arguments(arguments, service.limits)
        work = service.rank(request, state.get("client", "pipe"), str(uuid4()), progress)
        hits = await run_until(disconnected.wait(), work, client_disconnected())
    except Exception as error:
        return [service.report_error(error).message], None
    result = _tool_result(request, hits, service.model)
    traces = [f"Reasoning about window {n}:\n{trace}" for n, trace in enumerate(result.traces or (), 1)]
    return [_result_text(request, hits), *traces], to_json(result)


class _Progress(ProgressListener):
    """Reports progress to the client after each round, if the client requested it."""

    def __init__(self, report: Callable[[float, float | None, str], Coroutine[Any, Any, None]]) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._windows = 0

    def on_result(self, round_number: int, window: int, report: WindowReport) -> None:
        self._windows += 1

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        best = ", ".join(ranking.doc_ids[:3])
        message = f"round {round_number + 1}, finished windows: {self._windows}, best documents so far: {best}"
        # The SDK ignores reports after the end of the call.
        asyncio.run_coroutine_threadsafe(self._report(self._windows, None, message), self._loop)


def parse_tool_arguments(arguments: Mapping[str, Any], limits: Limits) -> ToolRequest:
    """Return the request in the arguments of a call, parsed like the body of an HTTP request.

    Raises:
        ApiError: If an argument is invalid or unknown, or exceeds the limits.
    """
    try:
        raw = json.dumps(arguments).encode("ascii")
    except (ValueError, RecursionError):
        raise ApiError(400, "the arguments are nested too deeply or contain a number that is too large") from None
    return parse_request(ToolRequest, json_object(raw), limits)


def _tool_result(request: ToolRequest, hits: RankedHits, model: str) -> ToolResult:
    usage = hits.usage
    rows = [
        ToolScore(
            index=hit.index,
            score=hit.score,
            tied=hit.tied,
            text=replace_surrogates(hit.text) if request.return_documents else None,
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
            **({"reasoning_tokens_estimated": usage.reasoning_tokens} if usage.reasoning_is_estimated else {}),
        },
        traces=[replace_surrogates(trace) for trace in hits.traces] if request.return_trace else None,
    )


def _result_text(request: ToolRequest, hits: RankedHits) -> str:
    """Return the ranking as a numbered list. Each document is on one line, so that it cannot imitate list items."""
    top_hits = hits[: request.top_n or None]
    lines = [f"{len(top_hits)} of {len(hits)} documents, best first. Each is named by its index in the list given."]
    for hit in top_hits:
        tie_note = " (tied with the one before)" if hit.tied else ""
        lines.append(f"{hit.rank}. index {hit.index}{tie_note}: {_excerpt(hit.text)}")
    return "\n".join([*lines, *(f"Note: {warning}." for warning in response_warnings(hits))])


def _excerpt(text: str) -> str:
    """Return the beginning of `text` on one line, without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * _EXCERPT_LENGTH])
    line = " ".join(line.split())
    is_complete = len(line) <= _EXCERPT_LENGTH and len(text) <= 4 * _EXCERPT_LENGTH
    return line if is_complete else f"{line[:_EXCERPT_LENGTH]}..."


# --- over HTTP ---


def make_mcp_app(service: RerankService, access: AccessConfig = AccessConfig()) -> App:
    """Return the MCP server over HTTP as an ASGI application.

    Args:
        service: The service that ranks.
        access: Who may use the application.

    Raises:
        MissingExtra: If the extra `mcp` is not installed.
    """
    security: Any = load("mcp.server.transport_security").TransportSecuritySettings
    app = make_mcp_server(service).streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=service.limits.max_body,
        session_idle_timeout=_IDLE_SECONDS,
        max_sessions=service.limits.connections,
        transport_security=security(enable_dns_rebinding_protection=False),  # `AccessMiddleware` does that
    )

    async def handle(request: Request) -> App:
        """Forward the request after its body has arrived, and set an event when the client disconnects."""
        messages: list[Any] = [{"type": "http.request", "body": await read_body(request), "more_body": False}]

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            disconnected = scope["state"][DISCONNECT_EVENT] = asyncio.Event()

            async def receive_body_first() -> Any:
                message = messages.pop() if messages else await receive()
                if message["type"] == "http.disconnect":
                    disconnected.set()
                return message

            await app(scope, receive_body_first, send)

        return respond

    group = RouteGroup("mcp", [route(PATH, handle, "POST", "DELETE")])
    return assemble_app(service, access, [group], _CORS_HEADERS, app.router.lifespan_context)


# --- over standard input and output ---


def serve_stdio(service: RerankService) -> None:
    """Serve a client over standard input and output, until the client closes one of them or the process is interrupted.

    Running calls are then cancelled. While this function runs, all other code that reads standard input finds it empty,
    and everything else that is written to standard output goes to standard error. This function blocks.

    Raises:
        MissingExtra: If the extra `mcp` is not installed.
    """
    # A program that starts this process in the background may have configured it to ignore SIGINT.
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous_handlers = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        # This thread is a daemon, and so are the threads that it starts. A blocked reader does not delay the exit.
        LoopThread().run(_serve(service))
    except* (KeyboardInterrupt, OSError):
        pass  # an OSError means that the client has closed standard output
    finally:
        for number, handler in zip(numbers, previous_handlers, strict=True):
            signal.signal(number, handler)


async def _serve(service: RerankService) -> None:
    server = make_mcp_server(service)
    transport: Any = load("mcp.server.stdio")
    source = os.fdopen(os.dup(0), "rb", closefd=False)  # kept open because a thread may still read it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    async with transport.stdio_server(stdin=_lines(source)) as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


async def _lines(source: BinaryIO) -> AsyncIterator[str]:
    """Yield the lines of `source`. Lone surrogates, which the parser of the SDK rejects, are replaced."""
    to_thread: Any = load("anyio.to_thread")
    while raw := await to_thread.run_sync(source.readline, abandon_on_cancel=True):
        line = raw.decode("utf-8", "replace")
        if "\\u" in line:
            with suppress(ValueError, RecursionError):
                line = replace_surrogates(json.dumps(json.loads(line), ensure_ascii=False))
        yield line
