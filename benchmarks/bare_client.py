"""The least that a client can do: send each request of a file with aiohttp, and read the streamed responses.

    python -m benchmarks.bare_client URL REQUESTS.jsonl CONCURRENCY

`benchmarks.overhead` compares the processor time of the command with that of this program. It parses the events as JSON
and keeps nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiohttp


async def send_requests(url: str, requests: list[str], concurrency: int) -> None:
    """Send the requests, each a JSON text, with at most `concurrency` of them in flight."""
    pending = iter(requests)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for body in pending:
                headers = {"Content-Type": "application/json"}
                async with session.post(f"{url}/chat/completions", data=body.encode(), headers=headers) as response:
                    response.raise_for_status()
                    async for line in response.content:
                        if line.startswith(b"data: {"):
                            json.loads(line[6:])

        await asyncio.gather(*(work() for _ in range(concurrency)))


if __name__ == "__main__":
    lines = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
    asyncio.run(send_requests(sys.argv[1], lines, int(sys.argv[3])))
