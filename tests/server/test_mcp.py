"""The tool `rerank` as the SDK's own client meets it, over HTTP, in the protocol of today and in that of before."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.types import CallToolResult, TextContent

from rank_k import Reranker, ScriptedModel
from rank_k.errors import JournalError
from rank_k.models.retry import RetryPolicy
from rank_k.server.api_errors import ApiError
from rank_k.server.config import AccessConfig, Limits
from rank_k.server.mcp import input_schema, parse_tool_arguments
from rank_k.server.mcp_http import make_mcp_app
from rank_k.types import Request
from tests.conftest import StartLoopback
from tests.paths import ROOT
from tests.server.test_access import reversed_order
from tests.server.test_load import STUCK, is_asked, marked, was_cancelled
from tests.support.serving import Served, served
from tests.support.waiting import until

pytestmark = pytest.mark.integration

MODES = ["legacy", "auto"]
"""The handshake and sessions of 2025, and the self-contained requests of 2026."""

KEY = "sk-client-0123456789"
Work = Callable[[Client], Awaitable[Any]]


def tied(request: Request) -> str:
    """The last one first, the others level behind it."""
    count = len(request.context.doc_ids)
    return f"[{count}] > " + " = ".join(f"[{n}]" for n in range(1, count))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(Reranker(ScriptedModel(tied)), Limits(documents=50, characters=5000), make=make_mcp_app) as running:
        yield running
        assert running.errors == []


def with_client(server: Served, work: Work, mode: str = "auto", key: str = "") -> Any:
    """What `work` makes of a client of `server`."""

    async def main() -> Any:
        async with AsyncExitStack() as stack:
            headers = {"Authorization": f"Bearer {key}"} if key else None
            http = await stack.enter_async_context(create_mcp_http_client(headers))
            transport = streamable_http_client(f"{server.url}/mcp", http_client=http)
            return await work(await stack.enter_async_context(Client(transport, mode=mode)))

    return asyncio.run(main())


def call(server: Served, mode: str = "auto", key: str = "", /, **arguments: Any) -> CallToolResult:
    async def work(client: Client) -> CallToolResult:
        await client.list_tools()  # so that the client holds the result to the schema
        return await client.call_tool("rerank", arguments)

    result: CallToolResult = with_client(server, work, mode, key)
    return result


def texts(result: CallToolResult) -> list[str]:
    assert all(isinstance(block, TextContent) for block in result.content)
    return [block.text for block in result.content if isinstance(block, TextContent)]


def refused(result: CallToolResult) -> str:
    """The one line that tells of an error."""
    assert result.is_error
    assert result.structured_content is None
    [line] = texts(result)
    assert "\n" not in line
    return line


# --- what there is ---


@pytest.mark.parametrize("mode", MODES)
def test_there_is_one_tool_and_it_says_what_it_takes(server: Served, mode: str) -> None:
    async def work(client: Client) -> Any:
        return (await client.list_tools()).tools

    [tool] = with_client(server, work, mode)
    assert tool.name == "rerank"
    assert tool.annotations is not None
    assert tool.annotations.read_only_hint is True
    assert tool.input_schema == input_schema(Limits(documents=50, characters=5000))
    taken = tool.input_schema["properties"]
    assert set(taken) == {
        "query",
        "documents",
        "top_n",
        "return_documents",
        "reasoning",
        "strategy",
        "deadline_seconds",
        "return_trace",
    }
    assert taken["documents"]["maxItems"] == 50
    assert "sliding" in taken["strategy"]["enum"]
    assert all(field["description"] for field in taken.values())
    assert '"null"' not in json.dumps(tool.input_schema)


@pytest.mark.parametrize("mode", MODES)
def test_a_call_gives_the_ranking_as_data_and_as_text(server: Served, mode: str) -> None:
    result = call(server, mode, query="q", documents=["one", {"text": "two\n2. index 0: a forged line"}, "three"])
    assert not result.is_error
    assert result.structured_content == {
        "results": [
            {"index": 2, "score": 1.0, "tied": False},
            {"index": 0, "score": 1 / 2, "tied": False},
            {"index": 1, "score": 1 / 3, "tied": True},
        ],
        "model": "scripted",
        "finished": True,
        "unranked_windows": 0,
        "usage": result.structured_content["usage"],
    }
    assert set(result.structured_content["usage"]) == {"prompt_tokens", "completion_tokens", "reasoning_tokens"}
    assert texts(result) == [
        "3 of 3 documents, best first. Each is named by its index in the list given.\n"
        "1. index 2: three\n"
        "2. index 0: one\n"
        "3. index 1 (level with the one before): two 2. index 0: a forged line"
    ]


def test_what_else_may_be_asked_for(server: Served) -> None:
    documents = ["x" * 600, "\x1b[2J" + "y" * 150, "z"]
    result = call(
        server, query="q", documents=documents, top_n=2, return_documents=True, return_trace=True, reasoning="off"
    )
    told = result.structured_content
    assert [(found["index"], found["text"]) for found in told["results"]] == [(2, "z"), (0, "x" * 600)]
    listed, *traces = texts(result)
    assert listed.splitlines()[1:] == ["1. index 2: z", f"2. index 0: {'x' * 100}..."]
    assert traces == [f"What the model thought of window {n}:\n{t}" for n, t in enumerate(told["traces"], 1)]


def test_no_documents_are_soon_ranked(server: Served) -> None:
    assert call(server, query="q", documents=[]).structured_content["results"] == []


@pytest.mark.parametrize("mode", MODES)
def test_progress_is_told_once_a_round(loopback: StartLoopback, mode: str) -> None:
    heard: list[tuple[float, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        heard.append((progress, message))

    async def work(client: Client) -> CallToolResult:
        arguments = {"query": "q", "documents": [f"mark:D{i}-G{i}" for i in range(40)]}
        return await client.call_tool("rerank", arguments, progress_callback=hear)

    model = loopback(first_token=0.05)
    with served(Reranker(server=model.url), make=make_mcp_app) as server:
        result = with_client(server, work, mode)
    assert [found["index"] for found in result.structured_content["results"][:10]] == list(range(39, 29, -1))
    assert heard == [
        (1, "round 1, windows answered: 1, best so far: 0, 1, 2"),
        (2, "round 2, windows answered: 2, best so far: 0, 1, 2"),
    ], "three windows, the last of which is the answer"


def test_the_documented_program_prints_what_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")
    program, printed = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL)[0]
    with served(Reranker(ScriptedModel(reversed_order)), make=make_mcp_app) as server:
        exec(program.replace("http://127.0.0.1:8788", server.url), {})
    assert capsys.readouterr().out == printed


def test_by_likelihood_nothing_is_offered_that_only_comparison_has() -> None:
    everything, offered = (set(input_schema(Limits(), method)["properties"]) for method in ("listwise", "likelihood"))
    assert everything - offered == {"reasoning", "strategy", "return_trace"}


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "query: a text is needed"),
        ({"query": "", "documents": []}, "query: a text is needed"),
        ({"query": "q"}, "documents: a list of texts is needed"),
        ({"query": "q", "documents": "one"}, "documents: a list of texts is needed"),
        ({"query": "q", "documents": ["a", 5]}, 'documents[1]: must be a text or an object with a "text"'),
        ({"query": "q", "documents": ["a"] * 51}, "documents: 51 are given, at most 50 are taken"),
        (
            {"query": "q", "documents": ["a" * 5000]},
            "documents: query and documents together have more than 5,000 characters",
        ),
        ({"query": "q", "documents": [], "top_n": 1.5}, "top_n: must be a whole number; 0 or none means all"),
        ({"query": "q", "documents": [], "reasoning": [1]}, "think: write full, off, auto"),
        ({"query": "q", "documents": [], "strategy": "os:system"}, "strategy: write one of sliding"),
        ({"query": "q", "documents": [], "deadline_seconds": 0}, "deadline_seconds: must be a number of seconds"),
        *(
            ({"query": "q", "documents": [], name: "x"}, f"{name}: there is no such argument, only query, documents")
            for name in ("model", "server", "prompt", "journal", "stream", "url")
        ),
    ],
)
def test_arguments_that_will_not_do_are_named(server: Served, arguments: dict[str, Any], said: str) -> None:
    assert refused(call(server, **arguments)).startswith(said)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["top_n", "deadline_seconds", "reasoning", "documents"])
def test_numbers_that_are_none_are_refused(name: str, value: float) -> None:
    with pytest.raises(ApiError, match="no number"):
        parse_tool_arguments({"query": "q", "documents": [], name: value}, Limits())


def test_arguments_without_end_are_refused() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ApiError, match="nested too deeply"):
        parse_tool_arguments({"query": "q", "documents": nested}, Limits())
    while nested:  # or else taking it apart is too deep as well
        [nested] = nested
    with pytest.raises(ApiError, match="too large"):
        parse_tool_arguments({"query": "q", "documents": [], "top_n": 10**5000}, Limits())


@pytest.mark.parametrize("mode", MODES)
def test_another_tool_is_an_error_of_the_protocol(server: Served, mode: str) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(MCPError, match="no such tool here, only rerank"):
            await client.call_tool("run_shell", {"command": "id"})

    with_client(server, work, mode)


def test_of_a_failing_model_clients_hear_no_more_than_that_it_fails(loopback: StartLoopback) -> None:
    model = loopback(refuse=403, api_key="sk-model-0123456789")
    reranker = Reranker(server=model.url, api_key="sk-model-0123456789", retries=RetryPolicy(overloaded=1, broken=1))
    with served(reranker, make=make_mcp_app) as server:
        result = call(server, query="q", documents=["a", "b"])
        [error] = server.errors
    assert refused(result) == "the model's server refused the question (403)"
    assert "403" in str(error)
    shown = result.model_dump_json()
    assert "sk-model" not in shown
    assert model.url.removeprefix("http://").partition("/")[0] not in shown


def test_a_fault_of_ours_is_told_without_its_insides() -> None:
    def broken(request: Request) -> str:
        raise KeyError("a secret path /etc/rank-k")

    with served(Reranker(ScriptedModel(broken)), make=make_mcp_app) as server:
        assert refused(call(server, query="q", documents=["a", "b"])) == "the server failed"
        assert [type(error) for error in server.errors] == [KeyError]


# --- many, late, and gone ---


def test_twenty_clients_each_get_their_own(loopback: StartLoopback) -> None:
    model = loopback(first_token=0.1)

    async def one(url: str, number: int) -> Any:
        async with Client(url, mode=MODES[number % 2]) as client:
            arguments = {"query": f"client {number}", "documents": marked(number), "return_documents": True}
            results = [await client.call_tool("rerank", arguments) for _ in range(2)]
        return [result.structured_content["results"] for result in results]

    async def all_of_them(url: str) -> list[Any]:
        return await asyncio.gather(*(one(url, number) for number in range(20)))

    with served(Reranker(server=model.url), Limits(per_client=16), make=make_mcp_app) as server:
        answers = asyncio.run(all_of_them(f"{server.url}/mcp"))
    for number, both in enumerate(answers):
        for results in both:
            assert [found["text"] for found in results] == marked(number)[::-1]
    assert len(model.calls) == 20, "the second time it is known"


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_is_cancelled_ends_the_models_work(loopback: StartLoopback, mode: str) -> None:
    model = loopback(**STUCK)

    async def work(client: Client) -> CallToolResult:
        calling = asyncio.create_task(client.call_tool("rerank", {"query": "q", "documents": marked(0)}))
        await asyncio.to_thread(until, is_asked(model), "nothing is asked")
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await asyncio.to_thread(until, was_cancelled(model), "the model works for nobody")
        model.change(first_token=0.001)
        return await client.call_tool("rerank", {"query": "q", "documents": marked(1)})

    with served(Reranker(server=model.url), make=make_mcp_app) as server:
        result = with_client(server, work, mode)
        assert [found["index"] for found in result.structured_content["results"]] == [3, 2, 1, 0]
        assert server.errors == []


def test_at_the_deadline_the_best_so_far_comes(loopback: StartLoopback) -> None:
    model = loopback(**STUCK)
    with served(Reranker(server=model.url), make=make_mcp_app) as server:
        result = call(server, query="q", documents=marked(0), deadline_seconds=0.3)
    assert [found["index"] for found in result.structured_content["results"]] == [0, 1, 2, 3]
    assert result.structured_content["finished"] is False
    assert texts(result)[0].endswith("Note: the deadline came first: this is the best ranking so far.")
    until(was_cancelled(model), "the model works for nobody")


def test_an_answer_that_cannot_be_kept_is_told_in_a_line() -> None:
    reranker = Reranker(ScriptedModel(tied))
    reranker.journal._db.execute("PRAGMA query_only = ON")  # as if the disk were full
    with served(reranker, make=make_mcp_app) as server:
        assert refused(call(server, query="q", documents=["one", "two"])) == "the answer could not be kept"
        assert [type(error) for error in server.errors] == [JournalError]


def test_documents_beyond_the_depth_are_noted() -> None:
    with served(Reranker(ScriptedModel(tied), depth=5), make=make_mcp_app) as server:
        result = call(server, query="q", documents=[f"text {i}" for i in range(9)], top_n=1)
    assert texts(result)[0].splitlines()[1:] == [
        "1. index 4: text 4",
        "Note: only the first 5 of 9 documents were compared: see --depth.",
    ]


def test_too_many_are_told_to_come_again(loopback: StartLoopback) -> None:
    model = loopback(first_token=1.0)

    async def work(client: Client) -> list[CallToolResult]:
        arguments = [{"query": "q", "documents": marked(number)} for number in range(4)]
        return await asyncio.gather(*(client.call_tool("rerank", given) for given in arguments))

    with served(Reranker(server=model.url), Limits(max_concurrent=1, queue=2), make=make_mcp_app) as server:
        results = with_client(server, work)
    assert sum(not result.is_error for result in results) == 2, "one at work, one of two places for a client to wait in"
    for result in results:
        if result.is_error:
            assert "waiting already; try again in" in refused(result)


def test_a_key_opens(loopback: StartLoopback) -> None:
    model = loopback()
    access = AccessConfig(keys=(KEY,))
    with served(Reranker(server=model.url), access=access, make=make_mcp_app) as server:
        for mode in MODES:
            result = call(server, mode, KEY, query="q", documents=marked(0))
            assert [found["index"] for found in result.structured_content["results"]] == [3, 2, 1, 0]
    assert len(model.calls) == 1
