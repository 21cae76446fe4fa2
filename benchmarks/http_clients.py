"""Which HTTP client reads a stream of tokens for the least processor time: aiohttp or httpx.

    pip install httpx2 && python -m benchmarks.http_clients [--calls 64] [--slots 16]

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

from tests.fakes.loopback import Plan, in_child, make_queries

DATA = make_queries(1, 20)
QUESTION = {
    "model": "oracle",
    "stream": True,
    "messages": [
        {
            "role": "user",
            "content": "\n".join(f"[{i}] {p.text}" for i, p in enumerate(DATA.passages.values(), 1)),
        }
    ],
}

Ask = Callable[[], AsyncIterator[bytes]]


def events(pending: bytes) -> tuple[int, bytes]:
    """How many events are complete in `pending`, each parsed; what is left."""
    *whole, rest = pending.split(b"\n\n")
    found = [json.loads(event[6:]) for event in whole if event.startswith(b"data: {")]
    return len(found), rest


async def drive(ask: Ask, calls: int, slots: int) -> float:
    """Processor milliseconds per call."""
    left = list(range(calls))

    async def work() -> None:
        while left:
            left.pop()
            rest = b""
            async for chunk in ask():
                _, rest = events(rest + chunk)

    started = time.process_time()
    await asyncio.gather(*(work() for _ in range(slots)))
    return (time.process_time() - started) / calls * 1000


async def with_aiohttp(url: str, calls: int, slots: int) -> float:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> AsyncIterator[bytes]:
            async with session.post(f"{url}/chat/completions", json=QUESTION) as response:
                async for chunk in response.content.iter_any():
                    yield chunk

        return await drive(ask, calls, slots)


async def with_httpx(url: str, calls: int, slots: int) -> float:
    httpx2 = importlib.import_module("httpx2")
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=None, limits=limits) as client:

        async def ask() -> AsyncIterator[bytes]:
            async with client.stream("POST", f"{url}/chat/completions", json=QUESTION) as response:
                async for chunk in response.aiter_raw():
                    yield chunk

        return await drive(ask, calls, slots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16)
    args = parser.parse_args()
    print("server sends    aiohttp      httpx    ratio")
    for flush, words in ((0.05, "every 50 ms"), (0.001, "each token")):
        with in_child(Plan().changed({"flush": flush})) as server:
            ours = asyncio.run(with_aiohttp(server.url, args.calls, args.slots))
            theirs = asyncio.run(with_httpx(server.url, args.calls, args.slots))
        print(f"{words:<12} {ours:>7.2f} ms {theirs:>7.2f} ms  {ours / theirs:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
