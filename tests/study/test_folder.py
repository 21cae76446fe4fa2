"""What a study stands on: its folder, which takes no other study, and its collections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rank_k.data.trec import read_run
from rank_k.errors import InputError
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import (
    Average,
    Cell,
    Collection,
    FirstStage,
    ModelPlan,
    Study,
    cells_of,
)
from rank_k.study.inputs import missing_files, reachable
from rank_k.study.runner import run_cell
from rank_k.study.table import averages_of, published_for
from tests.support.study_data import DATA, Bench
from tests.support.study_data import bench as bench  # a fixture

# --- the folder ------------------------------------------------------------------------------------


def test_a_folder_takes_more_cells_and_no_other_data(bench: Bench) -> None:
    one, other = Cell("c", "bm25", "judge"), Cell("c", "bm25", "judge", reasoning="off")
    bench.run(one)
    bench.run(other)
    again = StudyFolder(bench.folder.path)
    assert again.cells == (one, other)
    with bench.journal() as journal:
        assert again.is_finished(one, journal)
        assert not again.is_finished(replace(one, depth=20), journal)
    assert bench.collection.qrels is not None
    bench.collection.qrels.write_text(bench.collection.qrels.read_text() + "Q00 0 other 1\n")
    with pytest.raises(InputError, match="another judgments for c"):
        bench.run(one)


def test_a_cell_is_finished_when_its_output_and_its_windows_are_there(bench: Bench) -> None:
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)
    run = bench.folder.run(cell)
    with bench.journal() as journal:
        [first, *_] = journal.windows(run)
        journal.store_window(run, replace(first, repairs={"retries_exhausted": 1}))
        assert not bench.folder.is_finished(cell, journal), "a window that was given up is asked about again"
    assert bench.run(cell)[0][1] == 0
    with bench.journal() as journal:
        assert bench.folder.is_finished(cell, journal)
        bench.folder.output(cell).rename(bench.folder.path / "away")
        assert not bench.folder.is_finished(cell, journal)
    (bench.folder.path / "away").rename(bench.folder.output(cell))
    for file in bench.folder.path.glob("journal.sqlite*"):
        file.unlink()
    with bench.journal() as journal:
        assert not bench.folder.is_finished(cell, journal), "its cost is not known any more"


def test_a_cell_done_anew_and_killed_is_not_finished(bench: Bench) -> None:
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    with bench.opened() as opened, pytest.raises(KeyboardInterrupt):
        run_cell(cell, opened["c"], bench.model, {}, bench.folder, interrupted)
    with bench.journal() as journal:
        assert not bench.folder.is_finished(cell, journal)


def test_a_model_that_is_not_the_one_it_was_is_refused(bench: Bench) -> None:
    bench.folder.identify("m", "weights 1")
    bench.folder.identify("m", "weights 1")
    with pytest.raises(InputError, match="identity for m: weights 1, now weights 2; name another --output"):
        StudyFolder(bench.folder.path).identify("m", "weights 2")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 99, "collections": {}, "models": {}, "cells": {}}'])
def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match="name another --output"):
        StudyFolder(tmp_path)


# --- collections -----------------------------------------------------------------------------------


def test_all_that_is_missing_is_told_at_once(bench: Bench, tmp_path: Path) -> None:
    gone = FirstStage("splade", tmp_path / "splade.trec", "run splade")
    collections = (
        replace(bench.collection, first_stages=(*bench.collection.first_stages, gone)),
        Collection("far", (FirstStage("own"),), f"beir:{tmp_path}/nowhere", get="download it"),
        Collection("near", (FirstStage("own"),), None, bench.collection.queries, bench.collection.documents),
    )
    prompted = ModelPlan("m", prompt=tmp_path / "prompt.txt", get="write it")
    found = missing_files(Study("s", collections, (prompted,), ({},)))
    assert [(lack.owner, lack.get) for lack in found] == [
        ("c", "run splade"),
        ("far", "download it"),
        ("near", "name a file of judgments, or a data set that has them"),
        ("m", "write it"),
    ]


def test_depths_beyond_the_run_are_left_out(bench: Bench) -> None:
    cells = cells_of(bench.study({"depth": [20, 50, 100, 200]}))
    with bench.opened() as opened:
        assert [cell.depth for cell in reachable(cells, opened)] == [20, 50, 100]


def test_depths_beyond_the_run_stay_where_no_other_cell_is_as_deep(bench: Bench) -> None:
    cells = cells_of(bench.study({"strategy": ["single"], "depth": [60]}, {"strategy": ["sliding", "blocks"]}))
    with bench.opened() as opened:
        assert reachable(cells, opened) == cells


def test_queries_that_nobody_judged_are_not_paid_for(bench: Bench) -> None:
    assert bench.collection.qrels is not None
    lines = bench.collection.qrels.read_text().splitlines(keepends=True)
    bench.collection.qrels.write_text("".join(line for line in lines if not line.startswith("Q00 ")))
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)
    assert set(read_run(bench.folder.output(cell))) == {query.query_id for query in DATA.queries} - {"Q00"}


def test_a_text_that_is_not_there_is_found_before_the_first_call(bench: Bench) -> None:
    assert bench.collection.documents is not None
    lines = bench.collection.documents.read_text().splitlines(keepends=True)
    bench.collection.documents.write_text("".join(lines[:-1]))
    with bench.opened() as opened, pytest.raises(InputError, match="is not in"):
        opened["c"].check_texts("bm25", 100)


def test_averages_need_all_their_collections(bench: Bench) -> None:
    study = bench.study({})
    bench.run(*cells_of(study))
    rows = bench.answer(study).rows
    [first, cell] = averages_of(rows, [Average("all", ("c",))])
    assert (first.setting, cell.setting) == ("first stage", "sliding-full")
    assert cell.mean == rows[1].quality["nDCG@10"].mean
    assert cell.error == pytest.approx(rows[1].quality["nDCG@10"].error)
    assert averages_of(rows, [Average("all", ("c", "d"))]) == []
    assert published_for(rows[0], ()) is None
