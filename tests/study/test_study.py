"""Studies: what cells cost, how they are compared; one journal, nothing asked twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.files import read_run
from rank_k.errors import InputError, JournalError
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.significance import paired_difference
from rank_k.journal import WindowRecord
from rank_k.study.breakdowns import average_overlap, thirds
from rank_k.study.cell_costs import makespan, rankings_by_round, read_costs, seed_of, window_seconds
from rank_k.study.grid import (
    Cell,
    cells_of,
    strategy_of,
)
from rank_k.study.questions import QUESTIONS
from rank_k.study.table import compare_rows, labels_of, write_cells, write_queries
from rank_k.types import Candidate, WindowRanking, WindowResult
from tests.support.study_data import DATA, Bench
from tests.support.study_data import bench as bench  # a fixture

# --- seconds ---------------------------------------------------------------------------------------


def test_calls_of_a_sample_wait_for_each_other_and_samples_do_not() -> None:
    assert window_seconds([]) == 0
    assert window_seconds([(0, 2.0), (0, 1.0)]) == 3
    assert window_seconds([(0, 2.0), (1, 1.0), (1, 0.5)]) == 2
    assert window_seconds([(0, 2.0), (1, 1.0), (2, 4.0), (3, 3.0)]) == 6, "the first two, then the others"


def test_slots_are_taken_as_they_come_free() -> None:
    assert makespan([]) == 0
    assert makespan([3.0, 1.0, 2.0]) == 3
    assert makespan([3.0, 1.0, 2.0], 1) == 6
    assert makespan([3.0, 1.0, 2.0], 2) == 3
    assert makespan([1.0, 1.0, 3.0], 2) == 4


@given(st.lists(st.floats(0.1, 10), max_size=12), st.integers(1, 12))
def test_more_slots_take_between_the_longest_and_the_sum(seconds: list[float], slots: int) -> None:
    found = makespan(seconds, slots)
    assert max(seconds, default=0) - 1e-9 <= found <= sum(seconds) + 1e-9
    assert found >= sum(seconds) / slots - 1e-9


# --- difficulty ------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(min_size=1), st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=20))
def test_thirds_hold_every_query_once_the_lowest_first(values: dict[str, float]) -> None:
    parts = thirds(values)
    assert len(parts) == 3
    assert sorted(id_ for part in parts for id_ in part) == sorted(values)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    in_order = [values[id_] for part in parts for id_ in part]
    assert in_order == sorted(in_order)


def test_average_overlap() -> None:
    assert average_overlap(list("abcdefghij"), list("abcdefghij")) == 1
    assert average_overlap(list("abcdefghij"), list("klmnopqrst")) == 0
    assert average_overlap(list("ab"), list("ba"), depth=2) == 0.5
    assert average_overlap([], []) == 1


# --- a study on disk -------------------------------------------------------------------------------


def test_cells_share_calls_and_a_second_run_asks_nothing(bench: Bench) -> None:
    one, three, off, auto = (
        replace(Cell("c", "bm25", "judge"), samples=samples, reasoning=reasoning)
        for samples, reasoning in ((1, "full"), (3, "full"), (1, "off"), (1, "auto"))
    )
    [(calls, asked)] = bench.run(one)
    assert calls == asked > 0
    [(calls, asked)] = bench.run(three)
    assert calls - asked >= len(DATA.queries), "the first sample of the first window of every query at least"
    [(direct, asked)] = bench.run(off)
    assert direct == asked, "asked not to think, it is another question"
    [(calls, asked)] = bench.run(auto)
    assert calls - asked >= len(DATA.queries), "the direct answers to the first windows"
    again = bench.run(one, three, off, auto)
    assert [asked for _, asked in again] == [0] * 4


def test_the_same_windows_asked_twice_cost_once(bench: Bench) -> None:
    """`fast` is `blocks` without its last window: all its questions are among those of `blocks`."""
    blocks, fast = (Cell("c", "bm25", "judge", strategy=name) for name in ("blocks", "fast"))
    bench.run(blocks)
    [(calls, asked)] = bench.run(fast)
    assert calls > 0
    assert asked == 0


def test_a_table_says_what_each_cell_is_worth_and_costs(bench: Bench, tmp_path: Path) -> None:
    study = bench.study({"strategy": ["sliding", "blocks"], "samples": [1, 3]}, measures=("nDCG@10", "AP"))
    cells = cells_of(study)
    bench.run(*cells)
    answer = bench.answer(study)
    first, *rows = answer.rows
    assert first.cell is None
    assert first.quality["nDCG@10"].mean == evaluate(DATA.qrels, DATA.run, ["nDCG@10"]).means["nDCG@10"]
    assert [row.cell for row in rows] == list(cells)
    base = rows[0]
    assert base.against is None
    assert base.baseline == base.name
    for row in rows:
        found = evaluate(DATA.qrels, read_run(bench.folder.output(row.cell or cells[0])), ["nDCG@10"])
        assert row.values["nDCG@10"] == found.per_query["nDCG@10"]
        assert set(row.quality) == {"nDCG@10", "AP"}
        assert row.quality["nDCG@10"].low <= row.quality["nDCG@10"].mean <= row.quality["nDCG@10"].high
        assert row.cost.rounds == pytest.approx(5 if row.setting.startswith("sliding") else 2)
        if row is not base:
            assert row.against == paired_difference(row.values["nDCG@10"], base.values["nDCG@10"])
            assert row.p >= row.against.randomization_p if row.against else False
        assert row.on_set <= {"tokens", "rounds"}, "a simulated judge takes no time"
    assert rows[1].cost.calls > rows[0].cost.calls
    assert any("rounds" in row.on_set for row in rows)
    write_cells(tmp_path / "cells.csv", answer.rows)
    lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert len(lines) == 6
    assert labels_of(answer.rows)[base.name] == "sliding-full"


def test_ids_that_are_no_utf8_stand_in_the_tables_as_the_bytes_they_are(bench: Bench, tmp_path: Path) -> None:
    of = bench.collection
    for file in (of.queries, of.documents, of.qrels, of.first_stages[0].file):
        assert file is not None
        file.write_bytes(file.read_bytes().replace(b"Q00", b"Q\xff"))
    study = bench.study({"strategy": ["single"]})
    bench.run(*cells_of(study))
    write_queries(tmp_path / "queries.csv", bench.answer(study).rows)
    assert (tmp_path / "queries.csv").read_bytes().count(b",Q\xff,") == 2


def test_costs_are_the_journals_whether_asked_now_or_found_there(bench: Bench) -> None:
    cell = Cell("c", "bm25", "judge", strategy="blocks", samples=3)
    bench.run(cell)
    with bench.journal() as journal:
        before = list(read_costs(journal, bench.folder.run(cell)))
    assert bench.run(cell)[0][1] == 0
    with bench.journal() as journal:
        assert list(read_costs(journal, bench.folder.run(cell))) == before
    assert sum(query.calls for query in before) == bench.run(cell)[0][0]
    assert {len(query.rounds) for query in before} == {2}


def test_differences_are_paired_with_the_baseline_that_is_named(bench: Bench) -> None:
    study = bench.study({"reasoning": ["off", "full"]}, baseline="sliding-full")
    bench.run(*cells_of(study))
    rows = bench.answer(study).rows
    assert [row.against is None for row in rows] == [True, False, True]
    against_first = compare_rows(rows, "first stage")
    assert [row.baseline for row in against_first] == ["c.bm25"] * 3
    with pytest.raises(InputError, match="no cell is called 'x'"):
        compare_rows(rows, "x")


def test_a_first_stage_with_ties_is_worth_as_much_when_nothing_of_it_is_reranked(bench: Bench) -> None:
    file = bench.collection.first_stages[0].file
    assert file is not None
    file.write_text("".join(f"{q} Q0 {c.doc_id} 1 0.5 t\n" for q, found in DATA.run.items() for c in found))
    study = bench.study({"depth": [1]}, baseline="first stage")
    bench.run(*cells_of(study))
    first, one = bench.answer(study).rows
    assert one.values == first.values
    assert one.values != {"nDCG@10": evaluate(DATA.qrels, read_run(file), ties="trec_eval").per_query["nDCG@10"]}


def test_reasoning_by_thirds_adds_up_to_the_whole(bench: Bench) -> None:
    study = bench.study(*QUESTIONS["reasoning"].grids, by_difficulty=True)
    bench.run(*cells_of(study))
    answer = bench.answer(study)
    assert {one.third for one in answer.difficulty} == {"hard", "middling", "easy"}
    assert len({one.by for one in answer.difficulty}) == 2
    whole = answer.rows[-1].quality["nDCG@10"].mean
    for method in {one.by for one in answer.difficulty}:
        some = [one for one in answer.difficulty if one.by == method]
        assert sum(one.quality * one.against.queries for one in some) / len(DATA.queries) == pytest.approx(whole)
        assert [one.low for one in some] == sorted(one.low for one in some)
    assert all(one.against.mean == 0 for one in answer.difficulty), "this judge answers alike, thought or not"


def test_quality_by_round_is_read_off_the_journal(bench: Bench) -> None:
    study = bench.study({"strategy": ["sliding", "blocks", "topdown", "setwise"]}, by_round=True)
    cells = cells_of(study)
    bench.run(*cells)
    answer = bench.answer(study)
    for row in answer.rows[1:]:
        some = [one for one in answer.rounds if one.name == row.name]
        assert [one.rounds for one in some] == list(range(max(len(query.rounds) for query in row.spent) + 1))
        assert some[0].quality.mean == pytest.approx(answer.rows[0].quality["nDCG@10"].mean)
        assert some[-1].quality.mean == pytest.approx(row.quality["nDCG@10"].mean)
    assert [one.slots for one in answer.slots if one.name == cells[0].name] == [1, 4, 16, None]


def test_a_replay_of_other_windows_is_refused() -> None:
    candidates = [Candidate(f"d{n}", 1.0) for n in range(30)]
    cell = Cell("c", "f", "m", depth=30)
    steps = strategy_of(cell)(candidates, seed_of("q"))
    step = next(steps)
    order = WindowRanking.unranked(step.windows[0])
    good = WindowRecord("q", 0, 0, step.windows[0], (), (order,), {})
    with pytest.raises(JournalError, match="in the midst"):
        rankings_by_round(strategy_of(cell), candidates, seed_of("q"), [good])
    with pytest.raises(JournalError, match="not those of this cell"):
        rankings_by_round(strategy_of(replace(cell, window=10)), candidates, seed_of("q"), [good])
    assert rankings_by_round(strategy_of(cell), candidates[:1], 0, [])[0].doc_ids == ("d0",)
    steps.send([WindowResult(step.windows[0], (order,))])


def test_documents_can_be_split(bench: Bench) -> None:
    whole, split = Cell("c", "bm25", "judge"), Cell("c", "bm25", "judge", maxp_tokens="32:8:2")
    bench.run(whole, split)
    one, other = (read_run(bench.folder.output(cell)) for cell in (whole, split))
    assert {query: {c.doc_id for c in found} for query, found in one.items()} == {
        query: {c.doc_id for c in found} for query, found in other.items()
    }
    answer = bench.answer(bench.study({"maxp_tokens": ["none", "32:8:2"]}))
    assert answer.rows[2].cost.windows > answer.rows[1].cost.windows
