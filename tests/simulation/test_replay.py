"""Strategies before a simulated judge, and the seconds they would take: the same as with everything in between."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from statistics import fmean

import pytest
from benchmarks.ideal import simulate_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k import Reranker
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.models.simulated import PRESETS, Noise, SimulatedModel
from rank_k.simulation.call_times import Call, CallTime, PendingRound, expected, makespan, scheduled, timed
from rank_k.simulation.replay import (
    Cell,
    RoundSizes,
    SimulationTotals,
    difference,
    ndcg,
    replay_strategy,
    simulate,
    with_answers,
    without_calls,
)
from rank_k.strategies import STRATEGIES, make
from rank_k.types import Candidate, Passage, Query, Request, RequestContext, Window
from rank_k.window.parsing import parse_ranking
from tests.fakes.loopback import make_queries

DOCS = tuple(f"d{i:03d}" for i in range(100))
GRADES = {f"q{n}": {doc_id: (i * 7 + n) % 4 for i, doc_id in enumerate(DOCS)} for n in range(40)}
RUN = {query_id: [Candidate(doc_id, -i) for i, doc_id in enumerate(DOCS[:60])] for query_id in list(GRADES)[:3]}


# --- the same judge as ever ------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "told"), [("strong", "a17e1e74e9d7b5f5"), ("weak", "f7f56c7810108954")])
def test_no_draw_has_changed(noise: str, told: str) -> None:
    """Figures in the documentation, and the calibration of the presets, are those of exactly these judges."""
    judge, random, digest = SimulatedModel(GRADES, noise, seed=3), Random(7), hashlib.sha256()
    for query_id in GRADES:
        for size in (2, 5, 20, 33):
            ids = tuple(random.sample(DOCS, size))
            digest.update("\n".join(judge.ranking_text(query_id, ids, sample) for sample in (0, 1)).encode())
    assert digest.hexdigest()[:16] == told


# --- answers, read ---------------------------------------------------------------------------------


@st.composite
def tiers_of(draw: st.DrawFn) -> list[list[int]]:
    numbers = draw(st.permutations(range(draw(st.integers(2, 60)))))
    cuts = sorted(draw(st.sets(st.integers(1, len(numbers) - 1))))
    return [list(numbers[a:b]) for a, b in pairwise([0, *cuts, len(numbers)])]


class Fixed(SimulatedModel):
    """A judge whose mind is made up."""

    def __init__(self, tiers: list[list[int]]) -> None:
        super().__init__({})
        self._tiers = tiers

    def tiers(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> list[list[int]]:
        return self._tiers


@given(tiers_of())
def test_a_well_formed_answer_is_read_as_it_is_written(tiers: list[list[int]]) -> None:
    """So that reading it may be left out."""
    size = sum(map(len, tiers))
    read = parse_ranking(Fixed(tiers).ranking_text("q", DOCS[:size]), size, finish_reason="stop")
    assert [[i - 1 for i in tier] for tier in read.tiers] == tiers
    assert (read.is_valid, len(read.ranked_numbers), dict(read.repairs)) == (True, size, {})


@pytest.mark.parametrize("tied", [False, True])
def test_so_is_one_about_a_thousand_passages(tied: bool) -> None:
    numbers = Random(3).sample(range(1000), 1000)
    tiers = [numbers[i : i + 2] for i in range(0, 1000, 2)] if tied else [[i] for i in numbers]
    read = parse_ranking(Fixed(tiers).ranking_text("q", [str(i) for i in range(1000)]), 1000, finish_reason="stop")
    assert [[i - 1 for i in tier] for tier in read.tiers] == tiers


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(sorted(GRADES)), st.integers(2, 40))
def test_an_answer_is_what_the_parser_makes_of_the_reply(seed: int, query_id: str, size: int) -> None:
    ids = tuple(Random(seed).sample(DOCS, size))
    judge = SimulatedModel(GRADES, Noise(sd=1, malformed=0.5, tie_gap=0.1), seed=seed)
    asked = Request((), 1, reasoning=False, context=RequestContext(query_id, ids))
    reply = asyncio.run(judge.complete(asked))
    read = parse_ranking(reply.text, size, finish_reason=reply.finish_reason)
    order = with_answers(judge, query_id, Window(ids, (1, size)))
    assert order.tiers == tuple(tuple(ids[i - 1] for i in tier) for tier in read.tiers)
    assert order.ranked_ids == {ids[i - 1] for i in read.ranked_numbers}
    assert order.is_valid == read.is_valid


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_query_ends_as_it_does_with_everything_in_between(strategy: str) -> None:
    """Prompt, reply, parser, journal and engine change nothing."""
    judge = SimulatedModel(GRADES, "weak", seed=1)
    queries = {query_id: Query(query_id, "?") for query_id in RUN}
    texts = {doc_id: Passage(doc_id, "text") for doc_id in DOCS}
    with Reranker(judge, strategy=strategy) as reranker:
        results = {result.query_id: result.ranking.doc_ids for result in reranker.rerank(RUN, queries, texts)}
        tally = reranker.stats
    played = [replay_strategy(make(strategy), RUN[query_id], query_id, judge) for query_id in RUN]
    assert [one.doc_ids for one in played] == list(results.values())
    assert sum(len(asked.sizes) for one in played for asked in one.rounds) == tally.windows
    assert sum(len(one.rounds) for one in played) == tally.rounds


# --- quality ---------------------------------------------------------------------------------------


def test_ndcg_is_that_of_ir_measures() -> None:
    pytest.importorskip("ir_measures")
    random = Random(5)
    for _ in range(20):
        ids = [f"d{i}" for i in range(30)]
        grades = {doc_id: random.randint(-1, 3) for doc_id in random.sample(ids, 20)} | {"elsewhere": 2}
        found = evaluate({"q": grades}, {"q": [Candidate(d, -i) for i, d in enumerate(ids)]}, ["nDCG@10"])
        assert ndcg(ids, grades) == pytest.approx(found.means["nDCG@10"], abs=1e-9)


def test_every_strategy_on_every_run_before_every_judge() -> None:
    runs = {"short": {"q0": RUN["q0"][:20]}, "long": RUN}
    plans = {"sliding": make("sliding"), "same": make("sliding"), "none": without_calls}
    found = simulate(runs, GRADES, plans, {name: PRESETS[name] for name in ("none", "weak")}, 5)
    assert set(found) == {Cell(r, n, s) for r in runs for n in ("none", "weak") for s in plans}
    for cell, sums in found.items():
        assert sums == found[cell._replace(strategy="same")] or cell.strategy == "none"
        assert list(sums.ndcg) == list(GRADES)  # those that the run lacks are zero, as in an evaluation
        assert sums.by_query()["q5"] == 0
    perfect = found[Cell("long", "none", "sliding")]
    assert [perfect.by_query()[query_id] for query_id in RUN] == pytest.approx([1, 1, 1])
    assert perfect.most == (5, 5)
    assert (perfect.calls, perfect.passages, perfect.rounds) == (15 / 40, 300 / 40, 15 / 40)
    assert found[Cell("long", "weak", "sliding")].quality.mean < perfect.quality.mean
    unranked = found[Cell("long", "weak", "none")]
    assert unranked.most == (0, 0)
    assert unranked.by_query()["q1"] == ndcg(DOCS[:60], GRADES["q1"])


def test_only_the_first_candidates_are_compared_and_the_rest_follows() -> None:
    grades = {"q": {"d5": 1, "d1": 1}}
    run = {"q": [Candidate(f"d{i}", -i) for i in range(8)]}
    [sums] = simulate({"": run}, grades, {"s": make("sliding", window=4, stride=2)}, {"": Noise()}, 0, 4).values()
    assert sums.by_query()["q"] == pytest.approx(ndcg(["d1", "d0", "d2", "d3", "d4", "d5"], grades["q"]))


def test_differences_are_paired_by_query_after_averaging_seeds() -> None:
    ours = SimulationTotals({"a": [0.5, 0.7], "b": [0.3, 0.3]})
    theirs = SimulationTotals({"b": [0.3, 0.1], "a": [0.4, 0.4]})
    found = difference(ours, theirs)
    assert found.mean == pytest.approx(0.15)  # query a: .2, query b: .1
    assert found.error == pytest.approx(0.05)
    assert found.interval == pytest.approx((0.15 - 0.098, 0.15 + 0.098))


def test_sums_of_several_judges() -> None:
    rounds = (RoundSizes((20, 10), 3), RoundSizes((20,), 1))
    sums = SimulationTotals({"a": [0.5]}, [[rounds]])
    sums.update(SimulationTotals({"a": [1.0]}, [[rounds[:1]]]))
    assert sums.by_query() == {"a": 0.75}
    assert (sums.calls, sums.passages, sums.rounds, sums.most) == (2.5, 40, 1.5, (3, 2))


# --- seconds ---------------------------------------------------------------------------------------


def rounds_of(draw: st.DrawFn) -> list[PendingRound]:
    each = draw(st.lists(st.lists(st.floats(0.1, 9), max_size=5), max_size=4))
    left = [sum(map(len, each[i:])) for i in range(len(each))]
    return [PendingRound(seconds, many) for seconds, many in zip(each, left, strict=True)]


@st.composite
def work(draw: st.DrawFn) -> list[list[PendingRound]]:
    return [rounds_of(draw) for _ in range(draw(st.integers(0, 12)))]


@given(work(), st.integers(1, 5))
def test_calls_keep_to_the_slots_and_rounds_to_their_order(queries: list[list[PendingRound]], slots: int) -> None:
    calls = list(scheduled(map(iter, queries), slots))
    asked = [seconds for rounds in queries for due in rounds for seconds in due.seconds]
    assert sorted(call.end - call.start for call in calls) == pytest.approx(sorted(asked))
    assert [call.start for call in calls] == sorted(call.start for call in calls)
    for call in calls:
        assert sum(other.start <= call.start < other.end for other in calls) <= slots
    for number, rounds in enumerate(queries):
        own: Iterator[Call] = iter([call for call in calls if call.query == number])
        over = 0.0
        for due in rounds:
            asked_now = [next(own) for _ in due.seconds]
            assert all(call.start >= over for call in asked_now)
            over = max([call.end for call in asked_now], default=over)
    total, longest = sum(asked), max((sum(max(d.seconds, default=0) for d in q) for q in queries), default=0)
    assert max(total / slots, longest) <= makespan(calls) + 1e-9
    assert makespan(calls) <= total + 1e-9


def test_whose_windows_are_most_goes_first() -> None:
    queries = [[PendingRound([1.0], 1)], [PendingRound([2.0], 2), PendingRound([2.0], 1)], [PendingRound([4.0], 1)]]
    calls = list(scheduled(map(iter, queries), 1))
    assert [(call.query, call.start) for call in calls] == [(1, 0), (0, 2), (1, 3), (2, 5)]


def test_what_is_expected_of_fixed_times() -> None:
    sliding, blocks = [RoundSizes((20,), 2), RoundSizes((20,), 1)], [RoundSizes((20, 20), 3), RoundSizes((10,), 1)]
    assert expected([[sliding, sliding]], CallTime(10), 1) == (20, 40)
    assert expected([[sliding, sliding]], CallTime(10), 2) == (20, 20)
    assert expected([[blocks]], CallTime(10), 1) == (30, 30)
    assert expected([[blocks], [sliding]], CallTime(0, 1), 2) == ((30 + 40) / 2, (30 + 40) / 2)
    assert expected([], CallTime(1), 1) == (0, 0)
    with pytest.raises(InputError, match="0 slots"):
        expected([], CallTime(1), 0)


def test_times_spread_around_their_mean_and_are_the_same_again() -> None:
    rounds = [RoundSizes((20,) * 4000, 4000)]
    call_time = CallTime(20, 2.5, 0.3)
    [due] = timed(rounds, call_time, "a")
    assert timed(rounds, call_time, "a") == [due] != timed(rounds, call_time, "b")
    assert fmean(due.seconds) == pytest.approx(70, rel=0.02)
    logs = sorted(due.seconds)
    assert logs[3364] / logs[2000] == pytest.approx(2.718281828**0.3, rel=0.03)  # one deviation up


@pytest.mark.parametrize(
    ("text", "told"),
    [("45", (45, 0)), ("20+2.5w", (20, 2.5)), (" 20 + 2.5w ", (20, 2.5)), ("3w", (0, 3)), (".5+.1w", (0.5, 0.1))],
)
def test_a_time_of_calls_is_read(text: str, told: tuple[float, float]) -> None:
    call_time = CallTime.parse(text, 0.2)
    assert (call_time.fixed, call_time.per_passage, call_time.spread) == (*told, 0.2)
    assert CallTime.parse(str(call_time), 0.2) == call_time


@pytest.mark.parametrize("text", ["", "x", "20+", "+2w", "20 2w", "-3", "0", "0+0w", "20w+3", "1e3", "20+2.5", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        CallTime.parse(text)


def test_fewer_rounds_take_less_time_the_more_so_with_more_slots() -> None:
    """Between clients without any work of their own, at the latencies of benchmarks/rounds.py."""
    pytest.importorskip("numpy")
    dataset = make_queries(40, 100)
    ratios = []
    for slots in (16, 64, 200):
        sliding, blocks = (simulate_dataset(dataset, slots, strategy=name).makespan for name in ("sliding", "blocks"))
        ratios.append(blocks / sliding)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] < 0.8
    assert ratios[1] < 0.6
    assert ratios[2] < 0.46
