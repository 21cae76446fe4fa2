"""Runs, queries, windows, rounds, rankings and candidate sets."""

from __future__ import annotations

import json
import sqlite3
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.journal import Journal, WindowRecord
from rank_k.types import Ranking, Response, Window, WindowRanking
from tests.journal.records import HARD_TEXT, make_window, texts

# --- runs ---


def test_begin_run_names_a_run_by_its_settings(journal: Journal) -> None:
    assert journal.last_run() == ""
    first = journal.begin_run({"a": 1, "b": Path("x")})
    second = journal.begin_run({"a": 2, "b": Path("x")})
    assert first != second
    assert journal.last_run() == second
    assert journal.begin_run({"b": Path("x"), "a": 1}) == first
    assert journal.last_run() == first


def test_runs_returns_settings_of_the_latest_run_first(journal: Journal) -> None:
    assert journal.runs() == []
    first, second = journal.begin_run({"a": 1, "output": Path("x")}), journal.begin_run({"a": 2})
    assert [(record.run, record.settings) for record in journal.runs()] == [
        (second, {"a": 2}),
        (first, {"a": 1, "output": "x"}),
    ]
    journal.begin_run({"a": 1, "output": Path("x")})
    assert [record.run for record in journal.runs()] == [first, second]
    assert journal.runs()[0].started_at >= journal.runs()[1].started_at


def test_model_returns_the_model_of_a_run(journal: Journal) -> None:
    run = journal.begin_run({})
    assert journal.model_of_run(run) == ""
    journal.store_window(run, make_window("a", call_keys=("missing",)))
    journal.store_window(run, make_window("b", call_keys=("k",)))
    assert journal.model_of_run(run) == ""
    journal.store_call("k", "Rank-K", "ask", {}, Response("[1]"))
    assert journal.model_of_run(run) == "Rank-K"


# --- queries ---


def test_opened_returns_queries_in_input_order(journal: Journal) -> None:
    for position, query_id in ((1, "b"), (0, "a"), (2, HARD_TEXT)):
        journal.store_query("r", position, query_id, f"text of {query_id}")
    journal.store_query("other", 0, "a", "elsewhere")
    journal.store_ranking("r", 1, "b", Ranking.untied("xy"))
    total, records = journal.find_queries("r")
    assert (total, [record.query_id for record in records]) == (3, ["a", "b", HARD_TEXT])
    assert [record.finished for record in records] == [False, True, False]
    assert records[2].text == f"text of {HARD_TEXT}"
    assert journal.find_queries("r", offset=1, limit=1) == (3, [records[1]])
    assert journal.find_query("r", 2) == records[2]
    assert journal.find_query("r", 3) is None
    assert journal.find_queries()[0] == 4


@pytest.mark.parametrize(
    ("find", "query_ids"), [("TEXT", ["a", "b_%"]), ("b_", ["b_%"]), ("%", ["b_%"]), ("!", []), ("", ["a", "b_%"])]
)
def test_opened_finds_substrings_and_not_patterns(journal: Journal, find: str, query_ids: list[str]) -> None:
    journal.store_query("r", 0, "a", "a text")
    journal.store_query("r", 1, "b_%", "the text")
    assert [record.query_id for record in journal.find_queries("r", find=find)[1]] == query_ids


def test_store_query_deletes_the_rounds_of_an_earlier_attempt(journal: Journal) -> None:
    journal.store_query("r", 0, "a", "text")
    rankings = [Ranking.untied("xyz"), Ranking(("y", "x", "z"), (False, True, False))]
    for number, ranking in enumerate(rankings):
        journal.store_round("r", 0, number, ranking)
    assert journal.rounds("r", 0) == rankings
    assert journal.rounds("r", 1) == []
    journal.store_query("r", 0, "a", "text")
    assert journal.rounds("r", 0) == []


# --- windows ---


def test_windows_are_returned_in_the_order_of_rounds(journal: Journal) -> None:
    assert list(journal.windows()) == []
    run, other = journal.begin_run({"n": 1}), journal.begin_run({"n": 2})
    records = [
        make_window(query_id, number, position) for query_id in "ab" for number in (0, 1, 10) for position in (0, 1)
    ]
    for record in reversed(records):
        journal.store_window(run, record)
    journal.store_window(other, make_window("c"))
    assert list(journal.windows(run)) == records
    assert list(journal.windows(run, "b")) == records[6:]
    assert [record.query_id for record in journal.windows()] == ["c"]  # of the last run
    assert list(journal.windows(run, "unknown")) == []


def test_store_window_replaces_the_same_window(journal: Journal) -> None:
    run = journal.begin_run({})
    journal.store_window(run, make_window(call_keys=("k",)))
    journal.store_window(run, make_window(call_keys=("k", "l")))
    assert [record.call_keys for record in journal.windows()] == [("k", "l")]


def test_forget_windows_deletes_those_of_one_run(journal: Journal) -> None:
    first, second = journal.begin_run({"n": 1}), journal.begin_run({"n": 2})
    for run in (first, second):
        journal.store_window(run, make_window())
    journal.delete_windows(first)
    assert (list(journal.windows(first)), list(journal.windows(second))) == ([], [make_window()])


def test_windows_distinguish_ids_that_are_equal_when_escaped(journal: Journal) -> None:
    run = journal.begin_run({})
    for query_id in ("\udcff", "\\udcff"):
        journal.store_window(run, make_window(query_id))
    assert {record.query_id for record in journal.windows()} == {"\udcff", "\\udcff"}
    assert [record.query_id for record in journal.windows(query_id="\udcff")] == ["\udcff"]


@given(st.lists(texts, min_size=1, max_size=5, unique=True), texts, st.data())
def test_store_window_and_store_ranking_preserve_every_id(
    doc_ids: list[str], query_id: str, data: st.DataObject
) -> None:
    journal = Journal()
    tied = (False, *(data.draw(st.booleans()) for _ in doc_ids[1:]))
    ranking = Ranking(tuple(doc_ids), tied, data.draw(st.none() | st.just({doc_ids[0]: 0.75})))
    journal.store_ranking("r", 0, query_id, ranking)
    assert journal.find_ranking("r", 0) == ranking
    run = journal.begin_run({"a": 1})
    window = Window(tuple(doc_ids), (1, 5), data.draw(st.sampled_from(["listwise", "likelihood"])))
    window_ranking = WindowRanking((tuple(doc_ids),), frozenset(doc_ids[:1]), True)
    record = WindowRecord(query_id, 0, 0, window, ("k",), (window_ranking,), {"missing": 1})
    journal.store_window(run, record)
    assert list(journal.windows()) == [record]
    assert list(journal.windows(query_id=query_id)) == [record]
    journal.close()


def test_stored_values_are_json_that_other_programs_can_read(path: Path) -> None:
    journal = Journal(path)
    run = journal.begin_run({"window": 20})
    journal.store_window(run, make_window())
    ranking = Ranking(("b", "a"), (False, True), {"b": 0.75})
    journal.store_round(run, 0, 0, ranking)
    journal.store_ranking(run, 0, "q", ranking)
    journal.close()
    database = sqlite3.connect(path)
    columns = "doc_ids, rank_range, call_keys, rankings, repairs"
    doc_ids, rank_range, call_keys, rankings, repairs = map(
        json.loads, database.execute(f"SELECT {columns} FROM windows").fetchone()
    )
    assert (doc_ids, rank_range, call_keys, repairs) == (["a", "b", "c", "d"], [1, 4], ["k"], {"missing": 1})
    assert rankings[0] == {"tiers": [["b"], ["a", "c"], ["d"]], "ranked_ids": ["b", "a", "c"], "is_valid": True}
    assert database.execute("SELECT settings FROM runs").fetchone() == ('{"window": 20}',)
    for table in ("rounds", "rankings"):
        (stored,) = database.execute(f"SELECT ranking FROM {table}").fetchone()
        expected = {"doc_ids": ["b", "a"], "tied": [0, 1], "probability": {"b": 0.75}}
        assert json.loads(zlib.decompress(stored)) == expected
    database.close()


# --- rankings ---


def test_ranking_belongs_to_a_run_and_a_position(journal: Journal) -> None:
    ranking = Ranking(("b", "a", "c"), (False, False, True), {"b": 0.9})
    assert journal.find_ranking("r", 0) is None
    journal.store_ranking("r", 0, "q", Ranking.untied("ab"))
    journal.store_ranking("r", 0, "q", ranking)
    assert journal.find_ranking("r", 0) == ranking
    assert journal.find_ranking("r", 1) is None
    assert journal.find_ranking("s", 0) is None


# --- candidate sets ---


def test_traced_sets_returns_metadata_and_keys_of_the_latest_run_first(journal: Journal) -> None:
    for set_id, metadata in (("b", {"n": 1}), ("a", {"n": 0}), ("c", {"n": 3}), ("b", {"n": 2})):
        journal.store_set(set_id, metadata)
    first, second = journal.begin_run({"n": 1}), journal.begin_run({"n": 2})
    for run, set_id, call_keys in ((first, "b", ("k", "l")), (second, "b", ("m", "k")), (first, "a", ("n",))):
        journal.store_window(run, make_window(set_id, call_keys=call_keys))
    assert list(journal.sets_with_calls()) == [({"n": 2}, ("m", "k", "l")), ({"n": 0}, ("n",))]
