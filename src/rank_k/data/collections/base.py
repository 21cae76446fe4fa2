"""What every collection provides, and the values and stores that several kinds of collections share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from rank_k.data.corpus_index import CorpusIndex, OnProgress, open_corpus_index
from rank_k.data.passages import read_passages
from rank_k.errors import InputError
from rank_k.types import Candidate, Passage, PassageSource

ExcludedDocuments = Mapping[str, frozenset[str]]
"""`query_id -> ids of documents that its collection forbids to rank`."""

NAME_FORMS = (
    "beir:DIR, bright:SUBSET, bright:DIR/SUBSET, python-docs or an ir_datasets id such as"
    " msmarco-passage/trec-dl-2019/judged"
)


class DocumentStore(PassageSource, Protocol):
    """An open corpus, which must be closed."""

    def close(self) -> None: ...


class Corpus(Protocol):
    """All documents of a collection."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's own files it is read from: nothing may be written over them."""

    def passages(self) -> Iterator[Passage]:
        """All of them, one by one."""

    def store(self, on_progress: OnProgress | None = None) -> DocumentStore:
        """Any of them by id. `on_progress` hears of work that has to be done first."""


class Collection(Protocol):
    """What one name stands for. Queries, judgments and runs are files, in the formats of `rank_k.data.queries` and
    `rank_k.data.trec`."""

    @property
    def corpus(self) -> Corpus: ...

    @property
    def queries(self) -> Path: ...

    @property
    def qrels(self) -> Path | None: ...

    @property
    def first_stage(self) -> Path | None:
        """The run that the collection itself asks to be reranked, where there is one."""

    @property
    def excluded(self) -> ExcludedDocuments: ...


@dataclass(frozen=True, slots=True)
class CollectionFiles:
    """A collection whose parts are files. `qrels` is None where nothing has been judged.

    `queries` may hold more queries than `qrels` judges: BEIR keeps all splits in one file.
    """

    documents: Path
    queries: Path
    qrels: Path | None
    runs: tuple[Path, ...] = ()
    """First-stage runs that lie beside it (`run.*.trec`), by name."""
    excluded: ExcludedDocuments = field(default_factory=dict)
    first_stage: Path | None = None

    @property
    def corpus(self) -> CorpusFile:
        return CorpusFile(self.documents)


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """Documents that are one file, TSV or JSONL."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def passages(self) -> Iterator[Passage]:
        return read_passages(self.path)

    def store(self, on_progress: OnProgress | None = None) -> PassageStore:
        return PassageStore.from_file(self.path, on_progress)


class PassageStore:
    """The passages of one file, by id; none is in memory. Made by `from_file`. Any thread may use it."""

    def __init__(self, index: CorpusIndex) -> None:
        self._index = index

    @classmethod
    def from_file(cls, path: str | Path, on_progress: OnProgress | None = None) -> PassageStore:
        """Find out where each passage of the file lies, or take the index that says so (see
        `rank_k.data.corpus_index`).

        Raises `FormatError` for a line without an id, `InputError` if the file cannot be read or indexed.
        """
        return cls(open_corpus_index(path, on_progress))

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """The passage. Raises `InputError` if the file lacks it or has several texts of that id, `FormatError` if
        its line is not as it should be; `query_id` only serves the messages."""
        passages = self._index.passages(doc_id)
        if not passages:
            raise missing_document_error(doc_id, query_id, str(self._index.path))
        if any(passage != passages[0] for passage in passages):
            raise InputError(
                f"document {doc_id} stands twice in {self._index.path}, with different texts", "keep one of them"
            )
        return passages[0]

    def close(self) -> None:
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def missing_document_error(doc_id: str, query_id: str | None, source: str) -> InputError:
    """The error for a document that is not where the run says it is."""
    of_query = "" if query_id is None else f" of query {query_id}"
    return InputError(
        f"document {doc_id}{of_query} is not in {source}", "give the documents that the run was made from"
    )


class RunWithoutExcluded:
    """A run less the documents that its collection forbids for each query. As often iterable as the run is."""

    def __init__(self, run: Iterable[tuple[str, Sequence[Candidate]]], excluded: ExcludedDocuments) -> None:
        self._run, self._excluded = run, excluded

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query_id, candidates in self._run:
            forbidden = self._excluded.get(query_id, frozenset())
            yield query_id, tuple(candidate for candidate in candidates if candidate.doc_id not in forbidden)

    def count_excluded(self) -> int:
        """How many candidates that leaves out. Reads the run."""
        return sum(
            candidate.doc_id in self._excluded.get(query_id, frozenset())
            for query_id, candidates in (self._run if self._excluded else ())
            for candidate in candidates
        )
