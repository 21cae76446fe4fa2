"""The application behind a socket: uvicorn, with patience that ends and a stop that finishes what was begun."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.server.app import make_app
from rank_k.server.config import AccessConfig
from rank_k.server.http_io import App
from rank_k.server.service import RerankService

_BACKLOG = 2048
_REFUSAL_SECONDS = 1.0  # seconds in which clients are told that what they wait for was cut short
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    service: RerankService,
    access: AccessConfig,
    port: int,
    on_ready: Callable[[str], None] | None = None,
    app: App | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way; at a second SIGINT, cut it short.

    `port` 0 takes a free one; `on_ready` hears the URL. `app` is the ASGI application; the default is the HTTP API.

    Blocks. Raises `InputError` for an address that cannot be had.
    """
    server, sock, url = create_server(service, access, port, app)
    if on_ready is not None:
        on_ready(url)
    if threading.current_thread() is not threading.main_thread():
        server.run(sockets=[sock])
        return
    # uvicorn stops at these signals, and raises them again when it has stopped: they have had their effect then.
    previous_handlers = {
        signal_number: signal.signal(signal_number, lambda *_: None) for signal_number in _STOP_SIGNALS
    }
    try:
        server.run(sockets=[sock])
    finally:
        for signal_number, handler in previous_handlers.items():
            signal.signal(signal_number, handler)


def create_server(
    service: RerankService, access: AccessConfig, port: int, app: App | None = None
) -> tuple[Any, socket.socket, str]:
    """A uvicorn server that is yet to be run, its listening socket and its URL."""
    uvicorn: Any = load("uvicorn")
    # Event streams must not end at the first signal: the service finishes running requests, whose results end them.
    load("sse_starlette.sse").AppStatus.disable_automatic_graceful_drain()
    limits = service.limits
    sock = _open_listening_socket(access.host, port)

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Finish what is under way; at a second Ctrl-C, which uvicorn calls `force_exit`, refuse it and leave."""
            tasks = pending = {asyncio.create_task(service.stop()), asyncio.create_task(super().shutdown(sockets))}
            while pending and not self.force_exit:
                _, pending = await asyncio.wait(pending, timeout=0.1)
            if self.force_exit:
                service.cancel_all()
                _, pending = await asyncio.wait({*tasks, *self.server_state.tasks}, timeout=_REFUSAL_SECONDS)
            for task in tasks - pending:
                task.result()

    config = uvicorn.Config(
        app or make_app(service, access),
        http=_make_protocol(limits.head_seconds, limits.stall_seconds),
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
    name = f"[{access.host}]" if ":" in access.host else access.host
    return Server(config), sock, f"http://{name}:{sock.getsockname()[1]}"


def _open_listening_socket(host: str, port: int) -> socket.socket:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)  # who comes before the loop runs waits
        except OSError:
            sock.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = "no name of a host" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host} port {port}: {reason}", "give another --host or --port") from error
    return sock


def _make_protocol(read_seconds: float, stall_seconds: float) -> Any:
    """Return uvicorn's HTTP/1.1 protocol with timeouts where uvicorn itself waits for ever.

    A connection is closed when its request line and headers take more than `read_seconds`, when an answer is not read
    to its end, or when nothing is read for `stall_seconds` while more is ready.
    """
    base: Any = load("uvicorn.protocols.http.h11_impl").H11Protocol

    class TimeoutProtocol(base):  # type: ignore[misc]
        _read_timer: asyncio.TimerHandle | None = None
        _stall_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._read_timer = self.loop.call_later(read_seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_read_timer()
            elif self._read_timer is None:
                self._read_timer = self.loop.call_later(read_seconds, self.transport.abort)

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()  # which waits until all that was sent has been read
            self._read_timer = self.loop.call_later(read_seconds, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._start_stall_timer()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_stall_timer()

        def connection_lost(self, error: Exception | None) -> None:
            self._stop_read_timer()
            self._stop_stall_timer()
            super().connection_lost(error)

        def _start_stall_timer(self, previous_size: float = math.inf) -> None:
            """Look now and then whether what is waiting to be read becomes less."""
            buffer_size = self.transport.get_write_buffer_size()
            if buffer_size >= previous_size:
                self.transport.abort()
                return
            self._stall_timer = self.loop.call_later(stall_seconds, self._start_stall_timer, buffer_size)

        def _stop_stall_timer(self) -> None:
            if self._stall_timer is not None:
                self._stall_timer.cancel()
                self._stall_timer = None

        def _stop_read_timer(self) -> None:
            if self._read_timer is not None:
                self._read_timer.cancel()
                self._read_timer = None

    return TimeoutProtocol
