"""Run an application with uvicorn, with timeouts for slow clients and a shutdown that finishes running requests."""

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
_REFUSAL_SECONDS = 1.0  # time for sending error responses after a second signal has cancelled all requests


def serve(service: RerankService, app: App, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve `app` until SIGINT or SIGTERM, then finish running requests. A second SIGINT cancels them.

    This function blocks and must be called in the main thread.

    Args:
        service: The service behind the application.
        app: The ASGI application.
        host: The address to listen on.
        port: The port; 0 selects a free port.
        on_ready: Called with the URL once the server accepts connections.

    Raises:
        InputError: If the address is not available.
    """
    server, sock, url = create_server(service, app, host, port)
    on_ready(url)
    # uvicorn handles these signals, and raises them again after it has stopped. They must have no effect then.
    previous_handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def create_server(service: RerankService, app: App, host: str, port: int) -> tuple[Any, socket.socket, str]:
    """Return a uvicorn server that is not running yet, its listening socket and its URL. Raises `InputError`."""
    uvicorn: Any = load("uvicorn")
    # Event streams must not end at the first signal, because the server lets running requests finish.
    load("sse_starlette.sse").AppStatus.disable_automatic_graceful_drain()
    limits = service.limits
    sock = _open_listening_socket(host, port)

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Finish running requests. Cancel them after a second Ctrl-C, which sets `force_exit`."""
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
        log_level="critical",  # the messages of uvicorn quote requests; the service reports errors
        access_log=False,
        proxy_headers=False,  # clients must not be able to choose their address
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
        reason = "invalid host name" if isinstance(error, UnicodeError) else getattr(error, "strerror", error)
        raise InputError(f"cannot listen on {host} port {port}: {reason}", "choose another --host or --port") from error


def _protocol_with_timeouts(read_seconds: float, stall_seconds: float) -> Any:
    """Return a subclass of uvicorn's HTTP/1.1 protocol with two additional timeouts.

    A connection is closed if the request line and headers do not arrive within `read_seconds`, or if the client does
    not read pending data of a response for `stall_seconds`.
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
            """Close the connection if the client has made no progress for too long, else schedule the next check."""
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
