"""Strategies before a simulated judge, and the seconds they would take: the same as with everything in between."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from random import Random
from statistics import fmean

import pytest
from benchmarks.ideal import simulate_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k import Reranker
from rank_k.errors import InputError
from rank_k.evaluation.measures import ndcg
from rank_k.models.simulated import PRESETS, Noise, SimulatedModel
from rank_k.simulation.call_times import Call, CallTime, PendingRound, expected, makespan, scheduled
from rank_k.simulation.replay import (
    Cell,
    RoundSizes,
    SimulationTotals,
    difference,
    judge_window,
    replay_strategy,
    simulate,
    without_calls,
)
from rank_k.strategies import STRATEGIES, make_strategy
from rank_k.types import Candidate, Passage, Query, Request, RequestContext, Window
from rank_k.window.parsing import parse_ranking
from tests.fakes.model_server.marked_passages import make_dataset

DOCS = tuple(f"d{i:03d}" for i in range(100))
GRADES = {f"q{n}": {doc_id: (i * 7 + n) % 4 for i, doc_id in enumerate(DOCS)} for n in range(40)}
RUN = {query_id: [Candidate(doc_id, -i) for i, doc_id in enumerate(DOCS[:60])] for query_id in list(GRADES)[:3]}


# --- the same judge as ever ------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "expected_digest"), [("strong", "a17e1e74e9d7b5f5"), ("weak", "f7f56c7810108954")])
def test_ranking_text_matches_the_recorded_digest(noise: str, expected_digest: str) -> None:
    """Figures in the documentation, and the calibration of the presets, are those of exactly these judges."""
    judge, random, digest = SimulatedModel(GRADES, noise, seed=3), Random(7), hashlib.sha256()
    for query_id in GRADES:
        for size in (2, 5, 20, 33):
            ids = tuple(random.sample(DOCS, size))
            digest.update("\n".join(judge.ranking_text(query_id, ids, sample) for sample in (0, 1)).encode())
    assert digest.hexdigest()[:16] == expected_digest


# --- answers, read ---------------------------------------------------------------------------------


@st.composite
def random_tiers(draw: st.DrawFn) -> list[list[int]]:
    numbers = draw(st.permutations(range(draw(st.integers(2, 60)))))
    cuts = sorted(draw(st.sets(st.integers(1, len(numbers) - 1))))
    return [list(numbers[a:b]) for a, b in pairwise([0, *cuts, len(numbers)])]


class FixedTiersModel(SimulatedModel):
    """A judge whose mind is made up."""

    def __init__(self, tiers: list[list[int]]) -> None:
        super().__init__({})
        self._tiers = tiers

    def tiers(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> list[list[int]]:
        return self._tiers


@given(random_tiers())
def test_parse_ranking_reads_well_formed_answers_unchanged(tiers: list[list[int]]) -> None:
    """So that reading it may be left out."""
    size = sum(map(len, tiers))
    parsed = parse_ranking(FixedTiersModel(tiers).ranking_text("q", DOCS[:size]), size, finish_reason="stop")
    assert [[i - 1 for i in tier] for tier in parsed.tiers] == tiers
    assert (parsed.is_valid, len(parsed.ranked_numbers), dict(parsed.repairs)) == (True, size, {})


@pytest.mark.parametrize("tied", [False, True])
def test_parse_ranking_reads_a_thousand_passages_unchanged(tied: bool) -> None:
    numbers = Random(3).sample(range(1000), 1000)
    tiers = [numbers[i : i + 2] for i in range(0, 1000, 2)] if tied else [[i] for i in numbers]
    parsed = parse_ranking(
        FixedTiersModel(tiers).ranking_text("q", [str(i) for i in range(1000)]), 1000, finish_reason="stop"
    )
    assert [[i - 1 for i in tier] for tier in parsed.tiers] == tiers


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(sorted(GRADES)), st.integers(2, 40))
def test_judge_window_equals_the_parsed_response(seed: int, query_id: str, size: int) -> None:
    ids = tuple(Random(seed).sample(DOCS, size))
    judge = SimulatedModel(GRADES, Noise(sd=1, malformed=0.5, tie_gap=0.1), seed=seed)
    request = Request((), 1, reasoning=False, context=RequestContext(query_id, ids))
    response = asyncio.run(judge.complete(request))
    parsed = parse_ranking(response.text, size, finish_reason=response.finish_reason)
    ranking = judge_window(judge, query_id, Window(ids, (1, size)))
    assert ranking.tiers == tuple(tuple(ids[i - 1] for i in tier) for tier in parsed.tiers)
    assert ranking.ranked_ids == {ids[i - 1] for i in parsed.ranked_numbers}
    assert ranking.is_valid == parsed.is_valid


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_replay_strategy_equals_the_reranker(strategy: str) -> None:
    """Prompt, reply, parser, journal and engine change nothing."""
    judge = SimulatedModel(GRADES, "weak", seed=1)
    queries = {query_id: Query(query_id, "?") for query_id in RUN}
    texts = {doc_id: Passage(doc_id, "text") for doc_id in DOCS}
    with Reranker(judge, strategy=strategy) as reranker:
        results = {result.query_id: result.ranking.doc_ids for result in reranker.rerank(RUN, queries, texts)}
        stats = reranker.stats
    replays = [replay_strategy(make_strategy(strategy), RUN[query_id], query_id, judge) for query_id in RUN]
    assert [replay.doc_ids for replay in replays] == list(results.values())
    assert sum(len(sizes.sizes) for replay in replays for sizes in replay.rounds) == stats.windows
    assert sum(len(replay.rounds) for replay in replays) == stats.rounds


# --- quality ---------------------------------------------------------------------------------------


def grade_ndcg(doc_ids: Sequence[str], grades: Mapping[str, int]) -> float:
    return ndcg([grades.get(doc_id, 0) for doc_id in doc_ids], grades.values())


def test_simulate_covers_every_run_noise_and_strategy() -> None:
    runs = {"short": {"q0": RUN["q0"][:20]}, "long": RUN}
    strategies = {"sliding": make_strategy("sliding"), "same": make_strategy("sliding"), "none": without_calls}
    totals_by_cell = simulate(runs, GRADES, strategies, {name: PRESETS[name] for name in ("none", "weak")}, 5)
    assert set(totals_by_cell) == {Cell(r, n, s) for r in runs for n in ("none", "weak") for s in strategies}
    for cell, totals in totals_by_cell.items():
        assert totals == totals_by_cell[cell._replace(strategy="same")] or cell.strategy == "none"
        assert list(totals.ndcg) == list(GRADES)  # those that the run lacks are zero, as in an evaluation
        assert totals.by_query()["q5"] == 0
    perfect = totals_by_cell[Cell("long", "none", "sliding")]
    assert [perfect.by_query()[query_id] for query_id in RUN] == pytest.approx([1, 1, 1])
    assert perfect.most == (5, 5)
    assert (perfect.calls, perfect.passages, perfect.rounds) == (15 / 40, 300 / 40, 15 / 40)
    assert totals_by_cell[Cell("long", "weak", "sliding")].quality.mean < perfect.quality.mean
    unranked = totals_by_cell[Cell("long", "weak", "none")]
    assert unranked.most == (0, 0)
    assert unranked.by_query()["q1"] == grade_ndcg(DOCS[:60], GRADES["q1"])


def test_simulate_ranks_to_depth_and_appends_the_rest() -> None:
    grades = {"q": {"d5": 1, "d1": 1}}
    run = {"q": [Candidate(f"d{i}", -i) for i in range(8)]}
    [totals] = simulate(
        {"": run}, grades, {"s": make_strategy("sliding", window=4, stride=2)}, {"": Noise()}, 0, 4
    ).values()
    assert totals.by_query()["q"] == pytest.approx(grade_ndcg(["d1", "d0", "d2", "d3", "d4", "d5"], grades["q"]))


def test_difference_is_paired_by_query_over_seed_means() -> None:
    ours = SimulationTotals({"a": [0.5, 0.7], "b": [0.3, 0.3]})
    baseline = SimulationTotals({"b": [0.3, 0.1], "a": [0.4, 0.4]})
    mean_difference = difference(ours, baseline)
    assert mean_difference.mean == pytest.approx(0.15)  # query a: .2, query b: .1
    assert mean_difference.error == pytest.approx(0.05)
    assert mean_difference.interval == pytest.approx((0.15 - 0.098, 0.15 + 0.098))


def test_simulation_totals_update_adds_judges() -> None:
    rounds = (RoundSizes((20, 10), 3), RoundSizes((20,), 1))
    totals = SimulationTotals({"a": [0.5]}, [[rounds]])
    totals.update(SimulationTotals({"a": [1.0]}, [[rounds[:1]]]))
    assert totals.by_query() == {"a": 0.75}
    assert (totals.calls, totals.passages, totals.rounds, totals.most) == (2.5, 40, 1.5, (3, 2))


# --- seconds ---------------------------------------------------------------------------------------


def rounds_of(draw: st.DrawFn) -> list[PendingRound]:
    round_seconds = draw(st.lists(st.lists(st.floats(0.1, 9), max_size=5), max_size=4))
    remaining = [sum(map(len, round_seconds[i:])) for i in range(len(round_seconds))]
    return [
        PendingRound(seconds, remaining_windows)
        for seconds, remaining_windows in zip(round_seconds, remaining, strict=True)
    ]


@st.composite
def pending_queries(draw: st.DrawFn) -> list[list[PendingRound]]:
    return [rounds_of(draw) for _ in range(draw(st.integers(0, 12)))]


@given(pending_queries(), st.integers(1, 5))
def test_scheduled_respects_concurrency_and_round_order(queries: list[list[PendingRound]], concurrency: int) -> None:
    calls = list(scheduled(map(iter, queries), concurrency))
    call_seconds = [seconds for rounds in queries for round_of_query in rounds for seconds in round_of_query.seconds]
    assert sorted(call.end - call.start for call in calls) == pytest.approx(sorted(call_seconds))
    assert [call.start for call in calls] == sorted(call.start for call in calls)
    for call in calls:
        assert sum(other.start <= call.start < other.end for other in calls) <= concurrency
    for number, rounds in enumerate(queries):
        query_calls: Iterator[Call] = iter([call for call in calls if call.query == number])
        previous_end = 0.0
        for round_of_query in rounds:
            round_calls = [next(query_calls) for _ in round_of_query.seconds]
            assert all(call.start >= previous_end for call in round_calls)
            previous_end = max([call.end for call in round_calls], default=previous_end)
    total, longest = (
        sum(call_seconds),
        max((sum(max(pending.seconds, default=0) for pending in query) for query in queries), default=0),
    )
    assert max(total / concurrency, longest) <= makespan(queries, concurrency) + 1e-9
    assert makespan(queries, concurrency) <= total + 1e-9


def test_scheduled_serves_the_longest_queue_first() -> None:
    queries = [[PendingRound([1.0], 1)], [PendingRound([2.0], 2), PendingRound([2.0], 1)], [PendingRound([4.0], 1)]]
    calls = list(scheduled(map(iter, queries), 1))
    assert [(call.query, call.start) for call in calls] == [(1, 0), (0, 2), (1, 3), (2, 5)]


def test_expected_with_fixed_times() -> None:
    sliding, blocks = [RoundSizes((20,), 2), RoundSizes((20,), 1)], [RoundSizes((20, 20), 3), RoundSizes((10,), 1)]
    assert expected([[sliding, sliding]], CallTime(10), 1) == (20, 40)
    assert expected([[sliding, sliding]], CallTime(10), 2) == (20, 20)
    assert expected([[blocks]], CallTime(10), 1) == (30, 30)
    assert expected([[blocks], [sliding]], CallTime(0, 1), 2) == ((30 + 40) / 2, (30 + 40) / 2)
    assert expected([], CallTime(1), 1) == (0, 0)


def test_draw_seconds_is_lognormal_and_deterministic() -> None:
    rounds = [RoundSizes((20,) * 4000, 4000)]
    call_time = CallTime(20, 2.5, 0.3)
    [pending] = call_time.draw_seconds(rounds, "a")
    assert call_time.draw_seconds(rounds, "a") == [pending] != call_time.draw_seconds(rounds, "b")
    assert fmean(pending.seconds) == pytest.approx(70, rel=0.02)
    sorted_seconds = sorted(pending.seconds)
    assert sorted_seconds[3364] / sorted_seconds[2000] == pytest.approx(2.718281828**0.3, rel=0.03)  # one deviation up


@pytest.mark.parametrize(
    ("text", "expected_times"),
    [("45", (45, 0)), ("20+2.5w", (20, 2.5)), (" 20 + 2.5w ", (20, 2.5)), ("3w", (0, 3)), (".5+.1w", (0.5, 0.1))],
)
def test_call_time_parse_reads_times(text: str, expected_times: tuple[float, float]) -> None:
    call_time = CallTime.parse(text, 0.2)
    assert (call_time.fixed, call_time.per_passage, call_time.spread) == (*expected_times, 0.2)


@pytest.mark.parametrize("text", ["", "x", "20+", "+2w", "20 2w", "-3", "0", "0+0w", "20w+3", "1e3", "20+2.5", "nan"])
def test_call_time_parse_rejects_other_text(text: str) -> None:
    with pytest.raises(InputError):
        CallTime.parse(text)


def test_simulate_dataset_blocks_are_faster_with_more_concurrency() -> None:
    """Between clients without any work of their own, at the latencies of benchmarks/rounds.py."""
    pytest.importorskip("numpy")
    dataset = make_dataset(40, 100)
    ratios = []
    for concurrency in (16, 64, 200):
        sliding, blocks = (
            simulate_dataset(dataset, concurrency, strategy=name).makespan for name in ("sliding", "blocks")
        )
        ratios.append(blocks / sliding)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] < 0.8
    assert ratios[1] < 0.6
    assert ratios[2] < 0.46
