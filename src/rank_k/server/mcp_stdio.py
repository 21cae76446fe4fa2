"""The tool over standard input and output: one JSON-RPC message per line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, BinaryIO

from rank_k.loop_thread import LoopThread
from rank_k.optional_deps import load
from rank_k.server.mcp import make_mcp_server
from rank_k.server.service import RerankService


def serve_stdio(service: RerankService) -> None:
    """Serve the program at the other end of standard input and output, until it closes one of them.

    SIGINT and SIGTERM end this at once. Running calls are cancelled in all of these cases. Meanwhile, what else reads
    standard input reads nothing, and what else is written to standard output goes to standard error.

    Blocks. Raises `MissingExtra`.
    """
    previous_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Threads that this thread starts are daemons like itself: one that still reads does not delay the exit.
        LoopThread().run(_serve(service))
    except* KeyboardInterrupt:
        pass
    except* OSError:
        pass  # nobody reads standard output anymore
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


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
