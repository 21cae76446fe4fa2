"""The tool `rerank` for programs that speak the Model Context Protocol, over HTTP or standard input and output.

Arguments are parsed, admitted and rejected like requests over HTTP, with the same messages. An error is the tool's
result, marked as an error, so that the model that called it can read it and correct the call. If a client cancels a
call or disconnects, the model's work for it is cancelled.
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
"""In the state of an HTTP request: the event that is set when its client has disconnected."""

_DESCRIPTION = (
    "Orders documents by how relevant they are to a query, best first. A language model compares the documents with"
    " each other and reasons about them, so it takes seconds to minutes: use it on a few to a hundred candidates"
    " that a search has found, not on a whole collection. Results name documents by their index in the list given,"
    " from 0."
)
PATH = "/mcp"

_CORS_HEADERS = {
    "Access-Control-Allow-Methods": "POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Mcp-Session-Id, Mcp-Protocol-Version, Mcp-Method,"
    " Mcp-Name",
    "Access-Control-Expose-Headers": "mcp-session-id",
}
_IDLE_SECONDS = 30 * 60.0  # after which a session that was not ended counts as left
_EXCERPT_LENGTH = 100  # characters of a document in the text of a result


def make_mcp_server(service: RerankService) -> Any:
    """Return the SDK's server, to be run over any transport, whose tool calls `service`. Raises `MissingExtra`."""
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
            raise load("mcp").MCPError(protocol.INVALID_PARAMS, f"there is no such tool here, only {NAME}")
        texts, content = await _call(service, context, params.arguments or {})
        blocks = [protocol.TextContent(type="text", text=text) for text in texts]
        return protocol.CallToolResult(content=blocks, structured_content=content, is_error=content is None)

    return load("mcp.server.lowlevel").Server(
        "rank-k",
        version=__version__,
        title="Rank-K",
        instructions=f"One tool, {NAME}: use it to order search results before reading them.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _call(
    service: RerankService, context: Any, arguments: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any] | None]:
    """Return the result of a call as texts and as JSON values: None for an error, which the text describes."""
    state = {} if context.request is None else context.request.scope["state"]
    disconnected: asyncio.Event = state.get(DISCONNECT_EVENT) or asyncio.Event()  # a pipe's end cancels this task
    progress = _Progress(context.session.report_progress)
    try:
        request = parse_tool_arguments(arguments, service.limits)
        work = service.rank(request, state.get("client", "pipe"), str(uuid4()), progress)
        hits = await run_until(disconnected.wait(), work, client_disconnected())
    except Exception as error:
        return [service.report_error(error).message], None
    result = _tool_result(request, hits, service.model)
    traces = [f"What the model thought of window {n}:\n{trace}" for n, trace in enumerate(result.traces or (), 1)]
    return [_result_text(request, hits), *traces], to_json(result)


class _Progress(ProgressListener):
    """Reports progress to the client, if it asked for it: once per round, the number of windows answered."""

    def __init__(self, report: Callable[[float, float | None, str], Coroutine[Any, Any, None]]) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._windows = 0

    def on_result(self, round_number: int, window: int, report: WindowReport) -> None:
        self._windows += 1

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        best = ", ".join(ranking.doc_ids[:3])
        message = f"round {round_number + 1}, windows answered: {self._windows}, best so far: {best}"
        # The SDK drops a report that comes after the end of the call.
        asyncio.run_coroutine_threadsafe(self._report(self._windows, None, message), self._loop)


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
            **({"reasoning_tokens_estimated": usage.reasoning_tokens} if usage.reasoning_is_estimated else {}),
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


# --- over HTTP ---


def make_mcp_app(service: RerankService, access: AccessConfig = AccessConfig()) -> App:
    """Return the application behind its access control. Raises `MissingExtra`."""
    security: Any = load("mcp.server.transport_security").TransportSecuritySettings
    app = make_mcp_server(service).streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=service.limits.max_body,
        session_idle_timeout=_IDLE_SECONDS,
        max_sessions=service.limits.connections,
        transport_security=security(enable_dns_rebinding_protection=False),  # `AccessMiddleware` does that
    )

    async def handle(request: Request) -> App:
        """Pass on the request when its whole body has arrived, and notice when its client disconnects."""
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
    """Serve the program at the other end of standard input and output, until it closes one of them.

    SIGINT and SIGTERM end this at once. Running calls are cancelled in all of these cases. Meanwhile, what else reads
    standard input reads nothing, and what else is written to standard output goes to standard error.

    Blocks. Raises `MissingExtra`.
    """
    # SIGINT too: a program that starts this one in the background may have told it to ignore SIGINT.
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous_handlers = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        # Threads that this thread starts are daemons like itself: one that still reads does not delay the exit.
        LoopThread().run(_serve(service))
    except* KeyboardInterrupt:
        pass
    except* OSError:
        pass  # nobody reads standard output anymore
    finally:
        for number, handler in zip(numbers, previous_handlers, strict=True):
            signal.signal(number, handler)


async def _serve(service: RerankService) -> None:
    server = make_mcp_server(service)
    transport: Any = load("mcp.server.stdio")
    source = os.fdopen(os.dup(0), "rb", closefd=False)  # not closed: a thread may still be reading
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    async with transport.stdio_server(stdin=_lines(source)) as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


async def _lines(source: BinaryIO) -> AsyncIterator[str]:
    """Yield lines. Lone surrogates, which the SDK's parser rejects, become question marks."""
    to_thread: Any = load("anyio.to_thread")
    while raw := await to_thread.run_sync(source.readline, abandon_on_cancel=True):
        line = raw.decode("utf-8", "replace")
        if "\\u" in line:
            with suppress(ValueError, RecursionError):
                line = json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8", "replace").decode()
        yield line
