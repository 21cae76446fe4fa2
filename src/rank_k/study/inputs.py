"""A study's collections, opened: what is there, what is missing, and what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from rank_k.data.collections.base import Corpus, CorpusFile, Excluded, Store, WithoutExcluded
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
    place: str
    get: str


class _Parts(NamedTuple):
    queries: Path
    corpus: Corpus
    qrels: Path
    excluded: Excluded
    own_run: Path | None


def missing_files(study: Study) -> list[MissingFile]:
    """All that is not there, so that it can be got at one go. Documents of ir_datasets, which may be many gigabytes,
    are not asked for."""
    found: list[MissingFile] = []
    for collection in study.collections:
        own_run = None
        try:
            own_run = _parts(collection).own_run
        except InputError as error:
            found.append(MissingFile(collection.name, error.problem, collection.get or error.remedy))
        for first_stage in collection.first_stages:
            file = first_stage.file or own_run
            if first_stage.file is not None and not first_stage.file.exists():
                found.append(MissingFile(collection.name, f"{first_stage.file} is not there", first_stage.get))
            elif file is None and not any(m.owner == collection.name for m in found):
                found.append(
                    MissingFile(
                        collection.name, "it has no run of its own", "give --run FILE; rank-k retrieve makes one"
                    )
                )
    for model in study.models:
        if model.prompt is not None and not model.prompt.exists():
            found.append(MissingFile(model.name, f"its prompt {model.prompt} is not there", model.get))
    return found


def _parts(collection: Collection) -> _Parts:
    dataset = None if collection.dataset is None else find_collection(collection.dataset)
    queries, qrels = collection.queries, collection.qrels
    corpus: Corpus | None = None if collection.documents is None else CorpusFile(collection.documents)
    own_run: Path | None = None
    if dataset is not None:
        queries, qrels, corpus = queries or dataset.queries, qrels or dataset.qrels, corpus or dataset.corpus
        beside: tuple[Path, ...] = getattr(dataset, "runs", ())
        own_run = dataset.first_stage or (beside[0] if len(beside) == 1 else None)
    if queries is None or corpus is None or qrels is None:
        what = "queries" if queries is None else "documents" if corpus is None else "judgments"
        raise InputError(f"{collection.name} has no {what}", f"name a file of {what}, or a data set that has them")
    for file in [queries, qrels, *corpus.files]:
        if not file.exists():
            raise InputError(f"{file} is not there", "put it there")
    return _Parts(queries, corpus, qrels, {} if dataset is None else dataset.excluded, own_run)


@dataclass(frozen=True, slots=True)
class FirstStageRun:
    """A run, less what its collection excludes and the queries that nobody has judged: what is asked about them could
    not be measured. As often iterable as one likes; memory holds a query at a time."""

    run: RunFile
    excluded: Excluded
    judged: frozenset[str]

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query_id, candidates in WithoutExcluded(self.run, self.excluded):
            if query_id in self.judged:
                yield query_id, candidates

    @property
    def query_ids(self) -> list[str]:
        return [query_id for query_id in self.run.query_ids if query_id in self.judged]

    @property
    def deepest(self) -> int:
        """Candidates of the query that has most."""
        return max((len(candidates) for _, candidates in self), default=0)


class LoadedCollections:
    """A collection with its runs, judgments and texts. Close it, or use it in a `with`.

    Raises `InputError` for what cannot be read, does not go together or leaves nothing to measure.
    """

    def __init__(self, collection: Collection, on_progress: OnProgress | None = None) -> None:
        parts = _parts(collection)
        self.name = collection.name
        self.queries: Mapping[str, Query] = read_queries(parts.queries, collection.query_fields)
        self.qrels: Mapping[str, Mapping[str, int]] = read_qrels(parts.qrels)
        self._corpus = parts.corpus
        self._on_progress = on_progress
        self._store: Store | None = None
        self._stack = ExitStack()
        self.runs: dict[str, FirstStageRun] = {}
        self.fingerprints = {
            "queries": _digest(parts.queries),
            "query fields": collection.query_fields or "",
            "judgments": _digest(parts.qrels),
            "documents": _size(parts.corpus.files) or collection.dataset or "",
        }
        for first_stage in collection.first_stages:
            self._open_run(first_stage, parts)

    def _open_run(self, first_stage: FirstStage, parts: _Parts) -> None:
        file = first_stage.file or parts.own_run
        if file is None:
            raise InputError(
                f"{self.name} has no run {first_stage.name}", first_stage.get or "rank-k retrieve makes one"
            )
        run = FirstStageRun(RunFile(file), parts.excluded, frozenset(self.qrels))
        if not run.query_ids:
            raise InputError(f"none of the queries of {file} is judged", "give judgments of the same queries")
        absent = [query_id for query_id in run.query_ids if query_id not in self.queries]
        if absent:
            raise InputError(
                f"{len(absent)} judged queries of {file} have no text, for one {absent[0]}", "give their queries"
            )
        self.runs[first_stage.name] = run
        self.fingerprints[f"run {first_stage.name}"] = _digest(file)

    @property
    def store(self) -> Store:
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


def reachable(cells: Sequence[Cell], opened: Mapping[str, LoadedCollections]) -> tuple[Cell, ...]:
    """`cells` without those that compare no more candidates than a shallower one, alike in all else, as the run ends
    before."""
    deepest: dict[tuple[str, str], int] = {}
    identical: dict[Cell, list[int]] = {}
    for cell in cells:
        key = (cell.collection, cell.first_stage)
        if key not in deepest:
            deepest[key] = opened[cell.collection].runs[cell.first_stage].deepest
        identical.setdefault(replace(cell, depth=0), []).append(cell.depth)

    def reaches(cell: Cell) -> bool:
        shallower = [depth for depth in identical[replace(cell, depth=0)] if depth < cell.depth]
        return not shallower or deepest[cell.collection, cell.first_stage] > max(shallower)

    return tuple(cell for cell in cells if reaches(cell))


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _size(files: Sequence[Path]) -> str:
    return " ".join(f"{file.name}, {file.stat().st_size} bytes" for file in files)
