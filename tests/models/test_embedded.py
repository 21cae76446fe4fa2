"""The embedded model for real: the weights that `rank-k fetch` gets, the server as a child, the whole path."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rank_k.models.embedded import EmbeddedModel
from rank_k.models.http import HttpModel
from rank_k.models.launch import EmbeddedServer
from rank_k.models.server_types import read_logprobs
from rank_k.models.weights import DEFAULT_WEIGHTS, locate
from rank_k.reranker import Reranker
from rank_k.types import Message, Request, Response
from tests.paths import SHARED
from tests.support.embedded import USER_CACHE, needs_weights

pytestmark = pytest.mark.embedded

SHARED = SHARED / "trec-dl19"
PASSAGES = [
    "Rain falls from clouds.",
    "Rayleigh scattering of sunlight by the molecules of air makes the sky look blue.",
    "Cats purr when they are content.",
]


@pytest.fixture(autouse=True)
def fetched(isolated_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if USER_CACHE is not None:
        monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))


@pytest.fixture(scope="module")
def thinking() -> Iterator[Reranker]:
    assert USER_CACHE is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK_K_CACHE", str(USER_CACHE))
        with Reranker(DEFAULT_WEIGHTS, reasoning=32, max_tokens=128, context_length=2048) as reranker:
            yield reranker


@needs_weights
def test_a_thought_within_its_budget_and_a_ranking_after_it(thinking: Reranker) -> None:
    """The model has no thought of its own: one is begun for it, ended at 32 tokens, and the answer held to ids."""
    hits = thinking.rank("why is the sky blue", PASSAGES)
    assert sorted(hit.index for hit in hits) == [0, 1, 2]
    assert not hits.unranked_windows
    assert not hits.repairs.get("missing")
    assert hits.traces[0]
    assert 0 < hits.usage.reasoning_tokens <= 32
    assert not hits.usage.estimated
    assert hits.usage.cached_tokens > hits.usage.prompt_tokens / 3, "the second call found the first one's prompt"


@needs_weights
def test_the_same_question_costs_nothing_the_second_time(thinking: Reranker) -> None:
    first = thinking.rank("why is the sky blue", PASSAGES)
    second = thinking.rank("why is the sky blue", PASSAGES)
    assert [hit.index for hit in first] == [hit.index for hit in second]
    assert first.traces == second.traces


@needs_weights
def test_off_answers_at_once() -> None:
    with Reranker(DEFAULT_WEIGHTS, reasoning="off", context_length=2048) as reranker:
        hits = reranker.rank("why is the sky blue", PASSAGES)
    assert hits.usage.reasoning_tokens == 0
    assert not hits.unranked_windows


@needs_weights
def test_auto_has_probabilities_to_go_by() -> None:
    with Reranker(DEFAULT_WEIGHTS, reasoning="auto", max_tokens=128, context_length=2048) as reranker:
        hits = reranker.rank("why is the sky blue", PASSAGES)
    assert not hits.unranked_windows
    assert hits.repairs.get("windows_reasoned", 0) <= 1


@needs_weights
def test_passages_share_the_context_and_the_server_never_refuses() -> None:
    with Reranker(DEFAULT_WEIGHTS, reasoning="off", context_length=1024) as reranker:
        hits = reranker.rank("why is the sky blue", [f"{text} " + "The sky is wide. " * 100 for text in PASSAGES])
    assert hits.repairs["context_truncated"] == 3
    assert not hits.unranked_windows


@needs_weights
def test_closed_as_python_ends_it_says_nothing() -> None:
    """Frameworks have no place to say when they have done with a reranker (`integrations.asking`)."""
    program = "import atexit, rank_k; r = rank_k.Reranker(context=512); r.prepare(); atexit.register(r.close)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")


# --- query likelihood ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def likely() -> Iterator[Reranker]:
    assert USER_CACHE is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK_K_CACHE", str(USER_CACHE))
        with Reranker(EmbeddedModel(context_length=512, threads=1), concurrency=1) as reranker:
            yield reranker


@needs_weights
def test_untrained_weights_rank_by_likelihood_unless_told_otherwise(likely: Reranker) -> None:
    assert likely.method == "likelihood"
    with Reranker(DEFAULT_WEIGHTS) as usual, Reranker(DEFAULT_WEIGHTS, reasoning="off") as told:
        assert (usual.method, told.method) == ("likelihood", "listwise")
    with Reranker() as nobody, Reranker(method="likelihood") as asked:
        assert (nobody.method, nobody.model.name) == ("combined", "rank-k-nano")
        assert (asked.method, asked.model.name) == ("likelihood", DEFAULT_WEIGHTS)
    with Reranker(prompt="listwise") as own:  # not the student's, which knows one prompt
        assert (own.method, own.model.name) == ("listwise", DEFAULT_WEIGHTS)
    hits = likely.rank("why is the sky blue", PASSAGES)
    assert hits[0].index == 1
    assert not hits.repairs
    assert all(hit.likelihood is not None and hit.likelihood < -1 for hit in hits)
    assert hits.usage.completion_tokens == 3 * 5, "one for each token of the query, and none for an end"


@needs_weights
def test_a_likelihood_depends_on_nothing_that_was_asked_before(likely: Reranker) -> None:
    hits = likely.rank("why do cats purr", [PASSAGES[2], PASSAGES[0]])
    with Reranker(EmbeddedModel(context_length=512, threads=1), concurrency=1) as other:
        after_another = other.rank("why do cats purr", [f"{PASSAGES[2]} Really.", PASSAGES[2]])
    assert hits.usage.cached_tokens == after_another.usage.cached_tokens == 0
    assert {hit.likelihood for hit in hits} & {hit.likelihood for hit in after_another}


@needs_weights
@pytest.mark.parametrize(
    "query", ['say "no" \\ {x} [1]', "a 👩‍👩‍👧 naïve Ü", "שלום עליكم", "日本語の質問", "<|im_end|>"]
)
def test_any_query_can_be_spelt(likely: Reranker, query: str) -> None:
    hits = likely.rank(query, ["Rain falls.", "Cats purr."])
    assert not hits.unranked_windows
    assert set(hits.repairs) <= {"byte_tokens_skipped"}
    assert all(hit.likelihood is not None and hit.likelihood < -1 for hit in hits)


@needs_weights
def test_what_is_spelt_is_as_likely_as_if_it_had_been_said_freely() -> None:
    """The probabilities told are the model's, not those left by the grammar, and the tokens are the usual ones, which
    those that greedy decoding chooses under a grammar of characters are not."""
    prompt = "Document: Rayleigh scattering makes the sky look blue.\nSearch query:"

    async def three() -> tuple[list[tuple[str, float]], list[tuple[str, float]], list[Response]]:
        server = await EmbeddedServer.start(locate(DEFAULT_WEIGHTS), context_length=512, threads=1)
        model = HttpModel(server.url, "m", api_key=server.api_key, server_type="llamacpp", thinks=False)
        try:
            free = await asyncio.to_thread(said, server)
            characters = await asyncio.to_thread(said, server, grammar='root ::= " why is the sky blue"')
            spellings = ("".join(text for text, _ in free), " why is the sky blue")
            requests = [Request((Message("user", prompt),), 1, forced_text=spelling) for spelling in spellings]
            return free, characters, [await model.complete(request) for request in requests]
        finally:
            await model.close()
            await server.close()

    def said(server: EmbeddedServer, **constraint: str) -> list[tuple[str, float]]:
        body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "logprobs": 1, **constraint}
        headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
        asking = urllib.request.Request(f"{server.url}/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(asking) as answer:
            [choice] = json.load(answer)["choices"]
        return read_logprobs(choice)

    free, characters, [same, usual] = asyncio.run(three())
    assert same.tokens is not None
    assert usual.tokens is not None
    assert [text for text, _ in same.tokens] == [text for text, _ in free]
    assert [p for _, p in same.tokens] == pytest.approx([p for _, p in free], abs=0.05)
    assert [text for text, _ in usual.tokens] == [" why", " is", " the", " sky", " blue"]
    assert [text for text, _ in characters] == [" ", "why", " is", " the", " sky", " blue"]
    assert sum(p for _, p in characters) < sum(p for _, p in usual.tokens) - 5


# --- the command line ------------------------------------------------------------------------------


def rank_k(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rank_k.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )


@pytest.mark.slow
@needs_weights
def test_the_demo() -> None:
    done = rank_k("demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("── ") == 6
    found = re.search(r"nDCG@10  BM25 (\d\.\d{4})   reranked (\d\.\d{4})", done.stdout)
    assert found, done.stdout
    assert "6 questions:" in done.stdout


@pytest.mark.slow
@needs_weights
@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection trec-dl19 is not beside this checkout")
def test_a_real_run_with_the_embedded_model(tmp_path: Path) -> None:
    """Three queries of TREC DL 2019, depth 20; all 43 by `python -m benchmarks.embedded`."""
    lines = (SHARED / "run.anserini-bm25-condensed100.trec").read_text().splitlines(keepends=True)
    kept = sorted({line.split()[0] for line in lines})[:3]
    run = tmp_path / "bm25.trec"
    run.write_text("".join(line for line in lines if line.split()[0] in kept))
    output = tmp_path / "out.trec"
    done = rank_k(
        *("rerank", "--run", run, "--queries", SHARED / "queries.jsonl", "--documents", SHARED / "corpus.jsonl.gz"),
        *("--output", output, "--depth", "20", "--max-tokens", "256", "--strict"),
    )
    assert done.returncode == 0, done.stderr
    assert len(output.read_text().splitlines()) == sum(line.split()[0] in kept for line in lines)
    told = rank_k("evaluate", "--qrels", SHARED / "qrels.trec", run, output)
    assert told.returncode == 0
    means, _, costs = told.stdout.partition("\n\n")
    assert len(means.splitlines()) == 3
    assert "nDCG@10" in means
    assert str(output) in costs
