"""The simulated judge: exact without noise, the same for everyone who asks, and wrong in the ways it says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.trec import read_qrels, read_run
from rank_k.models.simulated import PRESETS, Noise, SimulatedModel
from rank_k.simulation.replay import simulate, without_calls
from rank_k.strategies import make_strategy
from rank_k.types import Message, Request, RequestContext, Response, StreamChunk
from rank_k.window.parsing import parse_ranking
from tests.paths import ROOT, SHARED

DOCS = tuple(f"d{i:03d}" for i in range(100))
GRADES = {f"q{n}": {doc_id: (i * 7 + n) % 4 for i, doc_id in enumerate(DOCS)} for n in range(40)}
EQUAL_GRADES = {query_id: dict.fromkeys(DOCS, 1) for query_id in GRADES}


def complete_window(judge: SimulatedModel, query_id: str, doc_ids: Sequence[str], **changes: object) -> Response:
    request = Request((Message("user", "x" * 400),), 100, context=RequestContext(query_id, tuple(doc_ids)))
    return asyncio.run(judge.complete(replace(request, **changes)))  # type: ignore[arg-type]


def positions(tiers: list[list[int]]) -> list[int]:
    return [i for tier in tiers for i in tier]


def inversions(judge: SimulatedModel, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> float:
    """Share of the pairs of different grade that stand the wrong way round."""
    grades = [GRADES[query_id][doc_ids[i]] for i in positions(judge.tiers(query_id, doc_ids, sample))]
    pairs = [(a, b) for n, a in enumerate(grades) for b in grades[n + 1 :] if a != b]
    return sum(a < b for a, b in pairs) / len(pairs)


# --- without noise ---------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(DOCS), min_size=1, max_size=30, unique=True), st.sampled_from(sorted(GRADES)))
def test_tiers_without_noise_follow_the_grades(doc_ids: list[str], query_id: str) -> None:
    tiers = SimulatedModel(GRADES).tiers(query_id, doc_ids)
    assert sorted(positions(tiers)) == list(range(len(doc_ids)))
    grades = [[GRADES[query_id][doc_ids[i]] for i in tier] for tier in tiers]
    assert all(len(set(tier)) == 1 for tier in grades)
    assert all(better[0] > worse[0] for better, worse in pairwise(grades))
    assert all(tier == sorted(tier) for tier in tiers)  # in the order shown


def test_complete_returns_a_parsable_ranking() -> None:
    judge = SimulatedModel(GRADES)
    response = complete_window(judge, "q0", DOCS[:20])
    answer = parse_ranking(response.text, 20, reasoning=response.reasoning, finish_reason=response.finish_reason)
    assert answer.tiers == tuple(tuple(i + 1 for i in tier) for tier in judge.tiers("q0", DOCS[:20]))
    assert answer.is_valid
    assert not answer.repairs
    assert answer.ranked_numbers == frozenset(range(1, 21))


def test_tiers_treat_unjudged_passages_as_grade_zero() -> None:
    judge = SimulatedModel({"q": {"a": 1, "n": -1}})
    assert judge.tiers("q", ["n", "x", "a"]) == [[2], [1], [0]]
    assert judge.tiers("unknown", ["x", "y"]) == [[0, 1]]


def test_complete_reasons_unless_disabled() -> None:
    judge = SimulatedModel(GRADES)
    assert complete_window(judge, "q0", DOCS[:3]).reasoning
    direct = complete_window(judge, "q0", DOCS[:3], reasoning=False)
    assert direct.reasoning is None
    assert direct.usage.reasoning_tokens == 0
    assert direct.usage.prompt_tokens == 100
    assert direct.usage.estimated


def test_complete_streams_and_can_be_stopped() -> None:
    judge = SimulatedModel(GRADES)
    request = Request((), 100, context=RequestContext("q0", DOCS[:3]))
    chunks: list[StreamChunk] = []
    assert asyncio.run(judge.complete(request, chunks.append)).finish_reason == "stop"
    assert [delta.text for delta in chunks] == [complete_window(judge, "q0", DOCS[:3]).text]
    assert asyncio.run(judge.complete(request, lambda delta: True)).finish_reason == "stopped"


def test_simulated_model_implements_the_protocol() -> None:
    judge = SimulatedModel(GRADES, context_length=4096)
    asyncio.run(judge.prepare())
    assert judge.context_length == 4096
    assert asyncio.run(judge.count_tokens("text")) is None
    asyncio.run(judge.close())


# --- the same judge --------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", PRESETS)
def test_complete_is_deterministic(noise: str) -> None:
    responses = [
        [complete_window(SimulatedModel(GRADES, noise, seed=3), query_id, DOCS[:20]).text for query_id in GRADES]
        for _ in range(2)
    ]
    assert responses[0] == responses[1]


def test_complete_is_the_same_in_another_process() -> None:
    """Nothing depends on the hash seed of the interpreter, nor on what was asked before."""
    code = (
        "import asyncio; from tests.models.test_simulated import *\n"
        "print([complete_window(SimulatedModel(GRADES, 'weak'), q, DOCS[5:25]).text for q in reversed(GRADES)])"
    )
    root = ROOT
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(
        [complete_window(SimulatedModel(GRADES, "weak"), query_id, DOCS[5:25]).text for query_id in reversed(GRADES)]
    )


def test_seed_changes_identity_and_tiers() -> None:
    first, second = SimulatedModel(GRADES, "weak", seed=1), SimulatedModel(GRADES, "weak", seed=2)
    assert first.identity != second.identity
    assert sum(first.tiers(query_id, DOCS[:20]) != second.tiers(query_id, DOCS[:20]) for query_id in GRADES) > 35


def test_identity_depends_on_grades_noise_and_seed() -> None:
    identity = SimulatedModel(GRADES, "weak").identity
    assert SimulatedModel(GRADES, PRESETS["weak"], context_length=99).identity == identity
    other_models = [
        SimulatedModel(EQUAL_GRADES, "weak"),
        SimulatedModel(GRADES, "strong"),
        SimulatedModel(GRADES, "weak", seed=1),
    ]
    assert len({identity, *(other.identity for other in other_models)}) == 4


def test_request_body_distinguishes_windows() -> None:
    judge = SimulatedModel(GRADES)
    requests = [
        Request((), 100, context=RequestContext("q0", ("a", "b"))),
        Request((), 100, context=RequestContext("q0", ("b", "a"))),
        Request((), 100, context=RequestContext("q1", ("a", "b"))),
        Request((), 100, context=RequestContext("q0", ("a", "b")), reasoning=False),
    ]
    assert len({json.dumps(judge.request_body(request)) for request in requests}) == 4


def test_tiers_accept_ids_with_undecodable_bytes() -> None:
    judge = SimulatedModel({"q\udcff": {"d\udc80": 2}}, "weak")
    assert sorted(positions(judge.tiers("q\udcff", ["x", "d\udc80"]))) == [0, 1]


# --- the errors ------------------------------------------------------------------------------------


def test_presets_weak_errs_more_than_strong() -> None:
    inversion_rates = {
        name: fmean(
            inversions(SimulatedModel(GRADES, name), query_id, DOCS[n : n + 20]) for n, query_id in enumerate(GRADES)
        )
        for name in PRESETS
    }
    assert inversion_rates["none"] == 0
    assert 0.05 < inversion_rates["strong"] < inversion_rates["weak"] - 0.05
    assert inversion_rates["weak"] < 0.45  # but better than a coin


def test_larger_sd_increases_the_error() -> None:
    inversion_rates = [
        fmean(
            inversions(SimulatedModel(GRADES, replace(PRESETS["strong"], sd=sd)), query_id, DOCS[:20])
            for query_id in GRADES
        )
        for sd in (0.0, 0.5, 1.0, 2.0, 4.0)
    ]
    assert inversion_rates == sorted(inversion_rates)


def relevances(
    noise: Noise, doc_ids: Sequence[str], query_id: str = "q0", sample: int = 0, seed: int = 0
) -> list[float]:
    return SimulatedModel(EQUAL_GRADES, noise, seed=seed).perceived_relevance(query_id, doc_ids, sample)


def test_persistent_error_is_equal_in_all_calls() -> None:
    noise = Noise(sd=1.0)
    window = relevances(noise, DOCS[:20])
    assert relevances(noise, DOCS[:20], sample=5) == window
    assert relevances(noise, DOCS[10:30])[:10] == window[10:]
    assert relevances(noise, DOCS[:20], query_id="q1") != window
    assert 0.8 < stdev(x for query_id in GRADES for x in relevances(noise, DOCS, query_id)) < 1.2


def test_fresh_error_differs_by_call_and_grows_with_the_window() -> None:
    noise = Noise(sd=1.0, persistent=0.0, fresh=1.0, growth=0.5)
    assert relevances(noise, DOCS[:20], sample=0) != relevances(noise, DOCS[:20], sample=1)
    assert relevances(noise, DOCS[:20])[0] != relevances(noise, (*DOCS[:19], DOCS[30]))[0]
    for size in (5, 20, 80):
        spread = stdev(
            x for query_id in GRADES for sample in range(5) for x in relevances(noise, DOCS[:size], query_id, sample)
        )
        assert spread == pytest.approx(sqrt(size / 20), rel=0.15)


def test_composition_error_is_antisymmetric() -> None:
    """What one passage gains by another's company, that other loses."""
    noise = Noise(sd=1.0, persistent=0.0, composition=1.0)
    for a, b in zip(DOCS[:50], DOCS[50:], strict=True):
        first_error, second_error = (relevance - 1 for relevance in relevances(noise, (a, b)))
        assert first_error == pytest.approx(-second_error)
        assert first_error != 0
        assert relevances(noise, (b, a)) == [second_error + 1, first_error + 1]  # whoever is shown first
    for query_id in GRADES:
        assert sum(relevance - 1 for relevance in relevances(noise, DOCS[:20], query_id)) == pytest.approx(0, abs=1e-9)


def test_composition_error_depends_on_the_window_with_unit_variance() -> None:
    noise = Noise(sd=1.0, persistent=0.0, composition=1.0)
    assert relevances(noise, DOCS[:20])[0] != relevances(noise, (*DOCS[:19], DOCS[30]))[0]
    for size in (2, 20):
        spread = stdev(
            relevances(noise, DOCS[n : n + size], query_id)[0]
            for n, query_id in enumerate(GRADES)
            for n in range(n, n + 20)
        )
        assert spread == pytest.approx(1, rel=0.15)


def test_position_bias_favors_earlier_passages() -> None:
    noise = Noise(position_bias=0.35)
    assert relevances(noise, DOCS[:5]) == pytest.approx([1, 0.9125, 0.825, 0.7375, 0.65])
    assert relevances(noise, DOCS[:1]) == [1]
    judge = SimulatedModel(EQUAL_GRADES, noise)
    assert positions(judge.tiers("q0", DOCS[:20])) == list(range(20))
    strong = replace(PRESETS["strong"], malformed=0.0)
    places = [
        positions(SimulatedModel(EQUAL_GRADES, strong).tiers(query_id, DOCS[:20])).index(0) for query_id in GRADES
    ]
    unbiased = [
        positions(SimulatedModel(EQUAL_GRADES, replace(strong, position_bias=0)).tiers(query_id, DOCS[:20])).index(0)
        for query_id in GRADES
    ]
    assert fmean(places) < fmean(unbiased)


def test_middle_shrinks_differences_of_middle_passages() -> None:
    grades = {"q": {"best": 3, **dict.fromkeys(DOCS, 0)}}
    judge = SimulatedModel(grades, Noise(middle=0.5))

    def relevance_at(place: int) -> float:
        return judge.perceived_relevance("q", (*DOCS[:place], "best", *DOCS[place:20]), 0)[place]

    assert relevance_at(0) == relevance_at(20) == 3
    assert relevance_at(10) < relevance_at(5) < relevance_at(1) < 3
    assert relevance_at(10) == pytest.approx(fmean([3, *[0] * 20]) + 0.5 * (3 - 3 / 21))


def test_tie_gap_ties_close_passages() -> None:
    noise = Noise(position_bias=0.3, tie_gap=0.15)
    assert SimulatedModel(EQUAL_GRADES, noise).tiers("q0", DOCS[:4]) == [[0, 1], [2, 3]]  # 1, .9, .8, .7


def test_query_spread_varies_the_error_by_query() -> None:
    noise = Noise(sd=1.0, query_spread=0.5)
    spreads = [stdev(relevances(noise, DOCS, query_id)) for query_id in GRADES]
    assert max(spreads) > 2 * min(spreads)
    equal_spreads = [stdev(relevances(replace(noise, query_spread=0), DOCS, query_id)) for query_id in GRADES]
    assert max(equal_spreads) < 1.6 * min(equal_spreads)


@pytest.mark.parametrize(("share", "size"), [(0.0, 20), (0.1, 20), (0.1, 10), (0.1, 40), (1.0, 20)])
def test_malformed_sets_the_share_of_malformed_answers(share: float, size: int) -> None:
    judge = SimulatedModel(GRADES, Noise(malformed=share, position_bias=0.5))
    kinds = {"none": 0, "cut or forgotten": 0, "well formed": 0}
    calls = 0
    for query_id in GRADES:
        for sample in range(25):
            answer = parse_ranking(
                complete_window(judge, query_id, DOCS[:size], sample=sample).text, size, finish_reason="stop"
            )
            is_complete = answer.is_valid and len(answer.ranked_numbers) == size
            kinds["well formed" if is_complete else "cut or forgotten" if answer.is_valid else "none"] += 1
            calls += 1
    expected = share * size / 20
    malformed = calls - kinds["well formed"]
    assert malformed == pytest.approx(expected * calls, abs=4 * sqrt(calls * expected * (1 - expected)))
    if expected:
        assert kinds["none"] == pytest.approx(0.4 * malformed, rel=0.35)


# --- scales of grades -------------------------------------------------------------------------------


def with_highest_grade(highest_grade: int) -> dict[str, dict[str, int]]:
    return {"q": {f"d{grade}": grade for grade in range(highest_grade + 1)}}


@pytest.mark.parametrize(("highest_grade", "factor"), [(1, 1 / 3), (2, 2 / 3), (3, 1), (4, 1), (16, 1)])
def test_presets_are_scaled_to_the_highest_grade(highest_grade: int, factor: float) -> None:
    preset, noise = PRESETS["weak"], SimulatedModel(with_highest_grade(highest_grade), "weak").noise
    for name in ("sd", "position_bias", "tie_gap"):
        assert getattr(noise, name) == pytest.approx(factor * getattr(preset, name))
    scaled_fields = dict.fromkeys(("sd", "position_bias", "tie_gap", "highest_grade"), 0)
    assert replace(noise, **scaled_fields) == replace(preset, **scaled_fields)


def test_noise_without_a_scale_is_used_unchanged() -> None:
    noise = Noise(sd=0.5, position_bias=0.2)
    assert SimulatedModel(with_highest_grade(1), noise).noise == noise
    assert SimulatedModel({"q": {"d": 0}}, noise).noise == noise


def test_identity_of_a_judge_does_not_depend_on_the_stated_scale() -> None:
    preset, unscaled = PRESETS["strong"], replace(PRESETS["strong"], highest_grade=0)
    assert SimulatedModel(GRADES, preset).identity == SimulatedModel(GRADES, unscaled).identity
    binary = with_highest_grade(1)
    assert SimulatedModel(binary, preset).identity != SimulatedModel(binary, unscaled).identity


@pytest.mark.skipif(not SHARED.exists(), reason="needs the collections of ../shared/data beside the checkout")
@pytest.mark.parametrize("name", ["parsinlu-fa", "wikiqa", "vaswani", "birco-wtb-dev"])
def test_strong_judge_improves_the_first_stage_of_binary_collections(name: str) -> None:
    all_grades, run = read_qrels(SHARED / name / "qrels.trec"), read_run(SHARED / name / "run.bm25.trec")
    grades = {query_id: all_grades[query_id] for query_id in list(all_grades)[:60]}
    strategies = {"first stage": without_calls, "sliding": make_strategy("sliding")}
    totals_by_cell = simulate({"": run}, grades, strategies, {"": PRESETS["strong"]}, seed=0, depth=20)
    quality = {cell.strategy: totals.quality.mean for cell, totals in totals_by_cell.items()}
    assert quality["sliding"] > quality["first stage"] + 0.05
