"""Every strategy conforms to the protocol; sliding, top-down and consensus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k import Reranker
from rank_k.errors import InputError, StrategyError
from rank_k.models.mock import ScriptedModel
from rank_k.models.simulated import SimulatedModel
from rank_k.simulation.replay import replay_strategy
from rank_k.strategies import STRATEGIES, make_strategy
from rank_k.strategies.aggregate import consensus_ranking
from rank_k.strategies.base import Strategy, run_validated
from rank_k.strategies.combined import Combined
from rank_k.strategies.sliding import Sliding, window_spans
from rank_k.strategies.testing import check_strategy
from rank_k.strategies.topdown import TopDown
from rank_k.types import Candidate, Passage, Query, Ranking, Round, ScoringMethod, Window, WindowRanking, WindowResult


def perfect(strategy: Strategy, grades: list[int]) -> tuple[Ranking, list[Round]]:
    """Drive with a noiseless judge: higher grade first, equal grades tied."""
    steps = strategy([Candidate(f"d{i}", -i) for i in range(len(grades))], 0)
    rounds: list[Round] = []
    try:
        step = next(steps)
        while True:
            rounds.append(step)
            step = steps.send([WindowResult(w, (order_by_grade(w, grades),)) for w in step.windows])
    except StopIteration as stop:
        ranking: Ranking = stop.value
        return ranking, rounds


def order_by_grade(window: Window, grades: list[int]) -> WindowRanking:
    levels = sorted({grades[int(d[1:])] for d in window.doc_ids}, reverse=True)
    tiers = tuple(tuple(d for d in window.doc_ids if grades[int(d[1:])] == level) for level in levels)
    return WindowRanking(tiers, frozenset(window.doc_ids), True)


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=150)
@given(
    length=st.integers(0, 130),
    window=st.integers(2, 30),
    stride=st.integers(1, 30),
    seed=st.integers(0, 2**32),
    samples=st.integers(1, 3),
)
def test_every_strategy_conforms_to_the_protocol(
    name: str, length: int, window: int, stride: int, seed: int, samples: int
) -> None:
    strategy = make_strategy(name, window=window, stride=min(stride, window))
    rounds = check_strategy(strategy, length, Random(seed), samples=samples)
    assert all(len(w.doc_ids) <= window for step in rounds for w in step.windows)
    if length < 2:
        assert not rounds


@given(length=st.integers(0, 300), window=st.integers(2, 40), stride=st.integers(1, 40))
def test_window_spans_cover_every_passage(length: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    spans = window_spans(length, window, stride)
    if length < 2:
        assert not spans
        return
    assert spans[-1][0] == 0
    assert spans[0][1] == length
    assert all(end - start == min(window, length) for start, end in spans)
    assert all(following[1] >= preceding[0] for preceding, following in pairwise(spans)), "a gap"


def test_window_spans_of_100_candidates_match_the_paper() -> None:
    assert window_spans(100, 20, 10) == [(80 - 10 * i, 100 - 10 * i) for i in range(9)]


def test_window_spans_of_55_candidates_reach_the_head() -> None:
    assert window_spans(55, 20, 10) == [(35, 55), (25, 45), (15, 35), (5, 25), (0, 20)]


def test_window_spans_of_few_candidates_is_one_span() -> None:
    assert window_spans(15, 20, 10) == [(0, 15)]


@given(grades=st.lists(st.integers(0, 3), min_size=2, max_size=120))
def test_sliding_and_topdown_rank_the_best_ten_first(grades: list[int]) -> None:
    sorted_grades = sorted(grades, reverse=True)
    for strategy in (Sliding(20, 10), TopDown(20)):
        ranking, _ = perfect(strategy, grades)
        ranked_grades = [grades[int(d[1:])] for d in ranking.doc_ids]
        compared_count = 9 if isinstance(strategy, TopDown) else 10  # the pivot of top-down stands at rank 10
        assert ranked_grades[:compared_count] == sorted_grades[:compared_count]


def test_sliding_keeps_ties() -> None:
    ranking, _ = perfect(Sliding(20, 10), [0, 2, 1, 2])
    assert ranking.tiers == (("d1", "d3"), ("d2",), ("d0",))


def test_topdown_takes_fewer_rounds_than_sliding() -> None:
    grades = [i % 4 for i in range(100)]
    _, topdown_rounds = perfect(TopDown(20), grades)
    _, sliding_rounds = perfect(Sliding(20, 10), grades)
    assert len(topdown_rounds) < len(sliding_rounds) == 9


def test_topdown_ignores_rankings_without_the_pivot() -> None:
    steps = TopDown(4)([Candidate(f"d{i}", -i) for i in range(7)], 0)
    head = next(steps).windows[0]
    as_shown = WindowRanking(tuple((d,) for d in head.doc_ids), frozenset(head.doc_ids), True)
    step = steps.send([WindowResult(head, (as_shown,))])
    pivot = step.windows[0].doc_ids[0]
    others = [d for d in step.windows[0].doc_ids if d != pivot]
    without_pivot = WindowRanking((*((d,) for d in others), (pivot,)), frozenset(others), True)
    with pytest.raises(StopIteration) as stop:
        steps.send([WindowResult(step.windows[0], (without_pivot,))])
    assert stop.value.value.doc_ids[:2] == ("d0", "d1")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_reports_tied_neighbors(name: str) -> None:
    ranking, _ = perfect(make_strategy(name), [1, 1])
    assert ranking == replace(ranking, doc_ids=("d0", "d1"), tied=(False, True))


def test_consensus_keeps_ties_and_ignores_unranked_passages() -> None:
    window = Window(("a", "b", "c"), (1, 3))
    first = WindowRanking((("a",), ("b",), ("c",)), frozenset("abc"), True)
    second = WindowRanking((("b",), ("a",), ("c",)), frozenset("abc"), True)
    assert consensus_ranking(WindowResult(window, (first, second))).tiers == (("a", "b"), ("c",))
    partial = WindowRanking((("c",), ("a",), ("b",)), frozenset("c"), True)
    assert consensus_ranking(WindowResult(window, (WindowRanking.unranked(window), partial))) == partial
    assert not consensus_ranking(WindowResult(window, (WindowRanking.unranked(window),))).is_valid


# --- protocol violations ----------------------------------------------------------------------

IDS = ("a", "b", "c")


def strategy_yielding(
    windows: object, *, current_ranking: object = Ranking.untied(IDS), final_ranking: object = Ranking.untied(IDS)
) -> Strategy:
    """A strategy with one round of these windows, and these rankings."""

    def own_strategy(candidates: Sequence[Candidate], seed: int) -> Any:
        yield Round(windows, current_ranking, 1)  # type: ignore[arg-type]
        return final_ranking

    return own_strategy


def window_of(*doc_ids: str) -> tuple[Window, ...]:
    return (Window(doc_ids, (1, 3)),)


def own_strategy_without_rounds(candidates: Sequence[Candidate], seed: int) -> Any:
    return Ranking.untied(IDS)


def own_strategy_without_seed(candidates: Sequence[Candidate]) -> Iterator[Any]:
    yield


def own_strategy_of_windows(candidates: Sequence[Candidate], seed: int) -> Iterator[Any]:
    yield Window(IDS, (1, 3))


BROKEN_STRATEGIES: list[tuple[Any, str]] = [
    (strategy_yielding(window_of("a", "b"), final_ranking=Ranking.untied("ab")), "every candidate"),
    (strategy_yielding(window_of("a", "b"), final_ranking=Ranking.untied("abx")), "every candidate"),
    (strategy_yielding(window_of("a", "b"), final_ranking=Ranking.untied("abb")), "every candidate"),
    (strategy_yielding(window_of("a", "b"), current_ranking=Ranking.untied("ab")), "every candidate"),
    (strategy_yielding(window_of("a", "b"), final_ranking=Ranking(IDS, ())), "one entry per passage"),
    (strategy_yielding(window_of("a", "b"), final_ranking=list(IDS)), "a list instead of a Ranking"),
    (strategy_yielding(window_of("a", "b"), final_ranking=None), "a NoneType instead of a Ranking"),
    (strategy_yielding(window_of("a", "x")), "not a candidate"),
    (strategy_yielding(window_of("a", "b", "a")), "twice"),
    (strategy_yielding(window_of("a")), "fewer than two"),
    (strategy_yielding(()), "without windows"),
    (own_strategy_of_windows, "a Window instead of a Round"),
    (own_strategy_without_rounds, "not a generator"),
    (own_strategy_without_seed, "cannot be called with candidates and a seed"),
]


@pytest.mark.parametrize(("strategy", "violation"), BROKEN_STRATEGIES)
@pytest.mark.parametrize("method", ["listwise", "combined"])
def test_strategy_that_violates_the_protocol_is_named(strategy: Any, violation: str, method: ScoringMethod) -> None:
    candidates = [Candidate(doc_id, -rank) for rank, doc_id in enumerate(IDS)]
    model = SimulatedModel({"q": {}})
    with pytest.raises(
        StrategyError, match=rf"strategy own\w*: .*{violation}.*; test it with .*docs/how-to/strategies\.md"
    ):
        replay_strategy(Combined(strategy) if method == "combined" else strategy, candidates, "q", model)
    passages = {doc_id: Passage(doc_id, "text") for doc_id in IDS}
    with (
        Reranker(ScriptedModel(lambda _: "[1] > [2]"), strategy=strategy) as reranker,
        pytest.raises(StrategyError, match=violation),
    ):
        list(reranker.rerank({"q": candidates}, {"q": Query("q", "?")}, passages))


@pytest.mark.parametrize("name", STRATEGIES)
def test_validated_rejects_duplicate_candidates(name: str) -> None:
    candidates = [Candidate(f"d{n % 30}", -n) for n in range(40)]
    with pytest.raises(InputError, match="twice among the candidates"):
        next(run_validated(make_strategy(name), candidates, 0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("slidding", {}, "did you mean sliding"),
        ("nowhere:Thing", {}, "cannot be imported"),
        ("sliding", {"window": 1}, "window is 1; give 2 or more"),
        ("sliding", {"stride": 21}, "1 to 20"),
    ],
)
def test_make_rejects_invalid_names_and_options(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_strategy(name, **options)
