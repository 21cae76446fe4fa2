"""Selecting: what is whole is kept, by the rule asked for; what is left out is counted, with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.distill.near_duplicates import CONTAMINATION_SIMILARITY, NearDuplicateIndex
from rank_k.distill.select import (
    RULES,
    Selector,
    Trace,
    apply_rule,
    group_samples,
    is_heldout,
    parse_sample,
    tier_ndcg,
    trace_qualities,
)
from rank_k.evaluation.measures import evaluate
from rank_k.journal import Call, Journal, WindowRecord
from rank_k.types import Candidate, Response, Window
from rank_k.window.parsing import parse_ranking

DOC_IDS = ("a", "b", "c")
GRADES = {"a": 0, "b": 2, "c": 1}
REASONING = "The second passage answers the question, the third mentions it."


def make_response(
    order: str = "[2] > [3] > [1]", reasoning: str | None = REASONING, finish_reason: str = "stop"
) -> Response:
    return Response(order, reasoning, finish_reason)


def make_call(response: Response, purpose: str = "ask", doc_ids: Sequence[str] = DOC_IDS, **request: Any) -> Call:
    body = {"messages": [{"role": "user", "content": f"which of {' '.join(doc_ids)}?"}], **request}
    return Call("teacher", purpose, body, response, tuple(doc_ids))


class TraceJournal:
    """A journal in the making."""

    def __init__(self, path: Path | None = None) -> None:
        self.journal = Journal(path)
        self._run = self.journal.begin_run({"n": 1})
        self._keys = 0

    def add(self, number: int, calls: Sequence[Call], query: str | None = None, **metadata: Any) -> None:
        keys = []
        for call in calls:
            keys.append(f"k{self._keys}")
            self._keys += 1
            self.journal.store_call(keys[-1], call.model, call.purpose, call.request, call.response, call.doc_ids)
        default_metadata = {
            "set_id": f"set{number}",
            "query_id": f"q{number}",
            "query": query or f"question {number * 7919} about {number * 104729}",
            "doc_ids": DOC_IDS,
            "grades": GRADES,
            "source": "s",
            "license": "CC0",
        }
        self.journal.store_set(f"set{number}", {**default_metadata, **metadata})
        window = Window(DOC_IDS, (1, 3))
        self.journal.store_window(self._run, WindowRecord(f"set{number}", 0, 0, window, tuple(keys), (), {}))


@pytest.fixture
def traces() -> Iterator[TraceJournal]:
    journal_traces = TraceJournal()
    yield journal_traces
    journal_traces.journal.close()


def select_rows(traces: TraceJournal, **options: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    selector = Selector(**options)
    return list(selector.rows(traces.journal)), selector.counts


# --- agreement -------------------------------------------------------------------------------------

grade_lists = st.lists(st.integers(-1, 4), min_size=1, max_size=20)


@given(grade_lists)
def test_tier_ndcg_without_ties_equals_evaluation(grades_in_order: list[int]) -> None:
    ndcg_value = tier_ndcg([[grade] for grade in grades_in_order])
    qrels = {"q": {f"d{n}": grade for n, grade in enumerate(grades_in_order)}}
    run = {"q": [Candidate(f"d{n}", -float(n)) for n in range(len(grades_in_order))]}
    evaluated = evaluate(qrels, run, ["nDCG@10"]).means["nDCG@10"]
    assert ndcg_value is None if max(grades_in_order) <= 0 else ndcg_value == pytest.approx(evaluated)


@given(st.lists(grade_lists, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_tier_ndcg_of_ties_is_the_mean_over_tie_breaks(tiers: list[list[int]], random: Random) -> None:
    expected = tier_ndcg(tiers)
    assert tier_ndcg([random.sample(tier, len(tier)) for tier in tiers]) == pytest.approx(expected)
    if expected is not None and len(tiers) == 2 and max(map(len, tiers)) <= 3:
        from itertools import permutations

        ndcgs = [
            tier_ndcg([[grade] for grade in (*first_tier, *second_tier)])
            for first_tier in permutations(tiers[0])
            for second_tier in permutations(tiers[1])
        ]
        assert sum(value or 0 for value in ndcgs) / len(ndcgs) == pytest.approx(expected)


def make_trace(length: int, ndcg_value: float | None, tiers: Sequence[Sequence[int]] = ((1,), (2,), (3,))) -> Trace:
    return Trace("t", (), DOC_IDS, "x", tuple(map(tuple, tiers)), length, ndcg_value)


def test_trace_qualities_use_consensus_without_relevant_passages() -> None:
    unjudged_traces = [
        make_trace(9, None, order) for order in (((1,), (2,), (3,)), ((1,), (2,), (3,)), ((3,), (2,), (1,)))
    ]
    assert trace_qualities(unjudged_traces) == [1.0, 1.0, 0.0]
    assert trace_qualities([make_trace(9, 0.5), make_trace(9, 1.0)]) == [0.5, 1.0]


# --- rules -----------------------------------------------------------------------------------------

trace_values = st.lists(st.tuples(st.integers(0, 50), st.sampled_from([0.2, 0.5, 0.7, 1.0])), min_size=1, max_size=16)


@given(trace_values)
def test_rules_select_the_documented_traces(pairs: list[tuple[int, float]]) -> None:
    traces = [make_trace(length, quality) for length, quality in pairs]
    qualities = [quality for _, quality in pairs]
    selected_by_rule = {rule: apply_rule(rule, traces) for rule in RULES}
    assert selected_by_rule["all"] == traces
    assert selected_by_rule["paper"] == traces[:1]
    (best,) = selected_by_rule["best"]
    assert best.ndcg == max(qualities)
    assert best.reasoning_tokens == min(length for length, quality in pairs if quality == max(qualities))
    mean_length, mean_quality = sum(length for length, _ in pairs) / len(pairs), sum(qualities) / len(pairs)
    short_enough = [length for length, quality in pairs if quality >= mean_quality - 1e-9 and length < mean_length]
    assert [trace.reasoning_tokens for trace in selected_by_rule["short"]] == sorted(short_enough)[:1]
    assert all((trace.ndcg or 0) >= mean_quality - 1e-9 for trace in selected_by_rule["short"])


def test_short_rule_selects_nothing_from_equal_traces() -> None:
    assert apply_rule("short", [make_trace(10, 0.1)] * 3) == []
    traces = [make_trace(length, 0.1) for length in (10, 9, 11)]
    assert apply_rule("short", traces) == traces[1:2]


# --- what a call is worth learning from ------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([make_call(make_response("I cannot say."))], "unranked"),
        ([make_call(make_response("[2] > [1]"))], "repaired"),
        ([make_call(make_response("[2] > [3] > [1] > [9]"))], "repaired"),
        ([make_call(make_response("", finish_reason="length"))], "truncated"),
        ([make_call(make_response("[2] > [3] > [1]", finish_reason="length"))], "repaired"),
        ([make_call(make_response(finish_reason="stopped"))], "repetition_stopped"),
        ([make_call(make_response(reasoning="But wait, is it? I think that it is so. " * 90))], "repetition_stopped"),
        (
            [make_call(make_response("", finish_reason="length")), make_call(make_response(reasoning=None), "close")],
            "truncated",
        ),
        (
            [
                make_call(make_response("on and on", None, "length"), stop=["</think>"]),
                make_call(make_response(), "close"),
            ],
            "truncated",
        ),
        ([make_call(make_response("a thought", None), stop=["</think>"])], "truncated"),
        ([make_call(make_response(), doc_ids=())], "not_recorded"),
    ],
)
def test_parse_sample_rejects_incomplete_samples(calls: list[Call], reason: str) -> None:
    assert parse_sample(calls) == reason


def test_parse_sample_joins_prefilled_reasoning_and_answer() -> None:
    reasoning_call = make_call(Response("Two is best.\n", None, "stop"), stop=["</think>"])
    answer = parse_sample([reasoning_call, make_call(Response("[2] > [3] = [1]", None, "stop"), "close")])
    assert not isinstance(answer, str)
    assert (answer.trace, answer.tiers) == ("Two is best.", ((2,), (3, 1)))


def test_group_samples_separates_concurrent_samples() -> None:
    second_order = ("c", "a", "b")
    first_call, second_call = make_call(make_response()), make_call(make_response(), doc_ids=second_order)
    first_answer, second_answer = (
        make_call(make_response(), "close"),
        make_call(make_response(), "close", doc_ids=second_order),
    )
    assert group_samples([first_call, second_call, second_answer, first_answer]) == [
        [first_call, first_answer],
        [second_call, second_answer],
    ]
    assert group_samples([first_call, first_call]) == [[first_call], [first_call]]


def test_group_samples_matches_answers_by_reasoning_and_seed() -> None:
    """Of few passages samples repeat an order; which look was ended first is chance."""
    reasoning_calls = [
        make_call(Response(f"Number {n} is best.\n", None, "stop"), stop=["</think>"], seed=n) for n in range(3)
    ]

    def make_answer_call(reasoning: str, **request: Any) -> Call:
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n\n"},
        ]
        return Call(
            "teacher", "close", {"messages": messages, **request}, make_response("[1] > [2] > [3]", None), DOC_IDS
        )

    answer_calls = [
        make_answer_call(f"... {n} is best.", seed=n) for n in (2, 0, 1)
    ]  # the thought's beginning had no room
    assert group_samples([*reasoning_calls, *answer_calls]) == [
        [reasoning_calls[n], answer_calls[(n + 1) % 3]] for n in range(3)
    ]
    same_reasoning = [make_call(Response("Two.", None, "stop"), stop=["</think>"], seed=n) for n in range(2)]
    identical = [make_answer_call("Two.", seed=n) for n in (1, 0)]
    assert group_samples([*same_reasoning, *identical]) == [
        [same_reasoning[0], identical[1]],
        [same_reasoning[1], identical[0]],
    ]
    without_seed = [make_call(Response("Two.", None, "stop"), stop=["</think>"]) for _ in range(2)]
    assert list(map(len, group_samples([*without_seed, make_answer_call("Two."), make_answer_call("Two.")]))) == [2, 2]


# --- rows ------------------------------------------------------------------------------------------


def test_selector_rows_have_provenance(traces: TraceJournal) -> None:
    traces.add(1, [make_call(make_response("[2] = [3] > [1]"), messages=[
        {"role": "user", "content": "which?"}, {"role": "assistant", "content": "<think>\n"}])])  # fmt: skip
    ((row,), counts) = select_rows(traces)
    assert row == {
        "prompt": [{"role": "user", "content": "which?"}],
        "completion": [{"role": "assistant", "content": f"<think>\n{REASONING}\n</think>\n\n[2] = [3] > [1]"}],
        "set_id": "set1",
        "query_id": "q1",
        "query": "question 7919 about 104729",
        "doc_ids": ["a", "b", "c"],
        "teacher": "teacher",
        "rule": "paper",
        "ndcg": pytest.approx((1.5 + 1.5 / 1.584962) / (2 + 1 / 1.584962)),
        "source": "s",
        "license": "CC0",
    }
    assert counts == Counter(sets=1, traces=1, rows=1)


@given(
    st.integers(2, 20).flatmap(lambda size: st.permutations(range(1, size + 1))),
    st.lists(st.booleans(), min_size=20, max_size=20),
    st.text(st.characters(exclude_categories=["Cs"])) | st.just("</think> [1] > [2] <|im_end|>"),
)
def test_selector_completions_parse_to_the_same_ranking_and_reasoning(
    numbers: list[int], ties: list[bool], reasoning: str
) -> None:
    tiers: list[tuple[int, ...]] = []
    for number, tied in zip(numbers, ties, strict=False):
        if tied and tiers:
            tiers[-1] += (number,)
        else:
            tiers.append((number,))
    ranking = " > ".join(" = ".join(f"[{n}]" for n in tier) for tier in tiers)
    doc_ids = [f"d{n}" for n in range(len(numbers))]
    traces = TraceJournal()
    traces.add(1, [make_call(Response(ranking, reasoning, "stop"), doc_ids=doc_ids)], doc_ids=doc_ids)
    rows, counts = select_rows(traces)
    traces.journal.close()
    if not rows:  # tags inside of a thought are mended, a thought may loop: then it is not learnt
        assert counts["without_trace"] == 1
        assert counts["repaired"] + counts["repetition_stopped"] + counts["truncated"] + counts["unranked"] == 1
        return
    content = rows[0]["completion"][0]["content"]
    answer = parse_ranking(content, len(numbers), finish_reason="stop")
    assert answer.tiers == tuple(tiers)
    assert (answer.repairs, answer.is_valid) == ({}, True)
    assert content.count("</think>") == (1 if answer.trace else 0)


def test_selector_grades_replace_those_of_the_sets(traces: TraceJournal) -> None:
    traces.add(1, [make_call(make_response())])
    assert select_rows(traces)[0][0]["ndcg"] == 1.0
    assert select_rows(traces, grades={"q1": {"a": 1}})[0][0]["ndcg"] == pytest.approx(0.5)
    assert select_rows(traces, grades={"other": {"a": 1}})[0][0]["ndcg"] is None
    assert select_rows(traces, grades={"q1": {"a": 1}}, min_ndcg=0.6)[1]["below_ndcg"] == 1


def test_selector_applies_the_token_range(traces: TraceJournal) -> None:
    for number, words in enumerate((2, 20, 200)):
        traces.add(number, [make_call(make_response(reasoning=" ".join(f"w{n}" for n in range(words))))])
    rows, counts = select_rows(traces, token_range=(10, 100))
    assert [row["query_id"] for row in rows] == ["q1"]
    assert (counts["too_short"], counts["too_long"], counts["without_trace"]) == (1, 1, 2)


def test_selector_reads_all_runs_and_each_call_once(traces: TraceJournal) -> None:
    traces.add(1, [make_call(make_response())])
    second_run = traces.journal.begin_run({"n": 2})
    traces.journal.store_call("more", "other", "ask", make_call(make_response()).request, make_response(), DOC_IDS)
    window = Window(DOC_IDS, (1, 3))
    traces.journal.store_window(second_run, WindowRecord("set1", 0, 0, window, ("more", "k0"), (), {}))
    assert [row["teacher"] for row in select_rows(traces, rule="all")[0]] == ["other", "teacher"]


def test_selector_skips_duplicates_and_contaminated_queries(traces: TraceJournal) -> None:
    query = "what are the symptoms of the common cold in children"
    call = make_call(make_response())
    traces.add(1, [call], query)
    traces.add(2, [call], query + "?")  # the same query and passages
    traces.add(3, [call], query + " ?", doc_ids=("x", "y", "z"))  # of another query id
    traces.add(4, [call], query, query_id="q1", doc_ids=("x", "y", "z"))  # another set of the same query
    traces.add(5, [call], "who wrote the tragedy of hamlet")
    excluded = NearDuplicateIndex(CONTAMINATION_SIMILARITY)
    excluded.add("Who wrote the tragedy of Hamlet?", "evaluation")
    rows, counts = select_rows(traces, excluded_queries=excluded)
    assert [row["set_id"] for row in rows] == ["set1", "set4"]
    assert (counts["repeated_sets"], counts["near_queries"], counts["contaminated"]) == (1, 1, 1)


def test_selector_ignores_duplicates_of_sets_without_rows(traces: TraceJournal) -> None:
    unranked, ranked = make_call(make_response("I cannot say.")), make_call(make_response())
    traces.add(1, [unranked], "why is the sky blue in the morning")
    traces.add(2, [ranked], "why is the sky blue in the morning?")  # the same query and passages
    traces.add(3, [unranked], "who wrote the tragedy of hamlet")
    traces.add(4, [ranked], "who wrote the tragedy of Hamlet?", doc_ids=("x", "y", "z"))
    rows, counts = select_rows(traces)
    assert [row["set_id"] for row in rows] == ["set2", "set4"]
    assert counts["without_trace"] == 2


def test_selector_reads_only_the_given_sets(traces: TraceJournal) -> None:
    for number in range(3):
        traces.add(number, [make_call(make_response())])
    assert [row["set_id"] for row in select_rows(traces, set_ids=frozenset(["set1"]))[0]] == ["set1"]


def test_selector_counts_every_trace(traces: TraceJournal) -> None:
    random = Random(0)
    complete = [make_response(reasoning="x " * 2 * n) for n in range(3)]
    responses = [
        *complete,
        make_response("[1] > [2] > [3]"),
        make_response("[1]"),
        make_response("?"),
        make_response("", finish_reason="length"),
    ]
    for number in range(40):
        orders = [tuple(random.sample(DOC_IDS, 3)) for _ in range(4)]
        traces.add(number, [make_call(random.choice(responses), doc_ids=order) for order in orders])
    reasons = ("unranked", "repaired", "truncated", "repetition_stopped", "not_recorded", "not_by_rule", "rows")
    for rule in RULES:
        rows, counts = select_rows(traces, rule=rule)
        assert sum(counts[reason] for reason in reasons) == counts["traces"] == 160
        assert len(rows) == counts["rows"] > 0


def test_is_heldout_depends_on_the_query_id_only() -> None:
    decisions = [is_heldout(f"q{n}", "s", 0.05) for n in range(10_000)]
    assert 400 < sum(decisions) < 600
    assert decisions == [is_heldout(f"q{n}", "s", 0.05) for n in range(10_000)]
    assert all(is_heldout(f"q{n}", "s", 0.1) for n, is_out in enumerate(decisions) if is_out)
    assert not any(is_heldout(f"q{n}", "s", 0) for n in range(100))


# --- the command -----------------------------------------------------------------------------------


def test_distill_select_writes_training_and_heldout_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    traces = TraceJournal(tmp_path / "traces.sqlite")
    for number in range(60):
        traces.add(number, [make_call(make_response("[3] > [2] > [1]") if number % 3 else make_response("nothing"))])
    traces.journal.close()
    command = ("distill", "select", "--journal", "traces.sqlite", "--output", "sft.jsonl")
    assert main([*command, "--heldout", "heldout.jsonl", "--heldout-share", "0.3"]) == 0
    training, heldout = (
        [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("sft.jsonl", "heldout.jsonl")
    )
    assert (len(training) + len(heldout), bool(training), bool(heldout)) == (40, True, True)
    assert {row["query_id"] for row in training}.isdisjoint({row["query_id"] for row in heldout})
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"sft.jsonl: {len(training)} rows",
        f"heldout.jsonl: {len(heldout)} rows",
        "from 60 sets with 60 traces",
        "20 traces left out: no usable ranking",
        "20 sets without a usable trace",
    ]
    assert not list(tmp_path.glob("*.part"))


def test_distill_select_refuses_to_overwrite_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "traces.sqlite"
    Journal(journal).close()
    assert main(["distill", "select", "--journal", str(journal), "--output", str(journal)]) == 2
    assert "which this command also uses" in capsys.readouterr().err
    output_options = ("--output", str(tmp_path / "x"), "--heldout", str(tmp_path / "x"))
    assert main(["distill", "select", "--journal", str(journal), *output_options]) == 2
    assert "which this command also uses" in capsys.readouterr().err


def test_selector_puts_the_trace_in_set_order_first(traces: TraceJournal) -> None:
    other_order = ("c", "a", "b")
    traces.add(1, [make_call(make_response("[3] > [1] > [2]"), doc_ids=other_order), make_call(make_response())])
    assert select_rows(traces)[0][0]["doc_ids"] == list(DOC_IDS)


@pytest.mark.parametrize("name", ["absent.sqlite", "empty.sqlite"])
def test_distill_select_rejects_a_journal_without_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Journal("empty.sqlite").close()
    assert main(["distill", "select", "--journal", name, "--output", "sft.jsonl"]) == 2
    assert f"rank-k distill select: {'there is no journal' if 'absent' in name else name}" in capsys.readouterr().err
    assert not Path("sft.jsonl").exists()
