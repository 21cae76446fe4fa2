"""A study's collections, opened: what is there, what is missing, and what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from rank_k.data.collections.base import Corpus, CorpusFile, DocumentStore, ExcludedDocuments, RunWithoutExcluded
from rank_k.data.collections.registry import find_collection
from rank_k.data.corpus_index import OnProgress
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunFile, read_qrels
from rank_k.errors import InputError
from rank_k.study.grid import Cell, Collection, FirstStage, Study
from rank_k.types import Candidate, Query, Run


class MissingFile(NamedTuple):
    """Something a study needs and does not have. `place`: where it was looked for; `get`: how to come by it."""

    owner: str
    location: str
    get: str


class _CollectionFiles(NamedTuple):
    queries: Path
    corpus: Corpus
    qrels: Path
    excluded: ExcludedDocuments
    default_run: Path | None


def missing_files(study: Study) -> list[MissingFile]:
    """All that is not there, so that it can be got at one go. Documents of ir_datasets, which may be many gigabytes,
    are not asked for."""
    missing: list[MissingFile] = []
    for collection in study.collections:
        default_run = None
        try:
            default_run = _find_files(collection).default_run
        except InputError as error:
            missing.append(MissingFile(collection.name, error.problem, collection.get or error.remedy))
        for first_stage in collection.first_stages:
            file = first_stage.file or default_run
            if first_stage.file is not None and not first_stage.file.exists():
                missing.append(MissingFile(collection.name, f"{first_stage.file} is not there", first_stage.get))
            elif file is None and not any(item.owner == collection.name for item in missing):
                missing.append(
                    MissingFile(
                        collection.name, "it has no run of its own", "give --run FILE; rank-k retrieve makes one"
                    )
                )
    for model in study.models:
        if model.prompt is not None and not model.prompt.exists():
            missing.append(MissingFile(model.name, f"its prompt {model.prompt} is not there", model.get))
    return missing


def _find_files(collection: Collection) -> _CollectionFiles:
    dataset = None if collection.dataset is None else find_collection(collection.dataset)
    queries, qrels = collection.queries, collection.qrels
    corpus: Corpus | None = None if collection.documents is None else CorpusFile(collection.documents)
    default_run: Path | None = None
    if dataset is not None:
        queries, qrels, corpus = queries or dataset.queries, qrels or dataset.qrels, corpus or dataset.corpus
        dataset_runs: tuple[Path, ...] = getattr(dataset, "runs", ())
        default_run = dataset.first_stage or (dataset_runs[0] if len(dataset_runs) == 1 else None)
    if queries is None or corpus is None or qrels is None:
        missing_part = "queries" if queries is None else "documents" if corpus is None else "judgments"
        raise InputError(
            f"{collection.name} has no {missing_part}", f"name a file of {missing_part}, or a data set that has them"
        )
    for file in [queries, qrels, *corpus.files]:
        if not file.exists():
            raise InputError(f"{file} is not there", "put it there")
    return _CollectionFiles(queries, corpus, qrels, {} if dataset is None else dataset.excluded, default_run)


@dataclass(frozen=True, slots=True)
class FirstStageRun:
    """A run, less what its collection excludes and the queries that nobody has judged: what is asked about them could
    not be measured. As often iterable as one likes; memory holds a query at a time."""

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

    @property
    def max_depth(self) -> int:
        """Candidates of the query that has most."""
        return max((len(candidates) for _, candidates in self), default=0)


class LoadedCollection:
    """A collection with its runs, judgments and texts. Close it, or use it in a `with`.

    Raises `InputError` for what cannot be read, does not go together or leaves nothing to measure.
    """

    def __init__(self, collection: Collection, on_progress: OnProgress | None = None) -> None:
        files = _find_files(collection)
        self.name = collection.name
        self.queries: Mapping[str, Query] = read_queries(files.queries, collection.query_fields)
        self.qrels: Mapping[str, Mapping[str, int]] = read_qrels(files.qrels)
        self._corpus = files.corpus
        self._on_progress = on_progress
        self._store: DocumentStore | None = None
        self._stack = ExitStack()
        self.runs: dict[str, FirstStageRun] = {}
        self.fingerprints = {
            "queries": _sha256(files.queries),
            "query fields": collection.query_fields or "",
            "judgments": _sha256(files.qrels),
            "documents": _describe_files(files.corpus.files) or collection.dataset or "",
        }
        for first_stage in collection.first_stages:
            self._open_run(first_stage, files)

    def _open_run(self, first_stage: FirstStage, files: _CollectionFiles) -> None:
        file = first_stage.file or files.default_run
        if file is None:
            raise InputError(
                f"{self.name} has no run {first_stage.name}", first_stage.get or "rank-k retrieve makes one"
            )
        run = FirstStageRun(RunFile(file), files.excluded, frozenset(self.qrels))
        if not run.query_ids:
            raise InputError(f"none of the queries of {file} is judged", "give judgments of the same queries")
        missing_ids = [query_id for query_id in run.query_ids if query_id not in self.queries]
        if missing_ids:
            raise InputError(
                f"{len(missing_ids)} judged queries of {file} have no text, for one {missing_ids[0]}",
                "give their queries",
            )
        self.runs[first_stage.name] = run
        self.fingerprints[f"run {first_stage.name}"] = _sha256(file)

    @property
    def store(self) -> DocumentStore:
        if self._store is None:
            self._store = self._corpus.store(self._on_progress)
            self._stack.callback(self._store.close)
        return self._store

    def check_texts(self, first_stage: str, depth: int) -> None:
        """Every text is there: found out before the first call is paid. Raises `InputError`."""
        for query_id, candidates in self.runs[first_stage]:
            for candidate in candidates[:depth]:
                self.store.get(candidate.doc_id, query_id)

    def first_stage(self, name: str) -> Run:
        """The run as a whole, in memory."""
        return dict(self.runs[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def reachable_cells(cells: Sequence[Cell], collections: Mapping[str, LoadedCollection]) -> tuple[Cell, ...]:
    """`cells` without those that compare no more candidates than a shallower one, alike in all else, as the run ends
    before."""
    max_depths: dict[tuple[str, str], int] = {}
    depths_by_cell: dict[Cell, list[int]] = {}
    for cell in cells:
        key = (cell.collection, cell.first_stage)
        if key not in max_depths:
            max_depths[key] = collections[cell.collection].runs[cell.first_stage].max_depth
        depths_by_cell.setdefault(replace(cell, depth=0), []).append(cell.depth)

    def adds_candidates(cell: Cell) -> bool:
        shallower_depths = [depth for depth in depths_by_cell[replace(cell, depth=0)] if depth < cell.depth]
        return not shallower_depths or max_depths[cell.collection, cell.first_stage] > max(shallower_depths)

    return tuple(cell for cell in cells if adds_candidates(cell))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _describe_files(files: Sequence[Path]) -> str:
    return " ".join(f"{file.name}, {file.stat().st_size} bytes" for file in files)
