"""The collections of a study: which files are missing, and the runs, judgments and texts that they contain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from rank_k.data.collections.base import CorpusFile, ExcludedDocuments, RunWithoutExcluded
from rank_k.data.collections.registry import Corpus, DocumentStore, find_collection
from rank_k.data.corpus_index import OnProgress
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunFile, read_qrels
from rank_k.errors import InputError
from rank_k.study.grid import Cell, Collection, FirstStage, Study
from rank_k.types import Candidate, Query, Run


class MissingFile(NamedTuple):
    """A missing file of a study.

    Attributes:
        owner: The name of the collection or model that needs it.
        location: Which file is missing, and where it was expected.
        get: How to get it.
    """

    owner: str
    location: str
    get: str


class _CollectionFiles(NamedTuple):
    queries: Path
    corpus: Corpus
    qrels: Path
    excluded: ExcludedDocuments
    default_run: Path | None


def missing_files(study: Study) -> Iterator[MissingFile]:
    """Yield all missing files of the study.

    The documents of ir_datasets are not checked, because checking them may start a download.
    """
    for collection in study.collections:
        files = None
        try:
            files = _find_files(collection)
        except InputError as error:
            yield MissingFile(collection.name, error.problem, collection.get or error.remedy)
        for first_stage in collection.first_stages:
            if first_stage.file is not None and not first_stage.file.exists():
                yield MissingFile(collection.name, f"{first_stage.file} does not exist", first_stage.get)
            elif first_stage.file is None and files is not None and files.default_run is None:
                yield MissingFile(
                    collection.name, "it has no first-stage run", "give --run FILE; rank-k retrieve creates one"
                )
    for model in study.models:
        if model.prompt is not None and not model.prompt.exists():
            yield MissingFile(model.name, f"its prompt {model.prompt} does not exist", model.get)


def _find_files(collection: Collection) -> _CollectionFiles:
    """Return the files of a collection. Raises `InputError` if one is missing."""
    dataset = None if collection.dataset is None else find_collection(collection.dataset)
    queries: Path | None = collection.queries or getattr(dataset, "queries", None)
    qrels: Path | None = collection.qrels or getattr(dataset, "qrels", None)
    corpus: Corpus | None = (
        CorpusFile(collection.documents) if collection.documents else getattr(dataset, "corpus", None)
    )
    runs: tuple[Path, ...] = getattr(dataset, "runs", ())
    default_run = getattr(dataset, "first_stage", None) or (runs[0] if len(runs) == 1 else None)
    if queries is None or corpus is None or qrels is None:
        part = "queries" if queries is None else "documents" if corpus is None else "judgments"
        raise InputError(f"{collection.name} has no {part}", f"give a file of {part}, or a data set with {part}")
    for file in [queries, qrels, *corpus.files]:
        if not file.exists():
            raise InputError(f"{file} does not exist", "check the path, or get the file")
    return _CollectionFiles(queries, corpus, qrels, {} if dataset is None else dataset.excluded, default_run)


@dataclass(frozen=True)
class FirstStageRun:
    """A run without the documents that its collection excludes and without queries that have no judgments.

    It can be iterated repeatedly and keeps one query in memory at a time.
    """

    run: RunFile
    excluded: ExcludedDocuments
    judged_ids: frozenset[str]

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query_id, candidates in RunWithoutExcluded(self.run, self.excluded):
            if query_id in self.judged_ids:
                yield query_id, candidates

    @property
    def query_ids(self) -> list[str]:
        return [query_id for query_id in self.run.query_ids if query_id in self.judged_ids]

    @cached_property
    def max_depth(self) -> int:
        """The largest number of candidates of a query."""
        return max((len(candidates) for _, candidates in self), default=0)


class LoadedCollection:
    """The runs, judgments and texts of a collection, as a context manager that closes the texts.

    Args:
        collection: The collection.
        on_progress: Called while the documents are indexed (default: not called).

    Raises:
        InputError: If a file cannot be read, the files do not belong together, or no query of a run is judged.
    """

    def __init__(self, collection: Collection, on_progress: OnProgress | None = None) -> None:
        files = _find_files(collection)
        self.name = collection.name
        self.queries: Mapping[str, Query] = read_queries(files.queries, collection.query_fields)
        self.qrels: Mapping[str, Mapping[str, int]] = read_qrels(files.qrels)
        self.fingerprints = {
            "queries": file_sha256(files.queries),
            "query fields": collection.query_fields or "",
            "judgments": file_sha256(files.qrels),
            "documents": " ".join(f"{file.name}, {file.stat().st_size} bytes" for file in files.corpus.files)
            or collection.dataset
            or "",
        }
        self.runs = {first_stage.name: self._open_run(first_stage, files) for first_stage in collection.first_stages}
        self._corpus = files.corpus
        self._on_progress = on_progress

    def _open_run(self, first_stage: FirstStage, files: _CollectionFiles) -> FirstStageRun:
        file = first_stage.file or files.default_run
        if file is None:
            raise InputError(
                f"{self.name} has no run {first_stage.name}", first_stage.get or "create one with rank-k retrieve"
            )
        run = FirstStageRun(RunFile(file), files.excluded, frozenset(self.qrels))
        if not run.query_ids:
            raise InputError(f"none of the queries of {file} has judgments", "give the judgments of these queries")
        missing_ids = [query_id for query_id in run.query_ids if query_id not in self.queries]
        if missing_ids:
            raise InputError(
                f"{len(missing_ids)} judged queries of {file} have no text, for example {missing_ids[0]}",
                "give the file with the texts of these queries",
            )
        self.fingerprints[f"run {first_stage.name}"] = file_sha256(file)
        return run

    @cached_property
    def store(self) -> DocumentStore:
        """The documents by id. They are opened on first use."""
        return self._corpus.store(self._on_progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "store" in vars(self):
            self.store.close()

    def check_texts(self, first_stage: str, depth: int) -> None:
        """Raise `InputError` if the text of a candidate is missing. Call this before the first request to a model."""
        for query_id, candidates in self.runs[first_stage]:
            for candidate in candidates[:depth]:
                self.store.get(candidate.doc_id, query_id)

    def first_stage(self, name: str) -> Run:
        """Return a complete first-stage run, in memory."""
        return dict(self.runs[name])


def reachable_cells(cells: Sequence[Cell], collections: Mapping[str, LoadedCollection]) -> tuple[Cell, ...]:
    """Return the cells without duplicates by depth.

    If several cells differ only in their depth, and the run has fewer candidates than all of these depths, the cells
    rerank the same candidates. Only the cell with the smallest depth is kept.
    """
    shallowest = {
        replace(cell, depth=min(cell.depth, collections[cell.collection].runs[cell.first_stage].max_depth)): cell
        for cell in sorted(cells, key=lambda cell: cell.depth, reverse=True)
    }
    return tuple(cell for cell in cells if cell in shallowest.values())


def file_sha256(file: Path) -> str:
    """Return the SHA-256 checksum of a file in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
