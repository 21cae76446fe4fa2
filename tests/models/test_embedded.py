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
from rank_k.window.sanitize import sanitize
from tests.paths import SHARED
from tests.support.embedded import USER_CACHE, needs_weights

pytestmark = pytest.mark.embedded

TREC_DL19 = SHARED / "trec-dl19"
PASSAGES = [
    "Rain falls from clouds.",
    "Rayleigh scattering of sunlight by the molecules of air makes the sky look blue.",
    "Cats purr when they are content.",
]


@pytest.fixture(autouse=True)
def use_user_cache(isolated_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if USER_CACHE is not None:
        monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))


@pytest.fixture(scope="module")
def reasoning_reranker() -> Iterator[Reranker]:
    assert USER_CACHE is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK_K_CACHE", str(USER_CACHE))
        with Reranker(DEFAULT_WEIGHTS, reasoning=32, max_tokens=128, context_length=2048) as reranker:
            yield reranker


SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"),
    *("<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>"),
    *("<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"),
)
"""All special tokens of SmolLM2's vocabulary."""


@needs_weights
def test_sanitized_passages_have_no_special_tokens(reasoning_reranker: Reranker) -> None:
    async def count(text: str) -> int | None:
        return await reasoning_reranker.model.count_tokens(text)

    reasoning_reranker.prepare()
    for token in SPECIAL_TOKENS:
        assert reasoning_reranker._loop.run(count(token)) == 1, "a special token"
        assert (reasoning_reranker._loop.run(count(sanitize(token))) or 0) > 1


@needs_weights
def test_rank_keeps_the_reasoning_budget_and_ranks(reasoning_reranker: Reranker) -> None:
    """The chat template has no reasoning: a prefill opens it, it ends at 32 tokens, and the answer is constrained."""
    hits = reasoning_reranker.rank("why is the sky blue", PASSAGES)
    assert sorted(hit.index for hit in hits) == [0, 1, 2]
    assert not hits.unranked_windows
    assert not hits.repairs.get("missing")
    assert hits.traces[0]
    assert 0 < hits.usage.reasoning_tokens <= 32
    assert not hits.usage.estimated
    assert hits.usage.cached_tokens > hits.usage.prompt_tokens / 3, "the second call found the first one's prompt"


@needs_weights
def test_rank_repeats_the_same_query_from_the_cache(reasoning_reranker: Reranker) -> None:
    first = reasoning_reranker.rank("why is the sky blue", PASSAGES)
    second = reasoning_reranker.rank("why is the sky blue", PASSAGES)
    assert [hit.index for hit in first] == [hit.index for hit in second]
    assert first.traces == second.traces


@needs_weights
def test_rank_with_reasoning_off_answers_directly() -> None:
    with Reranker(DEFAULT_WEIGHTS, reasoning="off", context_length=2048) as reranker:
        hits = reranker.rank("why is the sky blue", PASSAGES)
    assert hits.usage.reasoning_tokens == 0
    assert not hits.unranked_windows


@needs_weights
def test_rank_with_reasoning_auto_gets_log_probabilities() -> None:
    with Reranker(DEFAULT_WEIGHTS, reasoning="auto", max_tokens=128, context_length=2048) as reranker:
        hits = reranker.rank("why is the sky blue", PASSAGES)
    assert not hits.unranked_windows
    assert hits.repairs.get("windows_reasoned", 0) <= 1


@needs_weights
def test_rank_truncates_passages_to_the_context_length() -> None:
    with Reranker(DEFAULT_WEIGHTS, reasoning="off", context_length=1024) as reranker:
        hits = reranker.rank("why is the sky blue", [f"{text} " + "The sky is wide. " * 100 for text in PASSAGES])
    assert hits.repairs["context_truncated"] == 3
    assert not hits.unranked_windows


@needs_weights
def test_close_at_interpreter_exit_prints_nothing() -> None:
    """Frameworks have no place to say when they have done with a reranker (`integrations.asking`)."""
    program = "import atexit, rank_k; r = rank_k.Reranker(context_length=512); r.prepare(); atexit.register(r.close)"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert (completed.returncode, completed.stderr) == (0, "")


# --- query likelihood ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def likelihood_reranker() -> Iterator[Reranker]:
    assert USER_CACHE is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK_K_CACHE", str(USER_CACHE))
        with Reranker(EmbeddedModel(context_length=512, threads=1), concurrency=1) as reranker:
            yield reranker


@needs_weights
def test_reranker_defaults_to_likelihood_for_untrained_weights(likelihood_reranker: Reranker) -> None:
    assert likelihood_reranker.method == "likelihood"
    with Reranker(DEFAULT_WEIGHTS) as default, Reranker(DEFAULT_WEIGHTS, reasoning="off") as direct:
        assert (default.method, direct.method) == ("likelihood", "listwise")
    with Reranker() as default_model, Reranker(method="likelihood") as likelihood:
        assert (default_model.method, default_model.model.name) == ("combined", "rank-k-nano")
        assert (likelihood.method, likelihood.model.name) == ("likelihood", DEFAULT_WEIGHTS)
    with Reranker(prompt="listwise") as custom_prompt:  # not the student's, which knows one prompt
        assert (custom_prompt.method, custom_prompt.model.name) == ("listwise", DEFAULT_WEIGHTS)
    hits = likelihood_reranker.rank("why is the sky blue", PASSAGES)
    assert hits[0].index == 1
    assert not hits.repairs
    assert all(hit.likelihood is not None and hit.likelihood < -1 for hit in hits)
    assert hits.usage.completion_tokens == 3 * 5, "one for each token of the query, and none for an end"


@needs_weights
def test_likelihood_does_not_depend_on_earlier_requests(likelihood_reranker: Reranker) -> None:
    hits = likelihood_reranker.rank("why do cats purr", [PASSAGES[2], PASSAGES[0]])
    with Reranker(EmbeddedModel(context_length=512, threads=1), concurrency=1) as other_reranker:
        hits_after_another = other_reranker.rank("why do cats purr", [f"{PASSAGES[2]} Really.", PASSAGES[2]])
    assert hits.usage.cached_tokens == hits_after_another.usage.cached_tokens == 0
    assert {hit.likelihood for hit in hits} & {hit.likelihood for hit in hits_after_another}


@needs_weights
@pytest.mark.parametrize(
    "query", ['say "no" \\ {x} [1]', "a 👩‍👩‍👧 naïve Ü", "שלום עליكم", "日本語の質問", "<|im_end|>"]
)
def test_likelihood_scores_any_query_text(likelihood_reranker: Reranker, query: str) -> None:
    hits = likelihood_reranker.rank(query, ["Rain falls.", "Cats purr."])
    assert not hits.unranked_windows
    assert set(hits.repairs) <= {"byte_tokens_skipped"}
    assert all(hit.likelihood is not None and hit.likelihood < -1 for hit in hits)


@needs_weights
def test_forced_text_has_the_log_probabilities_of_free_generation() -> None:
    """The probabilities told are the model's, not those left by the grammar, and the tokens are the usual ones, which
    those that greedy decoding chooses under a grammar of characters are not."""
    prompt = "Document: Rayleigh scattering makes the sky look blue.\nSearch query:"

    async def score_texts() -> tuple[list[tuple[str, float]], list[tuple[str, float]], list[Response]]:
        server = await EmbeddedServer.start(locate(DEFAULT_WEIGHTS), context_length=512, threads=1)
        model = HttpModel(server.url, "m", api_key=server.api_key, server_type="llamacpp", reasons=False)
        try:
            generated = await asyncio.to_thread(generate, server)
            generated_by_characters = await asyncio.to_thread(
                generate, server, grammar='root ::= " why is the sky blue"'
            )
            forced_texts = ("".join(text for text, _ in generated), " why is the sky blue")
            requests = [Request((Message("user", prompt),), 1, forced_text=forced_text) for forced_text in forced_texts]
            return generated, generated_by_characters, [await model.complete(request) for request in requests]
        finally:
            await model.close()
            await server.close()

    def generate(server: EmbeddedServer, **constraint: str) -> list[tuple[str, float]]:
        body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "logprobs": 1, **constraint}
        headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
        http_request = urllib.request.Request(f"{server.url}/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(http_request) as answer:
            [choice] = json.load(answer)["choices"]
        return read_logprobs(choice)

    generated, generated_by_characters, [forced_as_generated, forced_text_response] = asyncio.run(score_texts())
    assert forced_as_generated.tokens is not None
    assert forced_text_response.tokens is not None
    assert [text for text, _ in forced_as_generated.tokens] == [text for text, _ in generated]
    assert [logprob for _, logprob in forced_as_generated.tokens] == pytest.approx(
        [logprob for _, logprob in generated], abs=0.05
    )
    assert [text for text, _ in forced_text_response.tokens] == [" why", " is", " the", " sky", " blue"]
    assert [text for text, _ in generated_by_characters] == [" ", "why", " is", " the", " sky", " blue"]
    assert (
        sum(logprob for _, logprob in generated_by_characters)
        < sum(logprob for _, logprob in forced_text_response.tokens) - 5
    )


# --- the command line ------------------------------------------------------------------------------


def run_rank_k(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rank_k.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )


@pytest.mark.slow
@needs_weights
def test_demo_improves_both_questions() -> None:
    completed = run_rank_k("demo")
    assert completed.returncode == 0, completed.stderr
    measures = re.findall(r"nDCG@10 (\d\.\d{4}) → (\d\.\d{4})", completed.stdout)
    assert len(measures) == 2, completed.stdout
    assert all(float(after) > float(before) for before, after in measures)
    assert re.search(r"2 questions will take about \d+ ", completed.stderr)


@pytest.mark.slow
@needs_weights
@pytest.mark.skipif(not TREC_DL19.is_dir(), reason="the collection trec-dl19 is not beside this checkout")
def test_rerank_command_with_the_embedded_model(tmp_path: Path) -> None:
    """Three queries of TREC DL 2019, depth 20; all 43 by `python -m benchmarks.embedded`."""
    lines = (TREC_DL19 / "run.anserini-bm25-condensed100.trec").read_text().splitlines(keepends=True)
    query_ids = sorted({line.split()[0] for line in lines})[:3]
    run = tmp_path / "bm25.trec"
    run.write_text("".join(line for line in lines if line.split()[0] in query_ids))
    output = tmp_path / "out.trec"
    completed = run_rank_k(
        *(
            "rerank",
            "--run",
            run,
            "--queries",
            TREC_DL19 / "queries.jsonl",
            "--documents",
            TREC_DL19 / "corpus.jsonl.gz",
        ),
        *("--output", output, "--depth", "20", "--max-tokens", "256", "--strict"),
    )
    assert completed.returncode == 0, completed.stderr
    assert len(output.read_text().splitlines()) == sum(line.split()[0] in query_ids for line in lines)
    evaluation = run_rank_k("evaluate", "--qrels", TREC_DL19 / "qrels.trec", run, output)
    assert evaluation.returncode == 0
    means, _, costs = evaluation.stdout.partition("\n\n")
    assert len(means.splitlines()) == 3
    assert "nDCG@10" in means
    assert str(output) in costs
