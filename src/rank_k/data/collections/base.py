"""Collections and corpora that are files, and runs without the documents that a collection excludes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rank_k.data.corpus_index import CorpusIndex, OnProgress, open_corpus_index
from rank_k.data.passages import read_passages
from rank_k.types import Candidate, Passage

ExcludedDocuments = Mapping[str, frozenset[str]]
"""`query_id -> ids of documents that its collection forbids to rank`."""

NAME_FORMS = (
    "beir:DIR, bright:SUBSET, bright:DIR/SUBSET, python-docs or an ir_datasets id such as"
    " msmarco-passage/trec-dl-2019/judged"
)


@dataclass(frozen=True, slots=True)
class CollectionFiles:
    """A collection whose parts are files, in the formats of `rank_k.data.queries` and `rank_k.data.trec`.

    Attributes:
        documents: the documents.
        queries: the queries, maybe more than `qrels` judges: BEIR keeps all splits in one file.
        qrels: the judgments; None if there are none.
        runs: first-stage runs in the same folder (`run.*.trec`), by name.
        excluded: the documents that must not be ranked.
        first_stage: the run that the collection itself asks to be reranked, if there is one.
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
        """The user's own files that the documents are read from, which must not be overwritten."""
        return (self.path,)

    def passages(self) -> Iterator[Passage]:
        """Yield all documents."""
        return read_passages(self.path)

    def store(self, on_progress: OnProgress | None = None) -> CorpusIndex:
        """Return the documents by id. `on_progress` is called while they are indexed."""
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
