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
    cells_of,
)
from rank_k.study.inputs import LoadedCollections
from rank_k.study.results import StudyResults
from rank_k.study.runner import run_cell
from tests.fakes.loopback import make_queries

DATA = make_queries(9, 60)


def a_study(*grids: Mapping[str, Sequence[Any]], **more: Any) -> Study:
    first_stages = (FirstStage("bm25"),)
    values: dict[str, Any] = {"collections": (Collection("c", first_stages),), "models": (ModelPlan("m"),)} | more
    return Study("a study", grids=grids or ({},), **values)


class Bench:
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
        self.asked: list[tuple[int, int]] = []

    def study(self, *grids: Mapping[str, Sequence[Any]], **more: Any) -> Study:
        return a_study(*grids, collections=(self.collection,), models=(self.model,), **more)

    @contextmanager
    def opened(self) -> Iterator[dict[str, LoadedCollections]]:
        with LoadedCollections(self.collection) as opened:
            yield {self.collection.name: opened}

    def run(self, *cells: Cell) -> list[tuple[int, int]]:
        """(calls, of these asked now) of each cell."""
        found = []
        with self.opened() as opened:
            self.folder.admit({name: of.fingerprints for name, of in opened.items()}, [self.model], cells)
            for cell in cells:
                tally = run_cell(
                    cell, opened[self.collection.name], self.model, {}, self.folder, lambda *_: nullcontext()
                )
                found.append((tally.calls, tally.new_calls))
        return found

    def answer(self, study: Study) -> StudyResults:
        with self.opened() as opened, self.journal() as journal:
            return StudyResults.of(study, cells_of(study), opened, self.folder, journal)

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        journal = Journal(self.folder.journal)
        yield journal
        journal.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")
