"""Which HTTP client reads a stream of tokens for the least processor time: aiohttp or httpx.

    pip install httpx2 && python -m benchmarks.http_clients [--calls 64] [--concurrency 16]

Each client asks the loopback server for replies of some 430 tokens and reads them as bytes, event by event, with the
same JSON parsing. The server sends every 50 ms what is due, and once more token by token.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import time
from collections.abc import AsyncIterator, Callable

from tests.fakes.model_server.fault_plan import FaultPlan
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.running import run_in_process

DATA = make_dataset(1, 20)
REQUEST_BODY = {
    "model": "oracle",
    "stream": True,
    "messages": [
        {
            "role": "user",
            "content": "\n".join(f"[{i}] {p.text}" for i, p in enumerate(DATA.passages.values(), 1)),
        }
    ],
}

StreamRequest = Callable[[], AsyncIterator[bytes]]


def parse_events(pending: bytes) -> tuple[int, bytes]:
    """How many events are complete in `pending`, each parsed; what is left."""
    *complete, rest = pending.split(b"\n\n")
    parsed = [json.loads(event[6:]) for event in complete if event.startswith(b"data: {")]
    return len(parsed), rest


async def measure_calls(stream_response: StreamRequest, calls: int, concurrency: int) -> float:
    """Processor milliseconds per call."""
    remaining = list(range(calls))

    async def work() -> None:
        while remaining:
            remaining.pop()
            rest = b""
            async for chunk in stream_response():
                _, rest = parse_events(rest + chunk)

    started = time.process_time()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return (time.process_time() - started) / calls * 1000


async def with_aiohttp(url: str, calls: int, concurrency: int) -> float:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def stream_response() -> AsyncIterator[bytes]:
            async with session.post(f"{url}/chat/completions", json=REQUEST_BODY) as response:
                async for chunk in response.content.iter_any():
                    yield chunk

        return await measure_calls(stream_response, calls, concurrency)


async def with_httpx(url: str, calls: int, concurrency: int) -> float:
    httpx2 = importlib.import_module("httpx2")
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=None, limits=limits) as client:

        async def stream_response() -> AsyncIterator[bytes]:
            async with client.stream("POST", f"{url}/chat/completions", json=REQUEST_BODY) as response:
                async for chunk in response.aiter_raw():
                    yield chunk

        return await measure_calls(stream_response, calls, concurrency)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    args = parser.parse_args()
    print("server sends    aiohttp      httpx    ratio")
    for flush, label in ((0.05, "every 50 ms"), (0.001, "each token")):
        with run_in_process(FaultPlan().changed({"flush": flush})) as server:
            aiohttp_ms = asyncio.run(with_aiohttp(server.url, args.calls, args.concurrency))
            httpx_ms = asyncio.run(with_httpx(server.url, args.calls, args.concurrency))
        print(f"{label:<12} {aiohttp_ms:>7.2f} ms {httpx_ms:>7.2f} ms  {aiohttp_ms / httpx_ms:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
