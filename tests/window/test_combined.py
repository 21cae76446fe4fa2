"""The combined method: query likelihood first, then listwise comparison in the resulting order."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.build import build_strategy
from rank_k.errors import InputError
from rank_k.models.base import Capabilities
from rank_k.models.mock import ScriptedModel
from rank_k.reranker import Reranker
from rank_k.simulation.observations import observations_of
from rank_k.strategies import STRATEGIES, make_strategy
from rank_k.strategies.combined import Combined
from rank_k.strategies.single import Single
from rank_k.strategies.testing import check_strategy
from rank_k.types import Candidate, Request, Response, Round, ScoringMethod, Usage, Window, WindowRanking, WindowResult
from tests.fakes.model_server.marked_passages import make_dataset

CAPABILITIES = Capabilities(logprobs=True, reasons=False, scores_given_text=True)


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=25)
@given(length=st.integers(0, 60), seed=st.integers(0, 2**32 - 1))
def test_combined_strategy_conforms_with_any_inner_strategy(name: str, length: int, seed: int) -> None:
    rounds = check_strategy(Combined(make_strategy(name)), length, Random(seed))
    methods = [[window.method for window in step.windows] for step in rounds]
    assert methods[:1] == [["likelihood"]] * (length > 1), "every passage is looked at once, first"
    assert not any("likelihood" in round_methods for round_methods in methods[1:])


def candidates(*doc_ids: str) -> list[Candidate]:
    return [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(doc_ids, 1)]


def window_result(window: Window, order: str, **likelihoods: float) -> WindowResult:
    return WindowResult(window, (WindowRanking(tuple((d,) for d in order), frozenset(order), True),), likelihoods)


def test_combined_strategy_compares_in_the_order_of_the_likelihoods() -> None:
    steps = Combined(Single(2), first_stage_weight=0)(candidates("a", "b", "c"), 0)
    first_round: Round = next(steps)
    assert first_round.windows[0].doc_ids == ("a", "b", "c")
    assert (first_round.ranking.doc_ids, first_round.remaining_windows) == (("a", "b", "c"), 2)
    second_round = steps.send([window_result(first_round.windows[0], "cab", a=-2.0, b=-3.0, c=-1.0)])
    assert (second_round.windows[0].doc_ids, second_round.windows[0].method) == (("c", "a"), "listwise")
    assert second_round.ranking.doc_ids == ("c", "a", "b"), "if time runs out here, the likelihoods decide"


@pytest.mark.parametrize(
    ("likelihood_order", "listwise_order", "first_stage_weight", "ranking"),
    [
        ("cba", "cba", 0.0, "cba"),
        ("cba", "cba", 50.0, "abc"),  # the first stage as told
        ("cba", "abc", 0.0, "cba"),  # likelihood weighs twice as much
        ("", "bca", 0.0, "bca"),
        ("bca", "", 0.0, "bca"),
        ("", "", 0.0, "abc"),
        ("", "", 1.0, "abc"),
    ],
)
def test_combined_strategy_weights_likelihood_comparison_and_first_stage(
    likelihood_order: str, listwise_order: str, first_stage_weight: float, ranking: str
) -> None:
    steps = Combined(Single(3), first_stage_weight)(candidates("a", "b", "c"), 0)
    [window] = next(steps).windows
    [window] = steps.send(
        [window_result(window, likelihood_order or "abc", **{d: -float(n) for n, d in enumerate(likelihood_order)})]
    ).windows
    with pytest.raises(StopIteration) as end:
        steps.send(
            [
                window_result(window, listwise_order)
                if listwise_order
                else WindowResult(window, (WindowRanking.unranked(window),))
            ]
        )
    assert "".join(end.value.value.doc_ids) == ranking


def test_combined_strategy_gives_the_mean_score_without_a_likelihood() -> None:
    steps = Combined(Single(3), first_stage_weight=0)(candidates("a", "b", "c"), 0)
    [window] = next(steps).windows
    assert steps.send([window_result(window, "abc", a=-9.0, c=-1.0)]).ranking.doc_ids == ("c", "b", "a")


class LengthAndXModel(ScriptedModel):
    """Likelihood grows with a passage's length; compared, what holds an x comes first."""

    def __init__(self, **options: Any) -> None:
        super().__init__(self.respond, capabilities=CAPABILITIES, **options)

    def respond(self, request: Request) -> Response:
        text = request.messages[0].content
        if request.forced_text is not None:
            return Response(
                request.forced_text, usage=Usage(10, 1), tokens=((request.forced_text, len(text) - 1000.0),)
            )
        lines = [line for line in text.splitlines() if line.startswith("[")]
        numbers = sorted(range(1, len(lines) + 1), key=lambda n: "x" not in lines[n - 1])
        return Response(" > ".join(f"[{n}]" for n in numbers), finish_reason="stop", usage=Usage(100, 5))


TEXTS = ["a", "bb", "cxc", "dddd", "eeeee"]


def presented_passages(model: LengthAndXModel) -> list[list[str]]:
    """The passages of each comparison, by the order they were shown in."""
    listings = (
        [line for line in request.messages[0].content.splitlines() if line.startswith("[")] for request in model.history
    )
    return [[line.partition("] ")[2] for line in passages] for passages in listings if passages]


def test_reranker_combined_compares_passages_by_likelihood_order() -> None:
    model = LengthAndXModel()
    with Reranker(
        model, method="combined", strategy="single", window=4, reasoning="off", first_stage_weight=0
    ) as reranker:
        hits = reranker.rank("q", TEXTS)
        assert reranker.method == "combined"
    assert presented_passages(model)[0] == ["eeeee", "dddd", "cxc", "bb"]
    assert [hit.text for hit in hits] == ["eeeee", "cxc", "dddd", "a", "bb"], "an x is worth more than a letter"
    assert all(hit.likelihood is not None for hit in hits)
    assert hits.usage == Usage(150, 10)


def test_reranker_combined_applies_first_stage_weight() -> None:
    model = LengthAndXModel()
    with Reranker(
        model, method="combined", strategy="single", window=4, reasoning="off", first_stage_weight=50
    ) as reranker:
        reranker.rank("q", TEXTS)
    assert presented_passages(model)[0] == TEXTS[:4]


@pytest.mark.parametrize(
    ("method", "methods"), [("combined", ["likelihood", "listwise"]), ("likelihood", ["likelihood"])]
)
def test_journal_records_the_method_of_each_window(method: ScoringMethod, methods: list[str]) -> None:
    options: dict[str, Any] = {"strategy": "single", "window": 4, "reasoning": "off"} if method == "combined" else {}
    with Reranker(LengthAndXModel(), method=method, **options) as reranker:
        reranker.rank("q", TEXTS)
        assert [record.window.method for record in reranker.journal.windows()] == methods
        assert len(observations_of(reranker.journal.windows())) == methods.count("listwise"), "how a model compares"


def test_reranker_combined_accepts_a_strategy_per_query() -> None:
    for strategy in ("sliding", Single(3)):
        model = LengthAndXModel()
        with Reranker(model, method="combined", reasoning="off", first_stage_weight=0) as reranker:
            texts = [
                [hit.text for hit in reranker.rank("q", TEXTS, strategy=variant)]
                for variant in (strategy, build_strategy(strategy, reranker.options))
            ]
            assert texts[0] == texts[1]
        assert sum(request.forced_text is not None for request in model.history) == len(TEXTS), (
            "the journal has the rest"
        )


def test_reranker_combined_makes_no_calls_for_one_passage() -> None:
    model = LengthAndXModel()
    with Reranker(model, method="combined") as reranker:
        assert [hit.text for hit in reranker.rank("q", ["alone"])] == ["alone"]
    assert model.history == []


def test_reranker_combined_rejects_models_without_likelihoods() -> None:
    with (
        Reranker(ScriptedModel([]), method="combined") as reranker,
        pytest.raises(InputError, match="does not return the probability"),
    ):
        reranker.rank("q", TEXTS)


def test_reranker_combined_counts_the_calls_of_both_rankers() -> None:
    data = make_dataset(2, 9)
    model = LengthAndXModel()
    with Reranker(model, method="combined", window=4, stride=2, reasoning="off", concurrency=2) as reranker:
        results = list(reranker.rerank(data.run, {q.query_id: q for q in data.queries}, data.passages))
        stats = reranker.stats
    assert [sorted(r.ranking.doc_ids) for r in results] == [sorted(c.doc_id for c in run) for run in data.run.values()]
    assert stats.calls == stats.new_calls == len(model.history)
    assert sum(request.forced_text is not None for request in model.history) == 18


def test_combined_ranker_counts_truncated_passages_once() -> None:
    with Reranker(
        LengthAndXModel(), method="combined", strategy="single", reasoning="off", passage_tokens=40
    ) as reranker:
        hits = reranker.rank("q", ["word " * 500, "b"])
    assert hits.repairs["passages_truncated"] == 1
