"""A lenient client of the fake model server, and prompts for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.fakes.model_server.marked_passages import make_dataset, oracle_tiers
from tests.fakes.model_server.running import FakeModelServer

DATASET = make_dataset(30, 100)
FIRST_QUERY_ID = DATASET.queries[0].query_id


def window_doc_ids(query_id: str = FIRST_QUERY_ID, start: int = 0, size: int = 20) -> list[str]:
    return [candidate.doc_id for candidate in DATASET.run[query_id][start : start + size]]


def prompt(doc_ids: list[str]) -> str:
    passages = "\n".join(f"[{i}] {DATASET.passages[doc_id].text}" for i, doc_id in enumerate(doc_ids, 1))
    return f"Rank these.\n[3] > [2] = [1]\n[1] > [2]\n\n{passages}\n\nQuery: which is best?"


def chat_body(doc_ids: list[str], **fields: Any) -> dict[str, Any]:
    body = {"model": "oracle", "messages": [{"role": "user", "content": prompt(doc_ids)}], "stream": True}
    return body | {"stream_options": {"include_usage": True}} | fields


def marks_of(doc_ids: list[str]) -> tuple[str, ...]:
    return DATASET.marks(doc_ids[0].partition("-")[0], doc_ids)


def true_ranking(doc_ids: list[str]) -> str:
    return " > ".join(" = ".join(f"[{i}]" for i in tier) for tier in oracle_tiers(marks_of(doc_ids)))


@dataclass
class ClientResponse:
    """One response, as a client reads it that accepts every malformed line."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    content: str = ""
    trace: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    skipped_lines: int = 0
    chunk_count: int = 0
    contents: list[str | None] = field(default_factory=list)


def _add_message(response: ClientResponse, message: dict[str, Any]) -> None:
    response.contents.append(message.get("content"))
    response.content += message.get("content") or ""
    response.trace += message.get("reasoning") or message.get("reasoning_content") or ""
    response.trace += "".join(detail["text"] for detail in message.get("reasoning_details") or [])


async def send_chat(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> ClientResponse:
    async with session.post(f"{url}/chat/completions", json=body, allow_redirects=False) as http_response:
        response = ClientResponse(http_response.status, dict(http_response.headers))
        if http_response.content_type == "application/json":
            payload = json.loads(await http_response.read() or b"{}")
            response.error, response.usage = payload.get("error"), payload.get("usage")
            for choice in payload.get("choices", []):
                _add_message(response, choice["message"])
                response.finish_reason = choice["finish_reason"]
            return response
        try:
            async for line in http_response.content:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    response.skipped_lines += line.startswith(b":")
                    continue
                try:
                    payload = json.loads(line[6:].decode())
                except ValueError:
                    response.skipped_lines += 1
                    continue
                response.chunk_count += 1
                response.usage, response.error = payload.get("usage"), payload.get("error")
                for choice in payload.get("choices", []):
                    _add_message(response, choice["delta"])
                    response.finish_reason = choice["finish_reason"]
        except aiohttp.ClientError as error:
            response.error = error
        return response


@asynccontextmanager
async def open_session(**headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


def send_one_chat(server: FakeModelServer, body: dict[str, Any], **headers: str) -> ClientResponse:
    async def main() -> ClientResponse:
        async with open_session(**headers) as session:
            return await send_chat(session, server.url, body)

    return asyncio.run(main())
