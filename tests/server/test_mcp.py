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
from rank_k.server.mcp import make_mcp_app, parse_tool_arguments
from rank_k.server.schema import tool_schemas
from rank_k.types import Request
from tests.conftest import StartLoopback
from tests.fakes.likelihood_model import make_likelihood_model
from tests.paths import ROOT
from tests.server.test_access import reversed_order
from tests.server.test_load import STUCK, has_calls, marked_passages, was_cancelled
from tests.support.serving import ServerClient, run_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

MODES = ["legacy", "auto"]
"""The handshake and sessions of 2025, and the self-contained requests of 2026."""

KEY = "sk-client-0123456789"
Work = Callable[[Client], Awaitable[Any]]


def rank_last_first_with_ties(request: Request) -> str:
    """The last one first, the others level behind it."""
    count = len(request.context.doc_ids)
    return f"[{count}] > " + " = ".join(f"[{n}]" for n in range(1, count))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerClient]:
    with run_server(
        Reranker(ScriptedModel(rank_last_first_with_ties)),
        Limits(max_documents=50, max_characters=5000),
        make=make_mcp_app,
    ) as running:
        yield running
        assert running.errors == []


def run_with_client(server: ServerClient, work: Work, mode: str = "auto", key: str = "") -> Any:
    """What `work` makes of a client of `server`."""

    async def main() -> Any:
        async with AsyncExitStack() as stack:
            headers = {"Authorization": f"Bearer {key}"} if key else None
            http = await stack.enter_async_context(create_mcp_http_client(headers))
            transport = streamable_http_client(f"{server.url}/mcp", http_client=http)
            return await work(await stack.enter_async_context(Client(transport, mode=mode)))

    return asyncio.run(main())


def call_rerank(server: ServerClient, mode: str = "auto", key: str = "", /, **arguments: Any) -> CallToolResult:
    async def work(client: Client) -> CallToolResult:
        await client.list_tools()  # so that the client holds the result to the schema
        return await client.call_tool("rerank", arguments)

    result: CallToolResult = run_with_client(server, work, mode, key)
    return result


def content_texts(result: CallToolResult) -> list[str]:
    assert all(isinstance(block, TextContent) for block in result.content)
    return [block.text for block in result.content if isinstance(block, TextContent)]


def error_message(result: CallToolResult) -> str:
    """The one line that tells of an error."""
    assert result.is_error
    assert result.structured_content is None
    [line] = content_texts(result)
    assert "\n" not in line
    return line


# --- what there is ---


@pytest.mark.parametrize("mode", MODES)
def test_list_tools_describes_rerank(server: ServerClient, mode: str) -> None:
    async def work(client: Client) -> Any:
        return (await client.list_tools()).tools

    [tool] = run_with_client(server, work, mode)
    assert tool.name == "rerank"
    assert tool.annotations is not None
    assert tool.annotations.read_only_hint is True
    assert (tool.input_schema, tool.output_schema) == tool_schemas(Limits(max_documents=50, max_characters=5000))
    properties = tool.input_schema["properties"]
    assert set(properties) == {
        "query",
        "documents",
        "top_n",
        "return_documents",
        "reasoning",
        "strategy",
        "deadline_seconds",
        "return_trace",
    }
    assert properties["documents"]["maxItems"] == 50
    assert "sliding" in properties["strategy"]["enum"]
    assert all(field["description"] for field in properties.values())
    assert '"null"' not in json.dumps(tool.input_schema)


@pytest.mark.parametrize("mode", MODES)
def test_rerank_tool_returns_data_and_text(server: ServerClient, mode: str) -> None:
    result = call_rerank(
        server, mode, query="q", documents=["one", {"text": "two\n2. index 0: a forged line"}, "three"]
    )
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
    assert content_texts(result) == [
        "3 of 3 documents, best first. Each is named by its index in the list given.\n"
        "1. index 2: three\n"
        "2. index 0: one\n"
        "3. index 1 (tied with the one before): two 2. index 0: a forged line"
    ]


def test_rerank_tool_accepts_optional_arguments(server: ServerClient) -> None:
    documents = ["x" * 600, "\x1b[2J" + "y" * 150, "z"]
    result = call_rerank(
        server, query="q", documents=documents, top_n=2, return_documents=True, return_trace=True, reasoning="off"
    )
    content = result.structured_content
    assert [(row["index"], row["text"]) for row in content["results"]] == [(2, "z"), (0, "x" * 600)]
    listed, *traces = content_texts(result)
    assert listed.splitlines()[1:] == ["1. index 2: z", f"2. index 0: {'x' * 100}..."]
    assert traces == [f"Reasoning about window {n}:\n{t}" for n, t in enumerate(content["traces"], 1)]


def test_rerank_tool_accepts_no_documents(server: ServerClient) -> None:
    assert call_rerank(server, query="q", documents=[]).structured_content["results"] == []


@pytest.mark.parametrize("mode", MODES)
def test_rerank_tool_reports_progress_each_round(loopback: StartLoopback, mode: str) -> None:
    messages: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        messages.append((progress, message))

    async def work(client: Client) -> CallToolResult:
        arguments = {"query": "q", "documents": [f"mark:D{i}-G{i}" for i in range(40)]}
        return await client.call_tool("rerank", arguments, progress_callback=on_progress)

    model = loopback(first_token=0.05)
    with run_server(Reranker(server=model.url), make=make_mcp_app) as server:
        result = run_with_client(server, work, mode)
    assert [row["index"] for row in result.structured_content["results"][:10]] == list(range(39, 29, -1))
    assert messages == [
        (1, "round 1, finished windows: 1, best documents so far: 0, 1, 2"),
        (2, "round 2, finished windows: 2, best documents so far: 0, 1, 2"),
    ], "three windows, the last of which is the answer"


def test_documented_program_prints_documented_output(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "how-to" / "mcp.md").read_text(encoding="utf-8")
    program, printed = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)[0]
    with run_server(Reranker(ScriptedModel(reversed_order)), make=make_mcp_app) as server:
        exec(program.replace("http://127.0.0.1:8788", server.url), {})
    assert capsys.readouterr().out == printed


def test_input_schema_omits_listwise_arguments_for_likelihood() -> None:
    async def work(client: Client) -> Any:
        return (await client.list_tools()).tools

    with run_server(Reranker(make_likelihood_model(), method="likelihood"), make=make_mcp_app) as server:
        [tool] = run_with_client(server, work)
    assert set(tool_schemas(Limits())[0]["properties"]) - set(tool.input_schema["properties"]) == {
        "reasoning",
        "strategy",
        "return_trace",
    }


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "query: Field required (the text of the query)"),
        ({"query": "", "documents": []}, "query: must not be empty"),
        ({"query": " \n", "documents": []}, "query: must not be empty"),
        ({"query": "q"}, "documents: Field required (the texts to rank, or objects with a text"),
        ({"query": "q", "documents": "one"}, "documents: Input should be a valid list (the texts to rank"),
        (
            {"query": "q", "documents": ["a", 5]},
            "documents[1]: Input should be a valid string (the texts to rank",
        ),
        ({"query": "q", "documents": ["a"] * 51}, "documents: at most 50 are allowed (got 51)"),
        (
            {"query": "q", "documents": ["a" * 5000]},
            "documents: query and documents together are longer than 5,000 characters",
        ),
        (
            {"query": "q", "documents": [], "top_n": 1.5},
            "top_n: Input should be a valid integer (number of results to return; 0 or absent: all",
        ),
        ({"query": "q", "documents": [], "reasoning": [1]}, "reasoning: write full, off, auto"),
        ({"query": "q", "documents": [], "strategy": "os:system"}, "strategy: Input should be 'sliding'"),
        (
            {"query": "q", "documents": [], "deadline_seconds": 0},
            "deadline_seconds: Input should be greater than 0 (return the best ranking so far",
        ),
        *(
            (
                {"query": "q", "documents": [], name: "x"},
                f"{name}: Unexpected keyword argument (the fields are query, documents",
            )
            for name in ("model", "server", "prompt", "journal", "stream", "url")
        ),
    ],
)
def test_rerank_tool_names_invalid_arguments(server: ServerClient, arguments: dict[str, Any], message: str) -> None:
    assert error_message(call_rerank(server, **arguments)).startswith(message)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["top_n", "deadline_seconds", "reasoning", "documents"])
def test_parse_tool_arguments_rejects_nan_and_infinity(name: str, value: float) -> None:
    with pytest.raises(ApiError, match="not a finite number"):
        parse_tool_arguments({"query": "q", "documents": [], name: value}, Limits())


def test_parse_tool_arguments_rejects_deep_nesting_and_huge_numbers() -> None:
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
def test_unknown_tool_is_protocol_error(server: ServerClient, mode: str) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(MCPError, match="the only tool is rerank"):
            await client.call_tool("run_shell", {"command": "id"})

    run_with_client(server, work, mode)


def test_model_errors_are_reported_without_details(loopback: StartLoopback) -> None:
    model = loopback(refuse=403, api_key="sk-model-0123456789")
    reranker = Reranker(server=model.url, api_key="sk-model-0123456789", retries=RetryPolicy(overloaded=1, broken=1))
    with run_server(reranker, make=make_mcp_app) as server:
        result = call_rerank(server, query="q", documents=["a", "b"])
        [error] = server.errors
    assert error_message(result) == "the model server rejected the request (status 403)"
    assert "403" in str(error)
    output = result.model_dump_json()
    assert "sk-model" not in output
    assert model.url.removeprefix("http://").partition("/")[0] not in output


def test_internal_errors_are_reported_without_details() -> None:
    def broken(request: Request) -> str:
        raise KeyError("a secret path /etc/rank-k")

    with run_server(Reranker(ScriptedModel(broken)), make=make_mcp_app) as server:
        assert error_message(call_rerank(server, query="q", documents=["a", "b"])) == "internal server error"
        assert [type(error) for error in server.errors] == [KeyError]


# --- many, late, and gone ---


def test_rerank_tool_answers_20_concurrent_clients(loopback: StartLoopback) -> None:
    model = loopback(first_token=0.1)

    async def rerank_twice(url: str, number: int) -> Any:
        async with Client(url, mode=MODES[number % 2]) as client:
            arguments = {"query": f"client {number}", "documents": marked_passages(number), "return_documents": True}
            results = [await client.call_tool("rerank", arguments) for _ in range(2)]
        return [result.structured_content["results"] for result in results]

    async def rerank_all(url: str) -> list[Any]:
        return await asyncio.gather(*(rerank_twice(url, number) for number in range(20)))

    with run_server(Reranker(server=model.url), Limits(per_client=16), make=make_mcp_app) as server:
        answers = asyncio.run(rerank_all(f"{server.url}/mcp"))
    for number, results_of_client in enumerate(answers):
        for results in results_of_client:
            assert [row["text"] for row in results] == marked_passages(number)[::-1]
    assert len(model.calls) == 20, "the second time it is known"


@pytest.mark.parametrize("mode", MODES)
def test_cancelled_tool_call_cancels_model_call(loopback: StartLoopback, mode: str) -> None:
    model = loopback(**STUCK)

    async def work(client: Client) -> CallToolResult:
        calling = asyncio.create_task(client.call_tool("rerank", {"query": "q", "documents": marked_passages(0)}))
        await asyncio.to_thread(wait_until, has_calls(model), "nothing is asked")
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await asyncio.to_thread(wait_until, was_cancelled(model), "the model works for nobody")
        model.change(first_token=0.001)
        return await client.call_tool("rerank", {"query": "q", "documents": marked_passages(1)})

    with run_server(Reranker(server=model.url), make=make_mcp_app) as server:
        result = run_with_client(server, work, mode)
        assert [row["index"] for row in result.structured_content["results"]] == [3, 2, 1, 0]
        assert server.errors == []


def test_deadline_returns_best_ranking_so_far(loopback: StartLoopback) -> None:
    model = loopback(**STUCK)
    with run_server(Reranker(server=model.url), make=make_mcp_app) as server:
        result = call_rerank(server, query="q", documents=marked_passages(0), deadline_seconds=0.3)
    assert [row["index"] for row in result.structured_content["results"]] == [0, 1, 2, 3]
    assert result.structured_content["finished"] is False
    assert content_texts(result)[0].endswith(
        "Note: the deadline passed before the ranking was finished: this is the best ranking so far."
    )
    wait_until(was_cancelled(model), "the model works for nobody")


def test_journal_write_errors_are_one_line() -> None:
    reranker = Reranker(ScriptedModel(rank_last_first_with_ties))
    reranker.journal._db.execute("PRAGMA query_only = ON")  # as if the disk were full
    with run_server(reranker, make=make_mcp_app) as server:
        assert (
            error_message(call_rerank(server, query="q", documents=["one", "two"]))
            == "the response could not be stored in the journal"
        )
        assert [type(error) for error in server.errors] == [JournalError]


def test_rerank_tool_notes_documents_beyond_depth() -> None:
    with run_server(Reranker(ScriptedModel(rank_last_first_with_ties), depth=5), make=make_mcp_app) as server:
        result = call_rerank(server, query="q", documents=[f"text {i}" for i in range(9)], top_n=1)
    assert content_texts(result)[0].splitlines()[1:] == [
        "1. index 4: text 4",
        "Note: only the first 5 of 9 documents were compared; the others follow in input order (see --depth).",
    ]


def test_full_queue_asks_clients_to_retry(loopback: StartLoopback) -> None:
    model = loopback(first_token=1.0)

    async def work(client: Client) -> list[CallToolResult]:
        arguments = [{"query": "q", "documents": marked_passages(number)} for number in range(4)]
        return await asyncio.gather(*(client.call_tool("rerank", call_arguments) for call_arguments in arguments))

    with run_server(Reranker(server=model.url), Limits(max_concurrent=1, queue=2), make=make_mcp_app) as server:
        results = run_with_client(server, work)
    assert sum(not result.is_error for result in results) == 2, "one at work, one of two places for a client to wait in"
    for result in results:
        if result.is_error:
            assert "waiting; try again in" in error_message(result)


def test_rerank_tool_accepts_client_key(loopback: StartLoopback) -> None:
    model = loopback()
    access = AccessConfig(keys=(KEY,))
    with run_server(Reranker(server=model.url), access=access, make=make_mcp_app) as server:
        for mode in MODES:
            result = call_rerank(server, mode, KEY, query="q", documents=marked_passages(0))
            assert [row["index"] for row in result.structured_content["results"]] == [3, 2, 1, 0]
    assert len(model.calls) == 1
