"""Ranking by scores: query likelihood, the ranking that follows, requests, and options of the reranker."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError, QueryTooLong
from rank_k.journal import Journal
from rank_k.models.base import Capabilities, Model
from rank_k.models.cached import CachedModel
from rank_k.models.mock import ScriptedModel
from rank_k.reranker import Reranker
from rank_k.strategies.aggregate import order_by_score
from rank_k.types import OnChunk, Passage, Query, Request, Response, Usage, Window
from rank_k.window.base import WindowReport
from rank_k.window.scorers import QueryLikelihoodScorer, ScoreRanker, query_log_probability

CAPABILITIES = Capabilities(logprobs=True, reasons=False, scores_given_text=True)

# --- scores and rankings -----------------------------------------------------------------------------

DOCS = ("a", "b", "c", "d", "e")
WINDOW = Window(DOCS, (1, 5))
scores = st.dictionaries(st.sampled_from(DOCS), st.sampled_from([-3.0, -2.0, -1.5]) | st.floats(-1e6, 0))


@given(scores)
def test_order_by_score_sorts_by_score_and_appends_unscored_passages(scores: dict[str, float]) -> None:
    ranking = order_by_score(WINDOW, scores)
    assert sorted(ranking.doc_ids) == sorted(DOCS)
    assert ranking.is_valid == bool(scores)
    assert ranking.ranked_ids == scores.keys()
    scored_ids = [doc_id for doc_id in ranking.doc_ids if doc_id in scores]
    assert list(ranking.doc_ids[: len(scored_ids)]) == scored_ids
    assert [scores[d] for d in scored_ids] == sorted(scores.values(), reverse=True)
    unscored_ids = ranking.doc_ids[len(scored_ids) :]
    assert list(unscored_ids) == [d for d in DOCS if d not in scores]
    for tier in ranking.tiers:
        assert len({scores.get(doc_id, doc_id) for doc_id in tier}) == 1
    assert len(ranking.tiers) == len(set(scores.values())) + len(unscored_ids)


def make_response(*tokens: tuple[str, float], text: str | None = None, completion: int = 0) -> Response:
    content = "".join(token for token, _ in tokens) if text is None else text
    return Response(content, finish_reason="length", usage=Usage(10, completion), tokens=tokens or None)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (make_response((" a", -1.0), (" b", -2.5)), -3.5),
        (make_response((" b", -2.5), text=" a b"), -2.5),
        (make_response((" a", -1.0), (" c", -2.5)), None),
        (make_response((" a", -1.0)), None),
        (make_response((" a", -1.0), (" b", math.nan)), None),
        (make_response((" a", -1.0), (" b", -math.inf)), None),
        (make_response(text=" a b"), None),
        (make_response((" a", 0.0), (" b", 0.5)), 0.0),
    ],
)
def test_log_probability_sums_token_log_probabilities(response: Response, score: float | None) -> None:
    assert query_log_probability(response, " a b") == score


# --- requests ----------------------------------------------------------------------------------------


def rank_window(model: Model, query: str, passages: list[str], **options: Any) -> WindowReport:
    async def rank() -> WindowReport:
        ranker = ScoreRanker(QueryLikelihoodScorer(CachedModel(model, Journal()), **options))
        await ranker.prepare()
        documents = {str(i): Passage(str(i), text) for i, text in enumerate(passages)}
        prepared_query = await ranker.prepare_query(Query("q", query), documents)
        return await ranker.rank(prepared_query, Window(tuple(documents), (1, len(documents))))

    return asyncio.run(rank())


def longer_is_likelier(request: Request) -> Response:
    """The longer the passage, the likelier the query."""
    assert request.forced_text is not None
    [message] = request.messages
    return make_response((request.forced_text, len(message.content) - 1000.0), completion=1)


def test_query_likelihood_sends_one_request_per_passage() -> None:
    model = ScriptedModel(longer_is_likelier, capabilities=CAPABILITIES)
    report = rank_window(model, "why is\nthe <|im_end|> [1] sky", ["short [3]", "somewhat longer"])
    assert [request.messages[0].content for request in model.history] == [
        "Document: short (3)\nSearch query:",
        "Document: somewhat longer\nSearch query:",
    ]
    assert {request.forced_text for request in model.history} == {" why is the ‹|im_end|> [1] sky"}
    assert report.result.rankings[0].tiers == (("1",), ("0",))
    assert report.result.likelihoods == {"0": -967.0, "1": -961.0}
    assert (report.new_calls, len(report.call_keys), dict(report.repairs), report.traces) == (2, 2, {}, ())
    assert report.usage == Usage(20, 2)


def test_query_likelihood_ties_equal_passages() -> None:
    report = rank_window(ScriptedModel(longer_is_likelier, capabilities=CAPABILITIES), "q", ["same", "longer", "same"])
    assert report.result.rankings[0].tiers == (("1",), ("0", "2"))


def test_query_likelihood_appends_and_counts_unscored_passages() -> None:
    def respond(request: Request) -> Response:
        return make_response(text="no idea") if "bad" in request.messages[0].content else longer_is_likelier(request)

    report = rank_window(
        ScriptedModel(respond, capabilities=CAPABILITIES), "q", ["bad", "x", "bad too, and long", "xyz"]
    )
    assert report.result.rankings[0].doc_ids == ("3", "1", "0", "2")
    assert report.result.rankings[0].ranked_ids == {"1", "3"}
    assert dict(report.repairs) == {"missing": 2}


def test_query_likelihood_keeps_the_order_without_scores() -> None:
    report = rank_window(
        ScriptedModel(lambda request: make_response(text="?"), capabilities=CAPABILITIES), "q", ["a", "bb"]
    )
    assert not report.result.rankings[0].is_valid
    assert report.result.rankings[0].doc_ids == ("0", "1")
    assert dict(report.repairs) == {"unranked": 1}


class SlowModel(ScriptedModel):
    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        await asyncio.sleep(0.02)
        return await super().complete(request, on_chunk)


def test_query_likelihood_shares_identical_requests_in_flight() -> None:
    model = SlowModel(longer_is_likelier, capabilities=CAPABILITIES)
    report = rank_window(model, "q", ["same", "longer", "same"])
    assert len(model.history) == report.new_calls == 2
    assert report.calls == len(report.call_keys) == 3
    assert report.result.likelihoods["0"] == report.result.likelihoods["2"]


def test_query_likelihood_makes_no_calls_for_an_empty_query() -> None:
    model = ScriptedModel([], capabilities=CAPABILITIES)
    report = rank_window(model, " \n ", ["a", "bb"])
    assert not report.result.rankings[0].is_valid
    assert model.history == []


def test_query_likelihood_counts_skipped_byte_tokens() -> None:
    model = ScriptedModel(
        lambda request: make_response((" b", -2.0), text=" ü b", completion=3), capabilities=CAPABILITIES
    )
    assert dict(rank_window(model, "ü b", ["a", "b"]).repairs) == {"byte_tokens_skipped": 2}


def test_query_likelihood_truncates_passages_to_the_context() -> None:
    def model_counting_words(context: int = 1000) -> ScriptedModel:
        return ScriptedModel(
            longer_is_likelier, context_length=context, tokens=lambda text: len(text.split()), capabilities=CAPABILITIES
        )

    model = model_counting_words()
    assert dict(rank_window(model, "q", ["word " * 200, "word " * 50], passage_tokens=100).repairs) == {}
    assert [len(request.messages[0].content.split()) - 3 for request in model.history] == [100, 50]
    assert (
        rank_window(model_counting_words(150), "q", ["word " * 200, "word"], passage_tokens=100).repairs[
            "context_truncated"
        ]
        == 1
    )
    with pytest.raises(QueryTooLong):
        rank_window(model_counting_words(100), "word " * 90, ["a", "b"])


# --- choice of the scoring method -----------------------------------------------------------------------------


class UntrainedModel(ScriptedModel):
    """Like embedded weights that were never trained to compare."""

    default_method = "likelihood"


def untrained_reranker(**options: Any) -> Reranker:
    return Reranker(UntrainedModel(longer_is_likelier, capabilities=CAPABILITIES), **options)


def test_reranker_uses_the_default_method_of_the_model() -> None:
    with untrained_reranker(depth=3) as reranker:
        hits = reranker.rank("q", ["a", "bbb", "cc", "dddd"])
    assert reranker.method == "likelihood"
    assert [hit.index for hit in hits] == [1, 2, 0, 3]
    assert hits[3].likelihood is None, "beyond the depth"


@pytest.mark.parametrize(
    "options",
    [{"method": "listwise"}, {"strategy": "single"}, {"reasoning": "off"}, {"samples": 2}],
    ids=lambda options: next(iter(options)),
)
def test_reranker_uses_listwise_when_listwise_options_are_given(options: dict[str, Any]) -> None:
    with untrained_reranker(**options) as reranker:
        assert reranker.method == "listwise"


def test_reranker_uses_listwise_by_default() -> None:
    with Reranker(ScriptedModel([])) as reranker:
        assert reranker.method == "listwise"


@pytest.mark.parametrize(
    "options", [{"strategy": "single"}, {"reasoning": "off"}, {"samples": 2}], ids=lambda options: next(iter(options))
)
def test_reranker_likelihood_rejects_listwise_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the method likelihood does not use"):
        Reranker(UntrainedModel([]), method="likelihood", **options)


@pytest.mark.parametrize(
    "options", [{"strategy": "single"}, {"reasoning": "off"}], ids=lambda options: next(iter(options))
)
def test_rank_with_likelihood_rejects_listwise_options(options: dict[str, Any]) -> None:
    with untrained_reranker() as reranker:
        with pytest.raises(InputError, match="is for comparison"):
            reranker.rank("q", ["a", "bbb"], **options)
        assert [hit.index for hit in reranker.rank("q", ["a", "bbb"])] == [1, 0]


def test_rank_with_likelihood_calls_window_hooks_without_text() -> None:
    windows: list[tuple[int, int, list[str]]] = []
    pieces: list[Any] = []
    with untrained_reranker() as reranker:
        reranker.rank(
            "q",
            ["a", "bbb"],
            on_result=lambda round_number, number, report: windows.append(
                (round_number, number, [*report.result.likelihoods])
            ),
            on_chunk=lambda *piece: pieces.append(piece),
        )
    assert windows == [(0, 0, ["0", "1"])]
    assert pieces == []


def test_reranker_rejects_unknown_methods() -> None:
    with pytest.raises(InputError, match="listwise, likelihood, combined"):
        Reranker(UntrainedModel([]), method="magic")  # type: ignore[arg-type]
