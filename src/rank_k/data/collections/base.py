"""What every collection provides, and what several kinds of collections share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rank_k.data.corpus_index import CorpusIndex, OnProgress, open_corpus_index
from rank_k.data.passages import read_passages
from rank_k.types import Candidate, Passage, PassageSource

ExcludedDocuments = Mapping[str, frozenset[str]]
"""`query_id -> ids of documents that its collection forbids to rank`."""

NAME_FORMS = (
    "beir:DIR, bright:SUBSET, bright:DIR/SUBSET, python-docs or an ir_datasets id such as"
    " msmarco-passage/trec-dl-2019/judged"
)


class DocumentStore(PassageSource, Protocol):
    """An open corpus, which must be closed."""

    def close(self) -> None:
        """Free the store's resources."""


class Corpus(Protocol):
    """All documents of a collection."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's own files that the documents are read from, which must not be overwritten."""

    def passages(self) -> Iterator[Passage]:
        """Yield all documents."""

    def store(self, on_progress: OnProgress | None = None) -> DocumentStore:
        """Return the documents by id. `on_progress` is called while they are indexed."""


class Collection(Protocol):
    """A collection. Queries, judgments and runs are files, in the formats of `rank_k.data.queries` and
    `rank_k.data.trec`."""

    @property
    def corpus(self) -> Corpus:
        """The documents."""

    @property
    def queries(self) -> Path:
        """The queries."""

    @property
    def qrels(self) -> Path | None:
        """The judgments; None if the collection has none."""

    @property
    def first_stage(self) -> Path | None:
        """The run that the collection itself asks to be reranked, if there is one."""

    @property
    def excluded(self) -> ExcludedDocuments:
        """The documents that must not be ranked."""


@dataclass(frozen=True, slots=True)
class CollectionFiles:
    """A collection whose parts are files.

    `queries` may hold more queries than `qrels` judges: BEIR keeps all splits in one file. `runs`: first-stage runs
    in the same folder (`run.*.trec`), by name.
    """

    documents: Path
    queries: Path
    qrels: Path | None
    runs: tuple[Path, ...] = ()
    excluded: ExcludedDocuments = field(default_factory=dict)
    first_stage: Path | None = None

    @property
    def corpus(self) -> CorpusFile:
        return CorpusFile(self.documents)


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """Documents in one file, TSV or JSONL."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def passages(self) -> Iterator[Passage]:
        return read_passages(self.path)

    def store(self, on_progress: OnProgress | None = None) -> CorpusIndex:
        return open_corpus_index(self.path, on_progress)


class RunWithoutExcluded:
    """A run without the documents that its collection forbids for each query. It can be iterated as often as `run`."""

    def __init__(self, run: Iterable[tuple[str, Sequence[Candidate]]], excluded: ExcludedDocuments) -> None:
        self._run, self._excluded = run, excluded

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query_id, candidates in self._run:
            forbidden = self._excluded.get(query_id, frozenset())
            yield query_id, tuple(candidate for candidate in candidates if candidate.doc_id not in forbidden)

    def count_excluded(self) -> int:
        """Return the number of candidates that are left out. Reads the run."""
        return sum(
            candidate.doc_id in self._excluded.get(query_id, frozenset())
            for query_id, candidates in (self._run if self._excluded else ())
            for candidate in candidates
        )
