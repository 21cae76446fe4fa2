"""Thinking under control, against a real server: budgets, closed thoughts, direct answers, samples, traps."""

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
from tests.fakes.loopback import Loopback, make_queries

pytestmark = pytest.mark.integration

DATA = make_queries(4, 40, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}
WINDOWS = 4 * 3
ABLE = "raw continue grammar budget logprobs"


def rerank(server: Loopback, **options: Any) -> tuple[dict[str, tuple[str, ...]], RunStats]:
    options = {"model": "oracle", "concurrency": 4, "retries": RetryPolicy(first=0.001, longest=0.01), **options}
    with Reranker(server=server.url, **options) as reranker:
        results = {r.query_id: r.ranking.doc_ids for r in reranker.rerank(DATA.run, QUERIES, DATA.passages)}
        return results, reranker.stats


def is_perfect(results: dict[str, tuple[str, ...]]) -> bool:
    return all(list(doc_ids[:10]) == DATA.perfect(query_id)[:10] for query_id, doc_ids in results.items())


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp", "somebody"])
@pytest.mark.parametrize("abilities", [ABLE, "continue", ""])
@pytest.mark.parametrize("quirk", ["inline", "reasoning", "reasoning_content"])
def test_every_thought_cut_and_every_window_answered(
    loopback: StartLoopback, owner: str, abilities: str, quirk: str
) -> None:
    """Whatever the server can or cannot do, a cut thought leads to an answer that the model gave."""
    server = loopback(owned_by=owner, abilities=abilities, quirk=quirk, cut=1.0, bodies=True)
    results, tally = rerank(server)
    assert is_perfect(results)
    assert tally.repairs["forced_answers"] == WINDOWS
    assert not tally.unranked_windows


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_the_second_call_repeats_the_prompt_and_carries_the_trace(loopback: StartLoopback, owner: str) -> None:
    """The first call's prompt exactly, so that the server's prefix cache is hit, then the thought, closed."""
    from tests.fakes.loopback import rendered, text_of

    server = loopback(owned_by=owner, abilities=ABLE, quirk="reasoning_content", cut=1.0, bodies=True)
    rerank(server)
    asked = [call.body for call in server.calls]
    chats = [body for body in asked if "mark:" in body["messages"][0]["content"]]
    assert len(asked) - len(chats) == 1, "one probe: whether grammars are taken"
    completions = [call.body for call in server.requests if call.path == "/v1/completions"]
    assert len(chats) == len(completions) == WINDOWS
    prompts = {rendered(body["messages"]) for body in chats}
    for body in completions:
        text = body["prompt"] if isinstance(body["prompt"], str) else text_of(body["prompt"])
        [begun] = [prompt for prompt in prompts if text.startswith(prompt)]
        assert text.removeprefix(begun).startswith("<think>\n")
        assert text.endswith("\n</think>\n\n")
        assert "naïve?" in text


@pytest.mark.parametrize("quirk", ["inline", "reasoning"])
@pytest.mark.parametrize("abilities", [ABLE, "raw grammar", ""])
@pytest.mark.parametrize("tokens", [16, 100, 700])
def test_a_budget_holds(loopback: StartLoopback, quirk: str, abilities: str, tokens: int) -> None:
    server = loopback(abilities=abilities, quirk=quirk)
    results, tally = rerank(server, reasoning=tokens)
    assert is_perfect(results)
    assert not tally.repairs["budget_exceeded"] or "budget" not in abilities
    assert not tally.unranked_windows


def test_a_budget_that_the_server_ignores_is_noticed(loopback: StartLoopback) -> None:
    """vLLM's own key is sent, and the reply's reasoning tokens say that it was forgotten."""
    _, tally = rerank(loopback(abilities="raw", quirk="reasoning"), reasoning=50)
    assert tally.repairs["budget_exceeded"] == WINDOWS


@pytest.mark.parametrize("abilities", [ABLE, ""])
def test_off_asks_for_the_order_directly(loopback: StartLoopback, abilities: str) -> None:
    results, tally = rerank(loopback(abilities=abilities), reasoning="off")
    assert is_perfect(results)
    assert tally.usage.reasoning_tokens == 0


@pytest.mark.parametrize("quirk", ["inline", "reasoning"])
def test_a_model_that_thinks_all_the_same_is_shown_a_thought_that_is_over(loopback: StartLoopback, quirk: str) -> None:
    server = loopback(abilities=ABLE, quirk=quirk, trap="always_thinks")
    results, tally = rerank(server, reasoning="off")
    assert is_perfect(results)
    assert tally.usage.reasoning_tokens == 0
    chats = [call for call in server.calls if call.path == "/v1/chat/completions"]
    assert len(chats) == 2, "two probes: whether it thinks although asked not to, and whether grammars are taken"


def test_an_answer_in_the_reasoning_field_is_read(loopback: StartLoopback) -> None:
    """vllm#40816: what follows a closed thought comes back as reasoning, with null content."""
    server = loopback(abilities="continue", quirk="reasoning", cut=1.0, trap="answer_in_reasoning")
    results, _ = rerank(server)
    assert is_perfect(results)
    assert not any(call.n_messages == 3 for call in server.calls), "no fresh turn was needed"


def test_a_second_end_of_thought_is_counted_not_read(loopback: StartLoopback) -> None:
    """vllm#39697: end strings leak into the content."""
    results, tally = rerank(loopback(abilities=ABLE, cut=1.0, trap="two_ends"))
    assert is_perfect(results)
    assert tally.repairs["unmatched_think_tag"] + tally.repairs["constraint_violated"] >= WINDOWS


def test_a_grammar_that_the_server_forgets_is_noticed(loopback: StartLoopback) -> None:
    """The answer is prose although held to a ranking: read all the same, and recorded."""
    results, tally = rerank(loopback(abilities="raw", cut=1.0, prose=1.0))
    assert is_perfect(results)
    assert tally.repairs["constraint_violated"] == WINDOWS


def test_a_grammar_mends_what_a_model_would_not_say(loopback: StartLoopback) -> None:
    """Without it the answers are nonsense; a complete thought with no usable answer is asked again, held to one."""
    results, tally = rerank(loopback(abilities="raw grammar", garbage=1.0))
    assert is_perfect(results)
    assert tally.repairs["answer_requested_again"] == WINDOWS
    _, without = rerank(loopback(abilities="raw grammar", garbage=1.0), constrained=False)
    assert without.unranked_windows == WINDOWS


def test_a_thought_in_circles_is_ended_early(loopback: StartLoopback) -> None:
    server = loopback(abilities=ABLE, quirk="reasoning", trap="repetition_stopped")
    results, tally = rerank(server, max_tokens=20_000)
    assert is_perfect(results)
    assert tally.repairs["repetition_stopped"] == tally.repairs["forced_answers"] == WINDOWS
    assert tally.saved_tokens > WINDOWS * 15_000
    assert sum(call.cancelled for call in server.calls) == WINDOWS


def test_auto_by_agreement_and_by_probabilities(loopback: StartLoopback) -> None:
    """An oracle agrees with itself whichever way it is asked, so that hardly a window needs thought."""
    results, tally = rerank(loopback(abilities="raw grammar"), reasoning="auto")
    assert is_perfect(results)
    assert tally.repairs["windows_reasoned"] == 0
    assert tally.calls == 2 * WINDOWS


def test_samples_show_other_orders_and_stop_when_they_agree(loopback: StartLoopback) -> None:
    server = loopback(abilities=ABLE)
    results, tally = rerank(server, samples=5)
    assert is_perfect(results)
    assert tally.calls == 2 * WINDOWS
    assert tally.repairs["samples_skipped"] == 3 * WINDOWS
    assert len({call.window for call in server.calls}) == 2 * WINDOWS, "each shown in an order of its own"


def test_samples_that_disagree_are_all_taken() -> None:
    replies = iter(["[1] > [2]", "[1] > [2]", "[2] > [1]", "[2] > [1]"] * 9)
    model = ScriptedModel(lambda _: next(replies))
    with Reranker(model, samples=4) as reranker:
        hits = reranker.rank("q", ["a", "b"])
    assert len(model.history) in (2, 4)
    assert len(hits.traces) == len(model.history)


def test_the_forced_answer_uses_the_partial_trace() -> None:
    """A model whose answer depends on its notes: cut after noticing that 3 is best, it says so when asked."""

    def reply(request: Request) -> Response:
        if not request.prefill:
            return Response("", "Passage 3 answers it, and then there is", "length", Usage(10, 8, 8))
        best = "3" if "Passage 3 answers it" in request.prefill else "1"
        rest = [i for i in "123" if i != best]
        return Response(f"[{best}] > [{rest[0]}] > [{rest[1]}]", None, "stop")

    with Reranker(ScriptedModel(reply, abilities=Capabilities(prefill=True))) as reranker:
        hits = reranker.rank("q", ["a", "b", "c"])
    assert [hit.index for hit in hits] == [2, 0, 1]
    assert hits.repairs == {"truncated": 1, "forced_answers": 1}


def test_a_token_budget_stops_the_spending_and_names_the_rest(loopback: StartLoopback) -> None:
    server = loopback()
    with Reranker("oracle", server=server.url, concurrency=1) as reranker:
        results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages, token_budget=8_000))
        usage = reranker.stats.usage
    assert [result.query_id for result in results] == list(QUERIES)
    assert all(len(result.ranking.doc_ids) == 40 for result in results)
    assert 8_000 <= usage.prompt_tokens + usage.completion_tokens < 8_000 + 2 * 3_000
    assert reranker.stats.unfinished == [result.query_id for result in results if not result.finished] != []


def test_a_probe_that_failed_is_made_again() -> None:
    """The first question about grammars meets a server that is down for a while: only that window is given up."""
    asked = 0

    def reply(request: Request) -> Response | Exception:
        nonlocal asked
        if not request.context.doc_ids:
            asked += 1
            return ServerError("down", "") if asked <= 2 else Response("[1] > [2]", None, "stop")
        return Response("[2] > [1]", None, "stop")

    model = ScriptedModel(reply, abilities=Capabilities(grammar=True))
    with Reranker(model, reasoning="off", retries=RetryPolicy(broken=2, first=0.001, longest=0.002)) as reranker:
        assert reranker.rank("q", ["a", "b"]).repairs == {"retries_exhausted": 1}
        assert [hit.index for hit in reranker.rank("q", ["a", "b"])] == [1, 0]


def test_no_samples_is_a_mistake() -> None:
    with pytest.raises(InputError, match="samples is 0"):
        Reranker(ScriptedModel([]), samples=0)
