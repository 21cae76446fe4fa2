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
from rank_k.distill.near_duplicates import CONTAMINATED, NearDuplicateIndex
from rank_k.distill.select import RULES, Selector, Trace, held_out, ndcg, read_sample, samples, worth_of
from rank_k.evaluation.measures import evaluate
from rank_k.journal import Call, Journal, WindowRecord
from rank_k.types import Candidate, Response, Window
from rank_k.window.parsing import parse_ranking

SHOWN = ("a", "b", "c")
GRADES = {"a": 0, "b": 2, "c": 1}
THOUGHT = "The second passage answers the question, the third mentions it."


def a_reply(order: str = "[2] > [3] > [1]", thought: str | None = THOUGHT, finish: str = "stop") -> Response:
    return Response(order, thought, finish)


def a_call(reply: Response, purpose: str = "ask", shown: Sequence[str] = SHOWN, **request: Any) -> Call:
    body = {"messages": [{"role": "user", "content": f"which of {' '.join(shown)}?"}], **request}
    return Call("teacher", purpose, body, reply, tuple(shown))


class Traces:
    """A journal in the making."""

    def __init__(self, path: Path | None = None) -> None:
        self.journal = Journal(path)
        self._run = self.journal.begin_run({"n": 1})
        self._keys = 0

    def add(self, number: int, calls: Sequence[Call], query: str | None = None, **facts: Any) -> None:
        keys = []
        for call in calls:
            keys.append(f"k{self._keys}")
            self._keys += 1
            self.journal.store_call(keys[-1], call.model, call.purpose, call.request, call.response, call.doc_ids)
        told = {
            "set_id": f"set{number}",
            "query_id": f"q{number}",
            "query": query or f"question {number * 7919} about {number * 104729}",
            "doc_ids": SHOWN,
            "grades": GRADES,
            "source": "s",
            "license": "CC0",
        }
        self.journal.store_set(f"set{number}", {**told, **facts})
        window = Window(SHOWN, (1, 3))
        self.journal.store_window(self._run, WindowRecord(f"set{number}", 0, 0, window, tuple(keys), (), {}))


@pytest.fixture
def traces() -> Iterator[Traces]:
    found = Traces()
    yield found
    found.journal.close()


def selected(traces: Traces, **options: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    selector = Selector(**options)
    return list(selector.rows(traces.journal)), selector.counts


# --- agreement -------------------------------------------------------------------------------------

grades = st.lists(st.integers(-1, 4), min_size=1, max_size=20)


@given(grades)
def test_ndcg_without_ties_is_that_of_the_evaluation(found: list[int]) -> None:
    mine = ndcg([[grade] for grade in found])
    qrels = {"q": {f"d{n}": grade for n, grade in enumerate(found)}}
    run = {"q": [Candidate(f"d{n}", -float(n)) for n in range(len(found))]}
    theirs = evaluate(qrels, run, ["nDCG@10"]).means["nDCG@10"]
    assert mine is None if max(found) <= 0 else mine == pytest.approx(theirs)


@given(st.lists(grades, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_ndcg_of_ties_is_the_mean_over_the_ways_to_break_them(tiers: list[list[int]], random: Random) -> None:
    expected = ndcg(tiers)
    assert ndcg([random.sample(tier, len(tier)) for tier in tiers]) == pytest.approx(expected)
    if expected is not None and len(tiers) == 2 and max(map(len, tiers)) <= 3:
        from itertools import permutations

        ways = [ndcg([[g] for g in (*x, *y)]) for x in permutations(tiers[0]) for y in permutations(tiers[1])]
        assert sum(way or 0 for way in ways) / len(ways) == pytest.approx(expected)


def a_trace(length: int, worth: float | None, tiers: Sequence[Sequence[int]] = ((1,), (2,), (3,))) -> Trace:
    return Trace("t", (), SHOWN, "x", tuple(map(tuple, tiers)), length, worth)


def test_where_nothing_is_relevant_the_consensus_says_what_a_trace_is_worth() -> None:
    found = [a_trace(9, None, order) for order in (((1,), (2,), (3,)), ((1,), (2,), (3,)), ((3,), (2,), (1,)))]
    assert worth_of(found) == [1.0, 1.0, 0.0]
    assert worth_of([a_trace(9, 0.5), a_trace(9, 1.0)]) == [0.5, 1.0]


# --- rules -----------------------------------------------------------------------------------------

made = st.lists(st.tuples(st.integers(0, 50), st.sampled_from([0.2, 0.5, 0.7, 1.0])), min_size=1, max_size=16)


@given(made)
def test_each_rule_keeps_what_it_says(pairs: list[tuple[int, float]]) -> None:
    traces = [a_trace(length, worth) for length, worth in pairs]
    worths = [worth for _, worth in pairs]
    kept = {name: rule(traces, worths) for name, rule in RULES.items()}
    assert kept["all"] == list(range(len(pairs)))
    assert kept["paper"] == [0]
    (best,) = kept["best"]
    assert worths[best] == max(worths)
    assert pairs[best][0] == min(length for length, worth in pairs if worth == max(worths))
    mean_length, mean_worth = sum(length for length, _ in pairs) / len(pairs), sum(worths) / len(pairs)
    fit = [length for length, worth in pairs if worth >= mean_worth - 1e-9 and length < mean_length]
    assert [pairs[i][0] for i in kept["short"]] == ([min(fit)] if fit else [])
    assert all(worths[i] >= mean_worth - 1e-9 for i in kept["short"])


def test_equal_traces_have_no_shorter_one() -> None:
    assert RULES["short"]([a_trace(10, 0.1)] * 3, [0.1] * 3) == []
    assert RULES["short"]([a_trace(10, 0.1), a_trace(9, 0.1), a_trace(11, 0.1)], [0.1] * 3) == [1]


# --- what a call is worth learning from ------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([a_call(a_reply("I cannot say."))], "unranked"),
        ([a_call(a_reply("[2] > [1]"))], "repaired"),
        ([a_call(a_reply("[2] > [3] > [1] > [9]"))], "repaired"),
        ([a_call(a_reply("", finish="length"))], "cut"),
        ([a_call(a_reply("[2] > [3] > [1]", finish="length"))], "repaired"),
        ([a_call(a_reply(finish="stopped"))], "repetition_stopped"),
        ([a_call(a_reply(thought="But wait, is it? I think that it is so. " * 90))], "repetition_stopped"),
        ([a_call(a_reply("", finish="length")), a_call(a_reply(thought=None), "close")], "cut"),
        ([a_call(a_reply("on and on", None, "length"), stop=["</think>"]), a_call(a_reply(), "close")], "cut"),
        ([a_call(a_reply("a thought", None), stop=["</think>"])], "cut"),
        ([a_call(a_reply(), shown=())], "not_told"),
    ],
)
def test_what_is_not_whole_is_left_out(calls: list[Call], reason: str) -> None:
    assert read_sample(calls) == reason


def test_a_thought_that_was_begun_for_the_model_is_put_together() -> None:
    thought = a_call(Response("Two is best.\n", None, "stop"), stop=["</think>"])
    answer = read_sample([thought, a_call(Response("[2] > [3] = [1]", None, "stop"), "close")])
    assert not isinstance(answer, str)
    assert (answer.trace, answer.tiers) == ("Two is best.", ((2,), (3, 1)))


def test_calls_made_at_the_same_time_are_told_apart() -> None:
    other = ("c", "a", "b")
    one, two = a_call(a_reply()), a_call(a_reply(), shown=other)
    closing_one, closing_two = a_call(a_reply(), "close"), a_call(a_reply(), "close", shown=other)
    assert samples([one, two, closing_two, closing_one]) == [[one, closing_one], [two, closing_two]]
    assert samples([one, one]) == [[one], [one]]


def test_looks_that_show_the_same_order_are_told_apart_by_what_they_thought() -> None:
    """Of few passages samples repeat an order; which look was ended first is chance."""
    begun = [a_call(Response(f"Number {n} is best.\n", None, "stop"), stop=["</think>"], seed=n) for n in range(3)]

    def ended(thought: str, **request: Any) -> Call:
        turns = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n"},
        ]
        return Call("teacher", "close", {"messages": turns, **request}, a_reply("[1] > [2] > [3]", None), SHOWN)

    closes = [ended(f"... {n} is best.", seed=n) for n in (2, 0, 1)]  # the thought's beginning had no room
    assert samples([*begun, *closes]) == [[begun[n], closes[(n + 1) % 3]] for n in range(3)]
    same = [a_call(Response("Two.", None, "stop"), stop=["</think>"], seed=n) for n in range(2)]
    identical = [ended("Two.", seed=n) for n in (1, 0)]
    assert samples([*same, *identical]) == [[same[0], identical[1]], [same[1], identical[0]]]
    without = [a_call(Response("Two.", None, "stop"), stop=["</think>"]) for _ in range(2)]
    assert list(map(len, samples([*without, ended("Two."), ended("Two.")]))) == [2, 2]


# --- rows ------------------------------------------------------------------------------------------


def test_a_row_says_what_it_is_and_where_it_comes_from(traces: Traces) -> None:
    traces.add(1, [a_call(a_reply("[2] = [3] > [1]"), messages=[
        {"role": "user", "content": "which?"}, {"role": "assistant", "content": "<think>\n"}])])  # fmt: skip
    ((row,), counts) = selected(traces)
    assert row == {
        "prompt": [{"role": "user", "content": "which?"}],
        "completion": [{"role": "assistant", "content": f"<think>\n{THOUGHT}\n</think>\n\n[2] = [3] > [1]"}],
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
def test_a_completion_is_read_as_the_order_and_thought_it_was_made_of(
    numbers: list[int], ties: list[bool], thought: str
) -> None:
    tiers: list[tuple[int, ...]] = []
    for number, tied in zip(numbers, ties, strict=False):
        if tied and tiers:
            tiers[-1] += (number,)
        else:
            tiers.append((number,))
    order = " > ".join(" = ".join(f"[{n}]" for n in tier) for tier in tiers)
    shown = [f"d{n}" for n in range(len(numbers))]
    traces = Traces()
    traces.add(1, [a_call(Response(order, thought, "stop"), shown=shown)], doc_ids=shown)
    found, counts = selected(traces)
    traces.journal.close()
    if not found:  # tags inside of a thought are mended, a thought may loop: then it is not learnt
        assert counts["without_trace"] == 1
        assert counts["repaired"] + counts["repetition_stopped"] + counts["cut"] + counts["unranked"] == 1
        return
    content = found[0]["completion"][0]["content"]
    answer = parse_ranking(content, len(numbers), finish_reason="stop")
    assert answer.tiers == tuple(tiers)
    assert (answer.repairs, answer.is_valid) == ({}, True)
    assert content.count("</think>") == (1 if answer.trace else 0)


def test_judgments_can_be_given_and_hold_instead_of_those_of_the_sets(traces: Traces) -> None:
    traces.add(1, [a_call(a_reply())])
    assert selected(traces)[0][0]["ndcg"] == 1.0
    assert selected(traces, grades={"q1": {"a": 1}})[0][0]["ndcg"] == pytest.approx(0.5)
    assert selected(traces, grades={"other": {"a": 1}})[0][0]["ndcg"] is None
    assert selected(traces, grades={"q1": {"a": 1}}, least_ndcg=0.6)[1]["below_ndcg"] == 1


def test_lengths_have_bounds(traces: Traces) -> None:
    for number, words in enumerate((2, 20, 200)):
        traces.add(number, [a_call(a_reply(thought=" ".join(f"w{n}" for n in range(words))))])
    rows, counts = selected(traces, lengths=(10, 100))
    assert [row["query_id"] for row in rows] == ["q1"]
    assert (counts["too_short"], counts["too_long"], counts["without_trace"]) == (1, 1, 2)


def test_all_runs_count_and_a_call_of_two_runs_once(traces: Traces) -> None:
    traces.add(1, [a_call(a_reply())])
    again = traces.journal.begin_run({"n": 2})
    traces.journal.store_call("more", "other", "ask", a_call(a_reply()).request, a_reply(), SHOWN)
    window = Window(SHOWN, (1, 3))
    traces.journal.store_window(again, WindowRecord("set1", 0, 0, window, ("more", "k0"), (), {}))
    assert [row["teacher"] for row in selected(traces, rule="all")[0]] == ["other", "teacher"]


def test_repetitions_and_contamination_are_left_out(traces: Traces) -> None:
    asked = "what are the symptoms of the common cold in children"
    call = a_call(a_reply())
    traces.add(1, [call], asked)
    traces.add(2, [call], asked + "?")  # the same query and passages
    traces.add(3, [call], asked + " ?", doc_ids=("x", "y", "z"))  # of another query id
    traces.add(4, [call], asked, query_id="q1", doc_ids=("x", "y", "z"))  # another set of the same query
    traces.add(5, [call], "who wrote the tragedy of hamlet")
    excluded = NearDuplicateIndex(CONTAMINATED)
    excluded.add("Who wrote the tragedy of Hamlet?", "evaluation")
    rows, counts = selected(traces, excluded=excluded)
    assert [row["set_id"] for row in rows] == ["set1", "set4"]
    assert (counts["repeated_sets"], counts["near_queries"], counts["contaminated"]) == (1, 1, 1)


def test_a_set_that_gives_no_row_stands_in_no_other_s_way(traces: Traces) -> None:
    bad, good = a_call(a_reply("I cannot say.")), a_call(a_reply())
    traces.add(1, [bad], "why is the sky blue in the morning")
    traces.add(2, [good], "why is the sky blue in the morning?")  # the same query and passages
    traces.add(3, [bad], "who wrote the tragedy of hamlet")
    traces.add(4, [good], "who wrote the tragedy of Hamlet?", doc_ids=("x", "y", "z"))
    rows, counts = selected(traces)
    assert [row["set_id"] for row in rows] == ["set2", "set4"]
    assert counts["without_trace"] == 2


def test_only_some_sets_are_taken(traces: Traces) -> None:
    for number in range(3):
        traces.add(number, [a_call(a_reply())])
    assert [row["set_id"] for row in selected(traces, only=frozenset(["set1"]))[0]] == ["set1"]


def test_every_trace_is_accounted_for(traces: Traces) -> None:
    random = Random(0)
    whole = [a_reply(thought="x " * 2 * n) for n in range(3)]
    replies = [*whole, a_reply("[1] > [2] > [3]"), a_reply("[1]"), a_reply("?"), a_reply("", finish="length")]
    for number in range(40):
        shown = [tuple(random.sample(SHOWN, 3)) for _ in range(4)]
        traces.add(number, [a_call(random.choice(replies), shown=order) for order in shown])
    reasons = ("unranked", "repaired", "cut", "repetition_stopped", "not_told", "not_by_rule", "rows")
    for rule in RULES:
        rows, counts = selected(traces, rule=rule)
        assert sum(counts[reason] for reason in reasons) == counts["traces"] == 160
        assert len(rows) == counts["rows"] > 0


def test_queries_are_held_out_by_their_id_alone() -> None:
    found = [held_out(f"q{n}", "s", 0.05) for n in range(10_000)]
    assert 400 < sum(found) < 600
    assert found == [held_out(f"q{n}", "s", 0.05) for n in range(10_000)]
    assert all(held_out(f"q{n}", "s", 0.1) for n, out in enumerate(found) if out)
    assert not any(held_out(f"q{n}", "s", 0) for n in range(100))


# --- the command -----------------------------------------------------------------------------------


def test_the_command_writes_rows_and_holds_some_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    traces = Traces(tmp_path / "traces.sqlite")
    for number in range(60):
        traces.add(number, [a_call(a_reply("[3] > [2] > [1]") if number % 3 else a_reply("nothing"))])
    traces.journal.close()
    command = ("distill", "select", "--journal", "traces.sqlite", "--output", "sft.jsonl")
    assert main([*command, "--heldout", "held.jsonl", "--heldout-share", "0.3"]) == 0
    training, held = (
        [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("sft.jsonl", "held.jsonl")
    )
    assert (len(training) + len(held), bool(training), bool(held)) == (40, True, True)
    assert {row["query_id"] for row in training}.isdisjoint({row["query_id"] for row in held})
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"sft.jsonl: {len(training)} rows",
        f"held.jsonl: {len(held)} rows",
        "of 60 sets with 60 traces looked at",
        "20 traces left out: no usable order",
        "20 sets without a usable trace",
    ]
    assert not list(tmp_path.glob("*.part"))


def test_nothing_that_is_read_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "traces.sqlite"
    Journal(journal).close()
    assert main(["distill", "select", "--journal", str(journal), "--output", str(journal)]) == 2
    assert "which this command also uses" in capsys.readouterr().err
    taken = ("--output", str(tmp_path / "x"), "--heldout", str(tmp_path / "x"))
    assert main(["distill", "select", "--journal", str(journal), *taken]) == 2
    assert "which this command also uses" in capsys.readouterr().err


def test_the_trace_in_the_sets_own_order_is_the_first(traces: Traces) -> None:
    other = ("c", "a", "b")
    traces.add(1, [a_call(a_reply("[3] > [1] > [2]"), shown=other), a_call(a_reply())])
    assert selected(traces)[0][0]["doc_ids"] == list(SHOWN)


@pytest.mark.parametrize("name", ["absent.sqlite", "empty.sqlite"])
def test_a_journal_without_traces_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Journal("empty.sqlite").close()
    assert main(["distill", "select", "--journal", name, "--output", "sft.jsonl"]) == 2
    assert f"rank-k distill select: {'there is no journal' if 'absent' in name else name}" in capsys.readouterr().err
    assert not Path("sft.jsonl").exists()
