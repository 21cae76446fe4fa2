"""Runs an application with uvicorn, with timeouts for slow clients and a shutdown that finishes running requests."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.server.http_io import App
from rank_k.server.service import RerankService

_BACKLOG = 2048
_REFUSAL_SECONDS = 1.0  # to answer the requests that a second signal cancels


def serve(service: RerankService, app: App, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve `app` until SIGINT or SIGTERM, then finish running requests; at a second SIGINT, cancel them.

    Blocks. For the main thread only.

    Args:
        service: The service behind the application.
        app: The ASGI application.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        on_ready: Is called with the URL.

    Raises:
        InputError: If the address is not available.
    """
    server, sock, url = create_server(service, app, host, port)
    on_ready(url)
    # uvicorn handles these signals, and raises them again when it has stopped: they have had their effect then.
    previous_handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def create_server(service: RerankService, app: App, host: str, port: int) -> tuple[Any, socket.socket, str]:
    """Return a uvicorn server that is yet to be run, its listening socket and its URL. Raises `InputError`."""
    uvicorn: Any = load("uvicorn")
    # Event streams must not end at the first signal: the service finishes running requests, whose results end them.
    load("sse_starlette.sse").AppStatus.disable_automatic_graceful_drain()
    limits = service.limits
    sock = _open_listening_socket(host, port)

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Finish running requests; at a second Ctrl-C, which uvicorn calls `force_exit`, cancel them."""
            tasks = pending = {asyncio.create_task(service.stop()), asyncio.create_task(super().shutdown(sockets))}
            while pending and not self.force_exit:
                _, pending = await asyncio.wait(pending, timeout=0.1)
            if self.force_exit:
                service.cancel_all()
                _, pending = await asyncio.wait({*tasks, *self.server_state.tasks}, timeout=_REFUSAL_SECONDS)
            for task in tasks - pending:
                task.result()

    config = uvicorn.Config(
        app,
        http=_protocol_with_timeouts(limits.head_seconds, limits.stall_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # its messages quote what clients send; ours go through the service
        access_log=False,
        proxy_headers=False,  # a client must not name itself
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(limits.head_seconds),
        timeout_graceful_shutdown=int(limits.shutdown_timeout) + 5,
    )
    name = f"[{host}]" if ":" in host else host
    return Server(config), sock, f"http://{name}:{sock.getsockname()[1]}"


def _open_listening_socket(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = "it is not a host name" if isinstance(error, UnicodeError) else getattr(error, "strerror", error)
        raise InputError(f"cannot listen on {host} port {port}: {reason}", "give another --host or --port") from error


def _protocol_with_timeouts(read_seconds: float, stall_seconds: float) -> Any:
    """Return uvicorn's HTTP/1.1 protocol with timeouts where uvicorn itself waits forever.

    A connection is closed if its request line and headers take more than `read_seconds`, or if nothing of a response
    is read for `stall_seconds` while more is ready.
    """
    base: Any = load("uvicorn.protocols.http.h11_impl").H11Protocol

    class TimeoutProtocol(base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._last_progress = self.loop.time()
            self._unread_bytes = 0
            self._schedule_check()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._last_progress = self.loop.time()

        def connection_lost(self, error: Exception | None) -> None:
            self._next_check.cancel()
            super().connection_lost(error)

        def _schedule_check(self) -> None:
            self._next_check = self.loop.call_later(min(read_seconds, stall_seconds) / 4, self._check_progress)

        def _check_progress(self) -> None:
            """Close the connection if the client has kept the server waiting for too long, else check again later."""
            unread_bytes = self.transport.get_write_buffer_size()
            is_serving = self.cycle is not None and not self.cycle.response_complete
            if unread_bytes < self._unread_bytes or (is_serving and not self.flow.write_paused):
                self._last_progress = self.loop.time()
            self._unread_bytes = unread_bytes
            if self.loop.time() - self._last_progress > (stall_seconds if unread_bytes else read_seconds):
                self.transport.abort()
            else:
                self._schedule_check()

    return TimeoutProtocol
