"""Refusals and the other endpoints of the fake model server."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import StartLoopback
from tests.fakes.model_server.client import (
    FIRST_QUERY_ID,
    chat_body,
    marks_of,
    open_session,
    prompt,
    send_chat,
    send_one_chat,
    window_doc_ids,
)
from tests.fakes.model_server.marked_passages import window_key
from tests.fakes.model_server.running import FakeModelServer
from tests.paths import ROOT
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.integration


def test_model_server_requires_the_api_key(loopback: StartLoopback) -> None:
    server = loopback(api_key="s3cret")
    assert send_one_chat(server, chat_body(window_doc_ids())).status == 401
    assert send_one_chat(server, chat_body(window_doc_ids()), Authorization="Bearer wrong").status == 401
    assert send_one_chat(server, chat_body(window_doc_ids()), Authorization="Bearer s3cret").status == 200
    assert [call.authorization for call in server.calls] == ["", "Bearer wrong", "Bearer s3cret"]


def test_model_server_rejects_unknown_models_and_refuses_on_demand(loopback: StartLoopback) -> None:
    response = send_one_chat(loopback(), chat_body(window_doc_ids(), model="gpt-9"))
    assert (response.status, response.error["message"]) == (404, "The model `gpt-9` does not exist.")
    assert send_one_chat(loopback(refuse=403), chat_body(window_doc_ids())).status == 403


def test_model_server_enforces_the_context_length_like_vllm(loopback: StartLoopback) -> None:
    doc_ids = window_doc_ids()
    size = len(prompt(doc_ids)) // 4
    server = loopback(max_model_len=size + 100)
    assert send_one_chat(server, chat_body(doc_ids, max_tokens=100)).status == 200
    response = send_one_chat(server, chat_body(doc_ids, max_tokens=101))
    assert response.status == 400
    assert response.error["message"].endswith(
        f"is too large: 101. This model's maximum context length is {size + 100} tokens and your request has "
        f"{size} input tokens (101 > {size + 100} - {size})."
    )
    server.change(max_model_len=size)
    response = send_one_chat(server, chat_body(doc_ids, max_completion_tokens=50))
    assert response.status == 400
    assert f"requested {size + 50} tokens ({size} in the messages, 50 in the completion)" in response.error["message"]
    server.change(max_model_len=0)
    assert send_one_chat(server, chat_body(doc_ids, max_tokens=10**9)).status == 200


def test_model_server_redirects_to_another_server(loopback: StartLoopback) -> None:
    second_server = loopback()
    server = loopback(redirect=second_server.url)
    response = send_one_chat(server, chat_body(window_doc_ids()))
    assert response.status == 307
    assert response.headers["Location"] == f"{second_server.url}/chat/completions"
    assert second_server.requests == []


def test_model_server_survives_malformed_requests(loopback: StartLoopback) -> None:
    server = loopback()
    assert send_one_chat(server, {"model": "oracle"}).status == 400

    async def send_raw(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))
        writer.write(data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    for data in (b"nonsense\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{]"):
        assert asyncio.run(send_raw(data)).startswith(b"HTTP/1.1 400 ")
    assert send_one_chat(server, chat_body(window_doc_ids())).status == 200
    with pytest.raises(ValueError, match="no such setting"):
        server.change(cutt=1.0)


def test_model_server_serves_models_tokenize_and_health(loopback: StartLoopback) -> None:
    server = loopback(model="rank-k", owned_by="llamacpp", max_model_len=8192)

    async def main() -> tuple[Any, Any, int]:
        async with open_session() as session:
            async with session.get(f"{server.url}/models") as response:
                models = await response.json()
            root_url = server.url.removesuffix("/v1")
            async with session.post(f"{root_url}/tokenize", json={"model": "rank-k", "prompt": "x" * 43}) as response:
                tokens = await response.json()
            async with session.get(f"{root_url}/health") as response:
                return models, tokens, response.status

    models, tokens, health = asyncio.run(main())
    [card] = models["data"]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == ("rank-k", "llamacpp", 8192)
    assert (tokens["count"], len(tokens["tokens"]), tokens["max_model_len"]) == (11, 11, 8192)
    assert health == 200
    assert [request.path for request in server.requests] == ["/v1/models", "/tokenize", "/health"]
    assert server.calls == []


def test_model_server_reuses_connections_and_records_bodies(loopback: StartLoopback) -> None:
    server = loopback(bodies=True)

    async def main() -> None:
        async with open_session() as session:
            for start in (0, 20, 40):
                await send_chat(session, server.url, chat_body(window_doc_ids(FIRST_QUERY_ID, start)))

    asyncio.run(main())
    assert server.connections == 2  # the client's, and the one this was asked over
    calls = server.calls
    assert [call.window for call in calls] == [
        window_key(marks_of(window_doc_ids(FIRST_QUERY_ID, s))) for s in (0, 20, 40)
    ]
    assert all(a.end is not None and a.end <= b.start for a, b in itertools.pairwise(calls))
    assert calls[0].body == chat_body(window_doc_ids())


def test_main_prints_the_url_and_ends_with_stdin() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fakes.model_server",
        "--http-429",
        "1:3",
        "--retry-after",
        "0.5",
        "--bodies",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        server = FakeModelServer(child.stdout.readline().strip())
        response = send_one_chat(server, chat_body(window_doc_ids()))
        assert (response.status, response.headers["Retry-After"]) == (429, "0.5")
        assert server.calls[0].body is not None
        child.stdin.close()
        assert child.wait(timeout=PATIENCE) == 0
