"""Clients of other people's making, unchanged, against the command with the embedded model behind it.

Each is installed into an environment of its own. The scripts get the server's address, a query and texts, and print
what their client makes of the answer as JSON: for each way to ask, `[text, score]` pairs, best first.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.support.embedded import USER_CACHE, needs_weights
from tests.support.serving import ServerClient, start_server
from tests.support.venvs import create_environment
from tests.support.waiting import LONG_PATIENCE

pytestmark = [pytest.mark.slow, needs_weights]

KEY = "sk-of-the-clients-0123456789"
QUERY = "why is the sky blue"
TEXTS = [
    "Rain falls from clouds.",
    "Rayleigh scattering of sunlight by the molecules of air makes the sky look blue.",
    "Cats purr when they are content.",
]

HEAD = """
import asyncio, json, os, sys
URL, QUERY, *TEXTS = sys.argv[1:]
KEY = os.environ["KEY"]
rankings, errors = {}, {}

def record_ranking(name, pairs):
    rankings[name] = [list(pair) for pair in pairs]

def record_error(name, call):
    try:
        call()
    except Exception as error:
        errors[name] = str(error)
"""

COHERE = """
import cohere
request = {"model": "rank-k", "query": QUERY, "documents": TEXTS}
client = cohere.ClientV2(base_url=URL, api_key=KEY)
answer = client.rerank(**request)
record_ranking("v2", [(TEXTS[result.index], result.relevance_score) for result in answer.results])
assert answer.id and answer.meta.tokens.input_tokens > 0 and answer.meta.tokens.output_tokens > 0
two = client.rerank(**request, top_n=2).results
assert [result.index for result in two] == [result.index for result in answer.results[:2]]
record_error("v2", lambda: client.rerank(**{**request, "query": ""}))
client = cohere.Client(base_url=URL, api_key=KEY)
answer = client.rerank(**request, return_documents=True, max_chunks_per_doc=10)
record_ranking("v1", [(result.document.text, result.relevance_score) for result in answer.results])
record_error("v1", lambda: client.rerank(**{**request, "query": ""}))

async def main():
    answer = await cohere.AsyncClientV2(base_url=URL, api_key=KEY).rerank(**request, max_tokens_per_doc=4096)
    record_ranking("async", [(TEXTS[result.index], result.relevance_score) for result in answer.results])

asyncio.run(main())
try:
    cohere.ClientV2(base_url=URL, api_key="another").rerank(**request)
except cohere.UnauthorizedError as error:
    assert "missing or unknown key" in error.body["message"]
else:
    raise AssertionError("another key was taken")
"""

LANGCHAIN = """
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
documents = [Document(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
reranker = CohereRerank(base_url=URL, cohere_api_key=KEY, model="rank-k", top_n=3)

def pairs(output):
    assert all(TEXTS[document.metadata["n"]] == document.page_content for document in output)
    return [(document.page_content, document.metadata["relevance_score"]) for document in output]

record_ranking("compress", pairs(reranker.compress_documents(documents, QUERY)))
record_ranking("acompress", pairs(asyncio.run(reranker.acompress_documents(documents, QUERY))))
rows = reranker.rerank(documents, QUERY, top_n=None)
record_ranking("rerank", [(TEXTS[row["index"]], row["relevance_score"]) for row in rows])
record_error("compress", lambda: reranker.compress_documents(documents, ""))
"""

LITELLM = """
import litellm
litellm.suppress_debug_info = True

def pairs(answer):
    return [(result["document"]["text"], result["relevance_score"]) for result in answer.results]

for model in ("cohere/rank-k", "jina_ai/rank-k", "hosted_vllm/rank-k", "huggingface/rank-k"):
    request = {"model": model, "api_base": URL, "api_key": KEY, "query": QUERY, "documents": TEXTS}
    answer = litellm.rerank(**request, return_documents=True)
    record_ranking(model, pairs(answer))
    two = litellm.rerank(**request, top_n=2).results
    assert [result["index"] for result in two[:2]] == [result["index"] for result in answer.results[:2]]
    record_ranking(f"{model}, async", pairs(asyncio.run(litellm.arerank(**request, return_documents=True))))
    record_error(model, lambda: litellm.rerank(**{**request, "query": ""}))
"""

LLAMA_INDEX = """
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
for reranker in (
    CohereRerank(base_url=URL, api_key=KEY, model="rank-k", top_n=3),
    JinaRerank(base_url=f"{URL}/v1", api_key=KEY, model="rank-k", top_n=3),
):
    output = reranker.postprocess_nodes(nodes, query_str=QUERY)
    record_ranking(reranker.class_name(), [(node.text, node.score) for node in output])
    record_error(reranker.class_name(), lambda: reranker.postprocess_nodes(nodes, query_str=""))
"""

HAYSTACK = """
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.jina import JinaRanker
key = Secret.from_token(KEY)
documents = [Document(content=text) for text in TEXTS]
for ranker in (
    CohereRanker(api_base_url=URL, api_key=key, model="rank-k"),
    JinaRanker(base_url=f"{URL}/v1/rerank", api_key=key, model="rank-k"),
    HuggingFaceTEIRanker(url=URL, token=key, max_retries=1),
):
    name = type(ranker).__name__
    for way, output in {
        "run": ranker.run(query=QUERY, documents=documents),
        "run_async": asyncio.run(ranker.run_async(query=QUERY, documents=documents)),
    }.items():
        record_ranking(f"{name}.{way}", [(document.content, document.score) for document in output["documents"]])
    record_error(name, lambda: ranker.run(query="", documents=documents))
"""

TAIL = """
print(json.dumps([rankings, errors, ranked]))
"""

OFFLINE_SETTINGS = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HAYSTACK_TELEMETRY_ENABLED": "False", "DO_NOT_TRACK": "1"}
"""What keeps clients from speaking to anybody else."""


def documented_example(module: str) -> str:
    """The documentation's, for the server of the tests."""
    page = (ROOT / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [block] = [block for block in blocks if block.split()[1].partition(".")[0] == module]
    assert '"http://127.0.0.1:8787' in block
    assert '"any"' in block
    block = re.sub(r'"http://127\.0\.0\.1:8787([^"]*)"', r'f"{URL}\1"', block).replace('"any"', "KEY")
    return f"\nquery, texts = QUERY, TEXTS\n{block}"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerClient]:
    """One for all clients, on one core: beside busy ones llama.cpp waits for the slowest at each step."""
    assert USER_CACHE is not None
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        with start_server("--client-key-env", "KEY", env={"RANK_K_CACHE": str(USER_CACHE), "KEY": KEY}) as running:
            if cores:
                os.sched_setaffinity(0, cores)
            assert running.first_line.startswith(
                "rank-k serve: rank-k-nano (combined): web page and API at http://127.0.0.1:"
            )
            yield running.served
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def expected(server: ServerClient) -> list[list[Any]]:
    """What the server says when it is asked without any client."""
    body = {"query": QUERY, "documents": TEXTS, "return_documents": True}
    answer = server.post(body, Authorization=f"Bearer {KEY}")
    pairs = [[result["document"]["text"], result["relevance_score"]] for result in answer.json["results"]]
    assert sorted(text for text, _ in pairs) == sorted(TEXTS)
    assert pairs[0][0] == TEXTS[1]
    assert [score for _, score in pairs] == [1, 1 / 2, 1 / 3]
    return pairs


@pytest.mark.parametrize(
    ("script", "packages", "rankings_count", "errors_count"),
    [
        pytest.param(COHERE, ["cohere"], 3, 2, id="cohere"),
        pytest.param(LANGCHAIN, ["langchain-cohere"], 3, 1, id="langchain_cohere"),
        pytest.param(LITELLM, ["litellm"], 8, 4, id="litellm"),
        pytest.param(
            LLAMA_INDEX,
            ["llama-index-postprocessor-cohere-rerank", "llama-index-postprocessor-jinaai-rerank"],
            2,
            2,
            id="llama_index",
        ),
        pytest.param(HAYSTACK, ["cohere-haystack", "jina-haystack", "huggingface-api-haystack"], 6, 3, id="haystack"),
    ],
)
def test_client_library_reads_ranking_and_errors(
    server: ServerClient,
    expected: list[list[Any]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    script: str,
    packages: list[str],
    rankings_count: int,
    errors_count: int,
) -> None:
    python = create_environment(tmp_path / "venv", *packages)
    example = documented_example(request.node.callspec.id)
    result = subprocess.run(
        [str(python), "-c", f"{HEAD}{script}{example}{TAIL}", server.url, QUERY, *TEXTS],
        capture_output=True,
        text=True,
        timeout=LONG_PATIENCE,
        env={**os.environ, **OFFLINE_SETTINGS, "KEY": KEY},
    )
    assert result.returncode == 0, result.stderr
    rankings, errors, ranked = json.loads(result.stdout.splitlines()[-1])
    assert (len(rankings), len(errors)) == (rankings_count, errors_count)
    for method, pairs in rankings.items():
        assert pairs == expected, method
    for method, message in errors.items():
        assert "query: must not be empty" in message, method
    assert ranked == [text for text, _ in expected], "as the documentation shows it"
