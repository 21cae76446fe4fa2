"""Reasoning against a loopback server: budgets, forced answers, direct answers, samples, server quirks."""

from __future__ import annotations

from typing import Any

import pytest

from rank_k.engine import RunStats
from rank_k.errors import InputError, ServerError
from rank_k.models.base import Capabilities
from rank_k.models.mock import ScriptedModel
from rank_k.models.retry import RetryPolicy
from rank_k.reranker import Reranker
from rank_k.types import Request, Response, Usage
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.running import FakeModelServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

DATA = make_dataset(4, 40, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}
WINDOW_COUNT = 4 * 3
ALL_CAPABILITIES = "raw continue grammar budget logprobs"


def rerank(server: FakeModelServer, **options: Any) -> tuple[dict[str, tuple[str, ...]], RunStats]:
    options = {"model": "oracle", "concurrency": 4, "retries": RetryPolicy(first=0.001, longest=0.01), **options}
    with Reranker(server=server.url, **options) as reranker:
        results = {r.query_id: r.ranking.doc_ids for r in reranker.rerank(DATA.run, QUERIES, DATA.passages)}
        return results, reranker.stats


def is_perfect(results: dict[str, tuple[str, ...]]) -> bool:
    return all(list(doc_ids[:10]) == DATA.perfect(query_id)[:10] for query_id, doc_ids in results.items())


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp", "somebody"])
@pytest.mark.parametrize("capabilities", [ALL_CAPABILITIES, "continue", ""])
@pytest.mark.parametrize("quirk", ["inline", "reasoning", "reasoning_content"])
def test_rerank_forces_an_answer_for_every_truncated_reasoning(
    loopback: StartLoopback, owner: str, capabilities: str, quirk: str
) -> None:
    """Whatever the server can or cannot do, a cut thought leads to an answer that the model gave."""
    server = loopback(owned_by=owner, capabilities=capabilities, quirk=quirk, cut=1.0, bodies=True)
    results, stats = rerank(server)
    assert is_perfect(results)
    assert stats.repairs["forced_answers"] == WINDOW_COUNT
    assert not stats.unranked_windows


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_forced_answer_request_repeats_prompt_and_trace(loopback: StartLoopback, owner: str) -> None:
    """The first call's prompt exactly, so that the server's prefix cache is hit, then the thought, closed."""
    from tests.fakes.model_server.responses import decode_tokens, render_chat

    server = loopback(owned_by=owner, capabilities=ALL_CAPABILITIES, quirk="reasoning_content", cut=1.0, bodies=True)
    rerank(server)
    bodies = [call.body for call in server.calls]
    chats = [body for body in bodies if "mark:" in body["messages"][0]["content"]]
    assert len(bodies) - len(chats) == 1, "one probe: whether grammars are taken"
    completions = [call.body for call in server.requests if call.path == "/v1/completions"]
    assert len(chats) == len(completions) == WINDOW_COUNT
    prompts = {render_chat(body["messages"]) for body in chats}
    for body in completions:
        text = body["prompt"] if isinstance(body["prompt"], str) else decode_tokens(body["prompt"])
        [prompt_prefix] = [prompt for prompt in prompts if text.startswith(prompt)]
        assert text.removeprefix(prompt_prefix).startswith("<think>\n")
        assert text.endswith("\n</think>\n\n")
        assert "naïve?" in text


@pytest.mark.parametrize("quirk", ["inline", "reasoning"])
@pytest.mark.parametrize("capabilities", [ALL_CAPABILITIES, "raw grammar", ""])
@pytest.mark.parametrize("tokens", [16, 100, 700])
def test_rerank_respects_the_reasoning_budget(
    loopback: StartLoopback, quirk: str, capabilities: str, tokens: int
) -> None:
    server = loopback(capabilities=capabilities, quirk=quirk)
    results, stats = rerank(server, reasoning=tokens)
    assert is_perfect(results)
    assert not stats.repairs["budget_exceeded"] or "budget" not in capabilities
    assert not stats.unranked_windows


def test_rerank_counts_budgets_ignored_by_the_server(loopback: StartLoopback) -> None:
    """vLLM's own key is sent, and the reply's reasoning tokens say that it was forgotten."""
    _, stats = rerank(loopback(capabilities="raw", quirk="reasoning"), reasoning=50)
    assert stats.repairs["budget_exceeded"] == WINDOW_COUNT


@pytest.mark.parametrize("capabilities", [ALL_CAPABILITIES, ""])
def test_rerank_with_reasoning_off_uses_no_reasoning_tokens(loopback: StartLoopback, capabilities: str) -> None:
    results, stats = rerank(loopback(capabilities=capabilities), reasoning="off")
    assert is_perfect(results)
    assert stats.usage.reasoning_tokens == 0


@pytest.mark.parametrize("quirk", ["inline", "reasoning"])
def test_rerank_with_reasoning_off_prefills_empty_reasoning(loopback: StartLoopback, quirk: str) -> None:
    server = loopback(capabilities=ALL_CAPABILITIES, quirk=quirk, trap="always_thinks")
    results, stats = rerank(server, reasoning="off")
    assert is_perfect(results)
    assert stats.usage.reasoning_tokens == 0
    chats = [call for call in server.calls if call.path == "/v1/chat/completions"]
    assert len(chats) == 2, "two probes: whether it thinks although asked not to, and whether grammars are taken"


def test_rerank_reads_forced_answers_from_the_reasoning_field(loopback: StartLoopback) -> None:
    """vllm#40816: what follows a closed thought comes back as reasoning, with null content."""
    server = loopback(capabilities="continue", quirk="reasoning", cut=1.0, trap="answer_in_reasoning")
    results, _ = rerank(server)
    assert is_perfect(results)
    assert not any(call.n_messages == 3 for call in server.calls), "no fresh turn was needed"


def test_rerank_counts_unmatched_closing_tags(loopback: StartLoopback) -> None:
    """vllm#39697: end strings leak into the content."""
    results, stats = rerank(loopback(capabilities=ALL_CAPABILITIES, cut=1.0, trap="two_ends"))
    assert is_perfect(results)
    assert stats.repairs["unmatched_think_tag"] + stats.repairs["constraint_violated"] >= WINDOW_COUNT


def test_rerank_counts_constraint_violations(loopback: StartLoopback) -> None:
    """The answer is prose although held to a ranking: read all the same, and recorded."""
    results, stats = rerank(loopback(capabilities="raw", cut=1.0, prose=1.0))
    assert is_perfect(results)
    assert stats.repairs["constraint_violated"] == WINDOW_COUNT


def test_rerank_constrained_requests_unusable_answers_again(loopback: StartLoopback) -> None:
    """Without it the answers are nonsense; a complete thought with no usable answer is asked again, held to one."""
    results, stats = rerank(loopback(capabilities="raw grammar", garbage=1.0))
    assert is_perfect(results)
    assert stats.repairs["answer_requested_again"] == WINDOW_COUNT
    _, without = rerank(loopback(capabilities="raw grammar", garbage=1.0), constrained=False)
    assert without.unranked_windows == WINDOW_COUNT


def test_rerank_stops_repetitive_reasoning(loopback: StartLoopback) -> None:
    server = loopback(capabilities=ALL_CAPABILITIES, quirk="reasoning", trap="repetition_stopped")
    results, stats = rerank(server, max_tokens=20_000)
    assert is_perfect(results)
    assert stats.repairs["repetition_stopped"] == stats.repairs["forced_answers"] == WINDOW_COUNT
    assert stats.saved_tokens > WINDOW_COUNT * 10_000  # of 20,000; a busy client stops later
    wait_until(
        lambda: sum(call.cancelled for call in server.calls) == WINDOW_COUNT,
        "a stopped call was not cancelled on the server",
    )


def test_rerank_with_reasoning_auto_skips_reasoning_on_agreement(loopback: StartLoopback) -> None:
    """An oracle agrees with itself whichever way it is asked, so that hardly a window needs thought."""
    results, stats = rerank(loopback(capabilities="raw grammar"), reasoning="auto")
    assert is_perfect(results)
    assert stats.repairs["windows_reasoned"] == 0
    assert stats.calls == 2 * WINDOW_COUNT


def test_rerank_samples_shuffle_windows_and_stop_on_agreement(loopback: StartLoopback) -> None:
    server = loopback(capabilities=ALL_CAPABILITIES)
    results, stats = rerank(server, samples=5)
    assert is_perfect(results)
    assert stats.calls == 2 * WINDOW_COUNT
    assert stats.repairs["samples_skipped"] == 3 * WINDOW_COUNT
    assert len({call.window for call in server.calls}) == 2 * WINDOW_COUNT, "each shown in an order of its own"


def test_rank_takes_all_samples_on_disagreement() -> None:
    responses = iter(["[1] > [2]", "[1] > [2]", "[2] > [1]", "[2] > [1]"] * 9)
    model = ScriptedModel(lambda _: next(responses))
    with Reranker(model, samples=4) as reranker:
        hits = reranker.rank("q", ["a", "b"])
    assert len(model.history) in (2, 4)
    assert len(hits.traces) == len(model.history)


def test_forced_answer_uses_the_truncated_trace() -> None:
    """A model whose answer depends on its notes: cut after noticing that 3 is best, it says so when asked."""

    def respond(request: Request) -> Response:
        if not request.prefill:
            return Response("", "Passage 3 answers it, and then there is", "length", Usage(10, 8, 8))
        best = "3" if "Passage 3 answers it" in request.prefill else "1"
        rest = [i for i in "123" if i != best]
        return Response(f"[{best}] > [{rest[0]}] > [{rest[1]}]", None, "stop")

    with Reranker(ScriptedModel(respond, capabilities=Capabilities(prefill=True))) as reranker:
        hits = reranker.rank("q", ["a", "b", "c"])
    assert [hit.index for hit in hits] == [2, 0, 1]
    assert hits.repairs == {"truncated": 1, "forced_answers": 1}


def test_rerank_stops_at_the_token_budget(loopback: StartLoopback) -> None:
    server = loopback()
    with Reranker("oracle", server=server.url, concurrency=1) as reranker:
        results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages, token_budget=8_000))
        usage = reranker.stats.usage
    assert [result.query_id for result in results] == list(QUERIES)
    assert all(len(result.ranking.doc_ids) == 40 for result in results)
    assert 8_000 <= usage.prompt_tokens + usage.completion_tokens < 8_000 + 2 * 3_000
    assert reranker.stats.unfinished == [result.query_id for result in results if not result.finished] != []


def test_listwise_ranker_repeats_a_failed_probe() -> None:
    """The first question about grammars meets a server that is down for a while: only that window is given up."""
    probe_count = 0

    def respond(request: Request) -> Response | Exception:
        nonlocal probe_count
        if not request.context.doc_ids:
            probe_count += 1
            return ServerError("down", "") if probe_count <= 2 else Response("[1] > [2]", None, "stop")
        return Response("[2] > [1]", None, "stop")

    model = ScriptedModel(respond, capabilities=Capabilities(grammar=True))
    with Reranker(model, reasoning="off", retries=RetryPolicy(broken=2, first=0.001, longest=0.002)) as reranker:
        assert reranker.rank("q", ["a", "b"]).repairs == {"retries_exhausted": 1}
        assert [hit.index for hit in reranker.rank("q", ["a", "b"])] == [1, 0]


def test_reranker_rejects_zero_samples() -> None:
    with pytest.raises(InputError, match="samples is 0"):
        Reranker(ScriptedModel([]), samples=0)
