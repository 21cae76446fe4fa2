"""Studies: what cells cost, how they are compared; one journal, nothing asked twice."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.trec import read_run
from rank_k.errors import InputError, JournalError
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.run_costs import QueryCost
from rank_k.evaluation.significance import paired_difference
from rank_k.journal import Journal, WindowRecord
from rank_k.study.breakdowns import average_overlap, rankings_by_round, split_into_thirds
from rank_k.study.cell_costs import read_cell_cost, waiting_seconds, window_seconds
from rank_k.study.grid import (
    Cell,
    expand_cells,
)
from rank_k.study.questions import QUESTIONS
from rank_k.study.table import compare_rows, short_labels, write_cells, write_queries
from rank_k.types import Candidate, Response, WindowRanking, WindowResult
from tests.journal.records import make_window
from tests.support.study_data import DATA, StudyBench
from tests.support.study_data import bench as bench  # a fixture

# --- seconds ---------------------------------------------------------------------------------------


def test_window_seconds_adds_calls_within_a_sample_only() -> None:
    assert window_seconds([]) == 0
    assert window_seconds([(0, 2.0), (0, 1.0)]) == 3
    assert window_seconds([(0, 2.0), (1, 1.0), (1, 0.5)]) == 2
    assert window_seconds([(0, 2.0), (1, 1.0), (2, 4.0), (3, 3.0)]) == 6, "the first two, then the others"


@pytest.mark.parametrize("seed", [0, 123_456])
def test_read_cell_cost_identifies_samples_by_seed(seed: int) -> None:
    with closing(Journal()) as journal:
        run = journal.begin_run({})
        for sample, seconds in enumerate((2.0, 3.0, 4.0)):
            journal.store_call(str(sample), "m", "ask", {"seed": seed + sample}, Response("", seconds=seconds))
        journal.store_window(run, make_window("q", call_keys=("0", "1", "2")))
        cost = read_cell_cost(journal, run)
    assert cost.queries["q"].seconds_by_round == [[3.0 + 4.0]], "the first two at the same time, then the third"


def test_waiting_seconds_assigns_windows_to_free_slots() -> None:
    assert waiting_seconds(QueryCost()) == 0
    query = QueryCost(seconds_by_round=[[3.0, 1.0, 2.0], [1.0, 1.0, 3.0]])
    assert waiting_seconds(query) == 3 + 3
    assert waiting_seconds(query, 1) == 6 + 5
    assert waiting_seconds(query, 2) == 3 + 4


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12), st.integers(1, 12))
def test_waiting_seconds_lie_between_longest_window_and_sum(seconds: list[float], concurrency: int) -> None:
    duration = waiting_seconds(QueryCost(seconds_by_round=[seconds]), concurrency)
    assert max(seconds) - 1e-9 <= duration <= sum(seconds) + 1e-9
    assert duration >= sum(seconds) / concurrency - 1e-9


# --- difficulty ------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(min_size=1), st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=20))
def test_split_into_thirds_sorts_and_partitions_queries(values: dict[str, float]) -> None:
    groups = split_into_thirds(values)
    assert len(groups) == 3
    assert sorted(query_id for group in groups for query_id in group) == sorted(values)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    sorted_values = [values[query_id] for group in groups for query_id in group]
    assert sorted_values == sorted(sorted_values)


def test_average_overlap_of_identical_and_disjoint_rankings() -> None:
    assert average_overlap(list("abcdefghij"), list("abcdefghij")) == 1
    assert average_overlap(list("abcdefghij"), list("klmnopqrst")) == 0
    assert average_overlap(list("ab"), list("ba"), depth=2) == 0.5
    assert average_overlap([], []) == 1


# --- a study on disk -------------------------------------------------------------------------------


def test_run_cell_reuses_calls_of_other_cells(bench: StudyBench) -> None:
    single_sample, three_samples, no_reasoning, auto_reasoning = (
        replace(Cell("c", "bm25", "judge"), samples=samples, reasoning=reasoning)
        for samples, reasoning in ((1, "full"), (3, "full"), (1, "off"), (1, "auto"))
    )
    [(calls, new_calls)] = bench.run(single_sample)
    assert calls == new_calls > 0
    [(calls, new_calls)] = bench.run(three_samples)
    assert calls - new_calls >= len(DATA.queries), "the first sample of the first window of every query at least"
    [(direct_calls, new_calls)] = bench.run(no_reasoning)
    assert direct_calls == new_calls, "asked not to think, it is another question"
    [(calls, new_calls)] = bench.run(auto_reasoning)
    assert calls - new_calls >= len(DATA.queries), "the direct answers to the first windows"
    repeated = bench.run(single_sample, three_samples, no_reasoning, auto_reasoning)
    assert [new_calls for _, new_calls in repeated] == [0] * 4


def test_run_cell_reuses_identical_windows_across_strategies(bench: StudyBench) -> None:
    """`fast` is `blocks` without its last window: all its questions are among those of `blocks`."""
    blocks, fast = (Cell("c", "bm25", "judge", strategy=name) for name in ("blocks", "fast"))
    bench.run(blocks)
    [(calls, new_calls)] = bench.run(fast)
    assert calls > 0
    assert new_calls == 0


def test_study_results_list_quality_and_cost_of_each_cell(bench: StudyBench, tmp_path: Path) -> None:
    study = bench.study({"strategy": ["sliding", "blocks"], "samples": [1, 3]}, measures=("nDCG@10", "AP"))
    cells = expand_cells(study)
    bench.run(*cells)
    results = bench.results(study)
    first_stage_row, *rows = results.rows
    assert first_stage_row.cell is None
    assert first_stage_row.quality["nDCG@10"].mean == evaluate(DATA.qrels, DATA.run, ["nDCG@10"]).means["nDCG@10"]
    assert [row.cell for row in rows] == list(cells)
    baseline_row = rows[0]
    assert baseline_row.difference is None
    assert baseline_row.baseline == baseline_row.name
    for row in rows:
        evaluation = evaluate(DATA.qrels, read_run(bench.folder.run_file(row.cell or cells[0])), ["nDCG@10"])
        assert row.values["nDCG@10"] == evaluation.per_query["nDCG@10"]
        assert set(row.quality) == {"nDCG@10", "AP"}
        assert row.quality["nDCG@10"].low <= row.quality["nDCG@10"].mean <= row.quality["nDCG@10"].high
        assert row.mean_cost["rounds"] == pytest.approx(5 if row.setting.startswith("sliding") else 2)
        if row is not baseline_row:
            assert row.difference == paired_difference(row.values["nDCG@10"], baseline_row.values["nDCG@10"])
            assert row.corrected_p >= row.difference.randomization_p if row.difference else False
        assert row.pareto_axes <= {"tokens", "rounds"}, "a simulated judge takes no time"
    assert rows[1].mean_cost["calls"] > rows[0].mean_cost["calls"]
    assert any("rounds" in row.pareto_axes for row in rows)
    write_cells(tmp_path / "cells.csv", results.rows)
    lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert len(lines) == 6
    assert short_labels(results.rows)[baseline_row.name] == "sliding-full"


def test_write_queries_preserves_ids_that_are_not_utf8(bench: StudyBench, tmp_path: Path) -> None:
    collection = bench.collection
    for file in (collection.queries, collection.documents, collection.qrels, collection.first_stages[0].file):
        assert file is not None
        file.write_bytes(file.read_bytes().replace(b"Q00", b"Q\xff"))
    study = bench.study({"strategy": ["single"]})
    bench.run(*expand_cells(study))
    write_queries(tmp_path / "queries.csv", bench.results(study).rows)
    assert (tmp_path / "queries.csv").read_bytes().count(b",Q\xff,") == 2


def test_read_cell_cost_is_the_same_for_new_and_cached_calls(bench: StudyBench) -> None:
    cell = Cell("c", "bm25", "judge", strategy="blocks", samples=3)
    bench.run(cell)
    with bench.journal() as journal:
        cost = read_cell_cost(journal, bench.folder.journal_run(cell))
    assert bench.run(cell)[0][1] == 0
    with bench.journal() as journal:
        assert read_cell_cost(journal, bench.folder.journal_run(cell)) == cost
    assert cost.calls == bench.run(cell)[0][0]
    assert {query.rounds for query in cost.queries.values()} == {2}


def test_compare_rows_uses_named_baseline(bench: StudyBench) -> None:
    study = bench.study({"reasoning": ["off", "full"]}, baseline="sliding-full")
    bench.run(*expand_cells(study))
    rows = bench.results(study).rows
    assert [row.difference is None for row in rows] == [True, False, True]
    against_first = compare_rows(rows, "first stage")
    assert [row.baseline for row in against_first] == ["c.bm25"] * 3
    with pytest.raises(InputError, match="no cell is called 'x'"):
        compare_rows(rows, "x")


def test_study_results_keep_order_of_ties_at_depth_one(bench: StudyBench) -> None:
    file = bench.collection.first_stages[0].file
    assert file is not None
    file.write_text("".join(f"{q} Q0 {c.doc_id} 1 0.5 t\n" for q, candidates in DATA.run.items() for c in candidates))
    study = bench.study({"depth": [1]}, baseline="first stage")
    bench.run(*expand_cells(study))
    first_stage_row, cell_row = bench.results(study).rows
    assert cell_row.values == first_stage_row.values
    assert cell_row.values != {"nDCG@10": evaluate(DATA.qrels, read_run(file), ties="trec_eval").per_query["nDCG@10"]}


def test_difficulty_rows_average_to_overall_quality(bench: StudyBench) -> None:
    study = bench.study(*QUESTIONS["reasoning"].grids, by_difficulty=True)
    bench.run(*expand_cells(study))
    results = bench.results(study)
    assert {row.third for row in results.difficulty_rows} == {"hard", "middling", "easy"}
    assert len({row.criterion for row in results.difficulty_rows}) == 2
    overall_quality = results.rows[-1].quality["nDCG@10"].mean
    for criterion in {row.criterion for row in results.difficulty_rows}:
        criterion_rows = [row for row in results.difficulty_rows if row.criterion == criterion]
        assert sum(row.quality * row.against.queries for row in criterion_rows) / len(DATA.queries) == pytest.approx(
            overall_quality
        )
        assert [row.low for row in criterion_rows] == sorted(row.low for row in criterion_rows)
    assert all(row.against.mean == 0 for row in results.difficulty_rows), "this judge answers alike, thought or not"


def test_round_rows_start_at_first_stage_and_end_at_result(bench: StudyBench) -> None:
    study = bench.study({"strategy": ["sliding", "blocks", "topdown", "setwise"]}, by_round=True)
    cells = expand_cells(study)
    bench.run(*cells)
    results = bench.results(study)
    for row in results.rows[1:]:
        round_rows = [round_row for round_row in results.round_rows if round_row.name == row.name]
        assert [round_row.rounds for round_row in round_rows] == list(
            range(max(query.rounds for query in row.cost.queries.values()) + 1)
        )
        assert round_rows[0].quality.mean == pytest.approx(results.rows[0].quality["nDCG@10"].mean)
        assert round_rows[-1].quality.mean == pytest.approx(row.quality["nDCG@10"].mean)
    assert results.concurrency_levels == (1, 4, 16, None)
    assert {name: len(seconds) for name, seconds in results.latencies.items()} == {cell.name: 4 for cell in cells}


def test_rankings_by_round_rejects_windows_of_another_cell() -> None:
    candidates = [Candidate(f"d{n}", 1.0) for n in range(30)]
    cell = Cell("c", "f", "m", depth=30)
    rounds = cell.make_strategy()(candidates, 0)
    first_round = next(rounds)
    ranking = WindowRanking.unranked(first_round.windows[0])
    record = WindowRecord("q", 0, 0, first_round.windows[0], (), (ranking,), {})
    with pytest.raises(JournalError, match="in the middle"):
        rankings_by_round(cell.make_strategy(), candidates, "q", [record])
    with pytest.raises(JournalError, match="differ from those of this cell"):
        rankings_by_round(replace(cell, window=10).make_strategy(), candidates, "q", [record])
    assert rankings_by_round(cell.make_strategy(), candidates[:1], "q", [])[0].doc_ids == ("d0",)
    rounds.send([WindowResult(first_round.windows[0], (ranking,))])


def test_run_cell_splits_long_documents(bench: StudyBench) -> None:
    unsplit, maxp = (
        Cell("c", "bm25", "judge"),
        Cell("c", "bm25", "judge", maxp_tokens=32, maxp_overlap=8, maxp_passages=2),
    )
    bench.run(unsplit, maxp)
    unsplit_run, split_run = (read_run(bench.folder.run_file(cell)) for cell in (unsplit, maxp))
    assert {query: {c.doc_id for c in candidates} for query, candidates in unsplit_run.items()} == {
        query: {c.doc_id for c in candidates} for query, candidates in split_run.items()
    }
    results = bench.results(bench.study({"maxp_tokens": ["none", 32], "maxp_overlap": [8], "maxp_passages": [2]}))
    assert results.rows[2].mean_cost["windows"] > results.rows[1].mean_cost["windows"]
