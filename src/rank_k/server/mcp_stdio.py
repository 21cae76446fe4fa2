"""The tool over a pair of pipes: a line in, a line out, each a JSON-RPC message.

The SDK's own transport reads in a thread that cannot be left, so that a signal would wait for the next line; and it
says nothing to a line that it cannot read. Here reading can be left, and such a line is answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rank_k.optional_deps import load
from rank_k.server.mcp import make_mcp_server
from rank_k.server.service import RerankService

if TYPE_CHECKING:
    from mcp import types

T = TypeVar("T")

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def private_pipes() -> Iterator[tuple[int, int]]:
    """The process's standard input and output for us alone, as file descriptors.

    Meanwhile whoever reads standard input finds nothing, and what is written to standard output goes to standard error:
    neither a library nor a child can get into the conversation.
    """
    descriptors = os.dup(0), os.dup(1)
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # there is no standard error
        os.dup2(devnull, 1)
    os.close(devnull)
    try:
        yield descriptors
    finally:
        os.dup2(descriptors[0], 0)
        os.dup2(descriptors[1], 1)  # and ours stay open: a thread may still be reading


def serve_pipes(service: RerankService, source: int, sink: int) -> None:
    """Serve whoever is at the other end, until it closes its end: then what is under way is given up.

    At SIGINT or SIGTERM finish what is under way, as `RerankService.stop` does, and end; at a second one, end.

    Blocks. Raises `MissingExtra`.
    """
    asyncio.run(_StdioSession(service, source, sink).run())


class _StdioSession:
    def __init__(self, service: RerankService, source: int, sink: int) -> None:
        self._service = service
        self._source = os.fdopen(source, "rb", closefd=False)
        self._sink = sink
        self._server = make_mcp_server(service)
        self._anyio: Any = load("anyio")
        self._types: Any = load("mcp.types")
        self._message: Any = load("mcp.shared.message").SessionMessage
        self._pending_ids: set[str | int] = set()  # ids of requests that have no answer yet
        self._all_answered = asyncio.Event()  # there are none
        self._all_answered.set()

    async def run(self) -> None:
        to_server, incoming = self._anyio.create_memory_object_stream(0)
        outgoing, from_server = self._anyio.create_memory_object_stream(0)
        stop_requests: asyncio.Queue[None] = asyncio.Queue()
        with _handle_signals(lambda: stop_requests.put_nowait(None)):
            async with self._anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, to_server, outgoing.clone())
                tasks.start_soon(self._write, from_server, to_server)
                tasks.start_soon(self._stop, stop_requests, to_server)
                await self._server.run(incoming, outgoing, self._server.create_initialization_options())
                tasks.cancel_scope.cancel()

    async def _read(self, to_server: Any, outgoing: Any) -> None:
        """Pass lines on until they end, or nobody takes them."""
        closed_errors = (OSError, self._anyio.ClosedResourceError, self._anyio.BrokenResourceError)
        async with to_server, outgoing:
            with suppress(*closed_errors):
                await self._pass_on(to_server, outgoing)

    async def _pass_on(self, to_server: Any, outgoing: Any) -> None:
        while line := await _run_in_thread(self._source.readline):
            try:
                message = self._types.jsonrpc_message_adapter.validate_python(
                    json.loads(line.decode("utf-8", "replace")), by_name=False
                )
            except (ValueError, RecursionError):
                await outgoing.send(self._message(self._parse_error()))
                continue
            self._track_request(message)
            await to_server.send(self._message(message))

    async def _write(self, from_server: Any, to_server: Any) -> None:
        """Pass answers on until they end, or nobody takes them."""
        async with from_server:
            async for item in from_server:
                line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
                try:
                    await _run_in_thread(self._write_line, line)
                except OSError:  # the pipe is broken
                    await to_server.aclose()
                    return
                self._mark_answered(getattr(item.message, "id", None))

    async def _stop(self, stop_requests: asyncio.Queue[None], to_server: Any) -> None:
        """When told to, finish what is under way and end the conversation."""
        await stop_requests.get()
        finish_task, second_stop = asyncio.create_task(self._finish()), asyncio.create_task(stop_requests.get())
        try:
            await asyncio.wait({finish_task, second_stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finish_task.cancel()
            second_stop.cancel()
        await to_server.aclose()

    async def _finish(self) -> None:
        await self._service.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._service.limits.stall_seconds):
                await self._all_answered.wait()

    def _write_line(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._sink, rest) :]

    def _track_request(self, message: types.JSONRPCMessage) -> None:
        """Remember what is owed: an answer to each request that is not cancelled."""
        if isinstance(message, self._types.JSONRPCRequest):
            self._pending_ids.add(message.id)
            self._all_answered.clear()
        elif isinstance(message, self._types.JSONRPCNotification) and message.method == "notifications/cancelled":
            self._mark_answered((message.params or {}).get("requestId"))

    def _mark_answered(self, request_id: object) -> None:
        if isinstance(request_id, str | int):
            self._pending_ids.discard(request_id)
        if not self._pending_ids:
            self._all_answered.set()

    def _parse_error(self) -> types.JSONRPCError:
        error = self._types.ErrorData(code=self._types.PARSE_ERROR, message="this line is no JSON-RPC message")
        message: types.JSONRPCError = self._types.JSONRPCError(jsonrpc="2.0", id=None, error=error)
        return message


async def _run_in_thread(work: Callable[..., T], *arguments: object) -> T:
    """What `work` returns, in a thread that is left behind when this is cancelled: it may be waiting for ever."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: OSError | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = work(*arguments)
        except OSError as failure:
            error = failure
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="rank-k pipe", daemon=True).start()
    return await done


@contextmanager
def _handle_signals(on_stop: Callable[[], None]) -> Iterator[None]:
    """Call `on_stop`, in this loop, at each signal to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous_handlers = {
        signal_number: signal.signal(signal_number, lambda *_: loop.call_soon_threadsafe(on_stop))
        for signal_number in _STOP_SIGNALS
    }
    try:
        yield
    finally:
        for signal_number, handler in previous_handlers.items():
            signal.signal(signal_number, handler)
