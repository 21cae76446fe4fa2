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
    Cell,
    Collection,
    CollectionAverage,
    FirstStage,
    ModelPlan,
    Study,
    expand_cells,
)
from rank_k.study.inputs import missing_files, reachable_cells
from rank_k.study.runner import run_cell
from rank_k.study.table import compute_averages
from tests.support.study_data import DATA, StudyBench
from tests.support.study_data import bench as bench  # a fixture

# --- the folder ------------------------------------------------------------------------------------


def test_study_folder_accepts_more_cells_but_rejects_changed_data(bench: StudyBench) -> None:
    first_cell, second_cell = Cell("c", "bm25", "judge"), Cell("c", "bm25", "judge", reasoning="off")
    bench.run(first_cell)
    bench.run(second_cell)
    reopened = StudyFolder(bench.folder.path)
    assert reopened.cells == (first_cell, second_cell)
    with bench.journal() as journal:
        assert reopened.is_finished(first_cell, journal)
        assert not reopened.is_finished(replace(first_cell, depth=20), journal)
    assert bench.collection.qrels is not None
    bench.collection.qrels.write_text(bench.collection.qrels.read_text() + "Q00 0 other 1\n")
    with pytest.raises(InputError, match=r"for c, .* different value of judgments"):
        bench.run(first_cell)


def test_is_finished_requires_output_and_complete_windows(bench: StudyBench) -> None:
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)
    run = bench.folder.journal_run(cell)
    with bench.journal() as journal:
        [first, *_] = journal.windows(run)
        journal.store_window(run, replace(first, repairs={"retries_exhausted": 1}))
        assert not bench.folder.is_finished(cell, journal), "a window that was given up is asked about again"
    assert bench.run(cell)[0][1] == 0
    with bench.journal() as journal:
        assert bench.folder.is_finished(cell, journal)
        bench.folder.run_file(cell).rename(bench.folder.path / "away")
        assert not bench.folder.is_finished(cell, journal)
    (bench.folder.path / "away").rename(bench.folder.run_file(cell))
    for file in bench.folder.path.glob("journal.sqlite*"):
        file.unlink()
    with bench.journal() as journal:
        assert not bench.folder.is_finished(cell, journal), "its cost is not known any more"


def test_is_finished_is_false_after_interrupted_rerun(bench: StudyBench) -> None:
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)

    def raise_interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    with bench.collections() as collections, pytest.raises(KeyboardInterrupt):
        run_cell(cell, collections["c"], bench.model, {}, bench.folder, raise_interrupt)
    with bench.journal() as journal:
        assert not bench.folder.is_finished(cell, journal)


def test_record_identity_rejects_changed_model(bench: StudyBench) -> None:
    bench.folder.record_identity("m", "weights 1")
    bench.folder.record_identity("m", "weights 1")
    with pytest.raises(
        InputError, match="different value of identity: weights 1, now weights 2; choose a different --output"
    ):
        StudyFolder(bench.folder.path).record_identity("m", "weights 2")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 99, "collections": {}, "models": {}, "cells": {}}'])
def test_study_folder_rejects_invalid_study_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match="choose a different --output"):
        StudyFolder(tmp_path)


# --- collections -----------------------------------------------------------------------------------


def test_missing_files_lists_everything_at_once(bench: StudyBench, tmp_path: Path) -> None:
    missing_run = FirstStage("splade", tmp_path / "splade.trec", "run splade")
    collections = (
        replace(bench.collection, first_stages=(*bench.collection.first_stages, missing_run)),
        Collection("far", (FirstStage("own"),), f"beir:{tmp_path}/nowhere", get="download it"),
        Collection("near", (FirstStage("own"),), None, bench.collection.queries, bench.collection.documents),
    )
    model_with_prompt = ModelPlan("m", prompt=tmp_path / "prompt.txt", get="write it")
    missing = list(missing_files(Study("s", collections, (model_with_prompt,), ({},))))
    assert [(item.owner, item.get) for item in missing] == [
        ("c", "run splade"),
        ("far", "download it"),
        ("near", "give a file of judgments, or a data set with judgments"),
        ("m", "write it"),
    ]


def test_reachable_drops_depths_beyond_the_run(bench: StudyBench) -> None:
    cells = expand_cells(bench.study({"depth": [20, 50, 100, 200]}))
    with bench.collections() as collections:
        assert [cell.depth for cell in reachable_cells(cells, collections)] == [20, 50, 100]


def test_reachable_keeps_only_cell_beyond_the_run(bench: StudyBench) -> None:
    cells = expand_cells(bench.study({"strategy": ["single"], "depth": [60]}, {"strategy": ["sliding", "blocks"]}))
    with bench.collections() as collections:
        assert reachable_cells(cells, collections) == cells


def test_run_cell_skips_unjudged_queries(bench: StudyBench) -> None:
    assert bench.collection.qrels is not None
    lines = bench.collection.qrels.read_text().splitlines(keepends=True)
    bench.collection.qrels.write_text("".join(line for line in lines if not line.startswith("Q00 ")))
    cell = Cell("c", "bm25", "judge")
    bench.run(cell)
    assert set(read_run(bench.folder.run_file(cell))) == {query.query_id for query in DATA.queries} - {"Q00"}


def test_check_texts_rejects_missing_document(bench: StudyBench) -> None:
    assert bench.collection.documents is not None
    lines = bench.collection.documents.read_text().splitlines(keepends=True)
    bench.collection.documents.write_text("".join(lines[:-1]))
    with bench.collections() as collections, pytest.raises(InputError, match="is not in"):
        collections["c"].check_texts("bm25", 100)


def test_compute_averages_requires_all_collections(bench: StudyBench) -> None:
    study = bench.study({})
    bench.run(*expand_cells(study))
    rows = bench.results(study).rows
    [first, cell] = compute_averages(rows, [CollectionAverage("all", ("c",))])
    assert (first.setting, cell.setting) == ("first stage", "sliding-full")
    assert cell.mean == rows[1].quality["nDCG@10"].mean
    assert cell.error == pytest.approx(rows[1].quality["nDCG@10"].error)
    assert compute_averages(rows, [CollectionAverage("all", ("c", "d"))]) == []
