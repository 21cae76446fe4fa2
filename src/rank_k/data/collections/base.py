"""Collections and corpora that are stored in files, and runs without the documents that a collection excludes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rank_k.data.corpus_index import CorpusIndex, OnProgress, open_corpus_index
from rank_k.data.passages import read_passages
from rank_k.types import Candidate, Passage

ExcludedDocuments = Mapping[str, frozenset[str]]
"""`query_id -> ids of documents`: documents that must not be ranked for a query."""

NAME_FORMS = (
    "beir:DIR, bright:SUBSET, bright:DIR/SUBSET, python-docs or an ir_datasets id such as"
    " msmarco-passage/trec-dl-2019/judged"
)


@dataclass(frozen=True, slots=True)
class CollectionFiles:
    """A collection of files, in the formats of `rank_k.data.queries` and `rank_k.data.trec`.

    Attributes:
        documents: The documents.
        queries: The queries. Some may have no judgments, for example because BEIR keeps all splits in one file.
        qrels: The judgments (None: there are none).
        runs: First-stage runs in the same directory (`run.*.trec`), sorted by name.
        excluded: For each query, the documents that must not be ranked.
        first_stage: The first-stage run that is part of the collection (None: there is none).
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
    """The documents of a collection in one file, TSV or JSONL."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the documents. Commands must not overwrite them."""
        return (self.path,)

    def passages(self) -> Iterator[Passage]:
        """Yield all documents. Raises `FormatError` if a line is malformed."""
        return read_passages(self.path)

    def store(self, on_progress: OnProgress | None = None) -> CorpusIndex:
        """Return the documents by id.

        Args:
            on_progress: Called while the documents are indexed.

        Raises:
            FormatError: If a line is malformed.
            InputError: If the file cannot be read, or if its index cannot be saved.
        """
        return open_corpus_index(self.path, on_progress)


class RunWithoutExcluded:
    """A run without the documents that its collection excludes. It can be iterated as often as `run`.

    Args:
        run: Pairs of query id and candidates.
        excluded: The excluded documents of each query.
    """

    def __init__(self, run: Iterable[tuple[str, Sequence[Candidate]]], excluded: ExcludedDocuments) -> None:
        self._run, self._excluded = run, excluded

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query_id, candidates in self._run:
            forbidden = self._excluded.get(query_id, frozenset())
            yield query_id, tuple(candidate for candidate in candidates if candidate.doc_id not in forbidden)

    def count_excluded(self) -> int:
        """Return the number of candidates that are left out. This reads the complete run."""
        return sum(
            candidate.doc_id in self._excluded.get(query_id, frozenset())
            for query_id, candidates in (self._run if self._excluded else ())
            for candidate in candidates
        )
