"""A study small enough for tests: a collection of nine queries, a simulated judge, a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from benchmarks.overhead import write_dataset

from rank_k.journal import Journal
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import (
    Cell,
    Collection,
    FirstStage,
    ModelPlan,
    Study,
    expand_cells,
)
from rank_k.study.inputs import LoadedCollection
from rank_k.study.results import StudyResults
from rank_k.study.runner import run_cell
from tests.fakes.model_server.marked_passages import make_dataset

DATA = make_dataset(9, 60)


def make_study(*grids: Mapping[str, Sequence[Any]], **overrides: Any) -> Study:
    first_stages = (FirstStage("bm25"),)
    settings: dict[str, Any] = {
        "collections": (Collection("c", first_stages),),
        "models": (ModelPlan("m"),),
    } | overrides
    return Study("a study", grids=grids or ({},), **settings)


class StudyBench:
    """A small collection, and a folder in which cells can be run by a simulated judge."""

    def __init__(self, path: Path, noise: str = "weak", name: str = "c") -> None:
        path.mkdir(exist_ok=True)
        write_dataset(DATA, path)
        lines = [f"{q} 0 {d} {grade}\n" for q, grades in DATA.qrels.items() for d, grade in grades.items()]
        (path / "qrels.trec").write_text("".join(lines))
        self.collection = Collection(
            name,
            (FirstStage("bm25", path / "run.trec"),),
            None,
            path / "queries.jsonl",
            path / "corpus.jsonl",
            path / "qrels.trec",
        )
        self.model = ModelPlan("judge", simulate=noise)
        self.folder = StudyFolder(path / "study")

    def study(self, *grids: Mapping[str, Sequence[Any]], **overrides: Any) -> Study:
        return make_study(*grids, collections=(self.collection,), models=(self.model,), **overrides)

    @contextmanager
    def collections(self) -> Iterator[dict[str, LoadedCollection]]:
        with LoadedCollection(self.collection) as loaded:
            yield {self.collection.name: loaded}

    def run(self, *cells: Cell) -> list[tuple[int, int]]:
        """(calls, of these asked now) of each cell."""
        call_counts = []
        with self.collections() as collections:
            self.folder.register(
                {name: collection.fingerprints for name, collection in collections.items()}, [self.model], cells
            )
            for cell in cells:
                stats = run_cell(
                    cell, collections[self.collection.name], self.model, {}, self.folder, lambda *_: nullcontext()
                )
                call_counts.append((stats.calls, stats.new_calls))
        return call_counts

    def results(self, study: Study) -> StudyResults:
        with self.collections() as collections, self.journal() as journal:
            return StudyResults.collect(study, expand_cells(study), collections, self.folder, journal)

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        journal = Journal(self.folder.journal)
        yield journal
        journal.close()


@pytest.fixture
def bench(tmp_path: Path) -> StudyBench:
    return StudyBench(tmp_path / "bench")
