"""Split long documents into passages, and rank each document by its best passage.

This is MaxP (Dai and Callan, SIGIR 2019). The passages of document `d` have the ids `d#0`, `d#1`, ... The number
follows the last `#`, so that ids are unique even if the ids of documents contain `#`.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from rank_k.data.token_estimate import estimate_tokens, truncate_graphemes
from rank_k.errors import InputError
from rank_k.types import Candidate, Passage, PassageSource, Ranking

MIN_PASSAGE_TOKENS = 16
"""The minimum of `PassageSplit.tokens`. Every character must fit into a passage."""

_CUTTABLE_PIECE = re.compile(r"\s+|\S+?[。！？｡]+[”’」』）]*\s*|\S+\s*")
_SENTENCE_END = re.compile(r"(?:[.!?؟۔।…][\"'”’»)\]]*\s+|[。！？｡]+[”’」』）]*\s*|\n\s*\n\s*)\Z")


@dataclass(frozen=True, slots=True)
class PassageSplit:
    """How documents are split into passages.

    Attributes:
        tokens: Maximum number of tokens of a passage, as estimated by `estimate_tokens`.
        overlap: Maximum number of tokens at the end of a passage that the next passage repeats (default: 0).
        max_passages: Number of passages per document, from its beginning (default: all).

    Raises:
        InputError: If `tokens` is below `MIN_PASSAGE_TOKENS`, `overlap` is above half of `tokens`, or `max_passages`
            is below 1.
    """

    tokens: int
    overlap: int = 0
    max_passages: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < MIN_PASSAGE_TOKENS:
            raise InputError(
                f"passages of {self.tokens} tokens are too short", f"give {MIN_PASSAGE_TOKENS} tokens or more"
            )
        if not 0 <= self.overlap <= self.tokens // 2:
            problem = f"passages of {self.tokens} tokens cannot overlap by {self.overlap}"
            raise InputError(problem, f"give at most half, {self.tokens // 2}")
        if self.max_passages is not None and self.max_passages < 1:
            raise InputError(f"max_passages must be at least 1 (got {self.max_passages})", "give 1 or more")

    def passages(self, text: str) -> Iterator[str]:
        """Yield the passages of a document, at least one.

        Without `overlap` and `max_passages`, the passages together are the complete text.
        """
        return (text[start:end] for start, end in self.spans(text))

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the start and end of each passage in `text`.

        A passage ends after the last sentence that fits, if the passage is then more than half full. Otherwise it ends
        after the last word that fits, or, within long words and in scripts without spaces, after a grapheme.
        """
        positions, token_counts = _cut_positions(text, max(MIN_PASSAGE_TOKENS // 2, self.tokens // 16))
        first, last = 0, len(positions) - 1
        for number in count(1):
            end = bisect_right(token_counts, token_counts[first] + self.tokens) - 1
            if end < last:
                min_end = bisect_right(token_counts, token_counts[first] + (self.tokens + self.overlap) // 2)
                sentence_ends = (
                    index
                    for index in range(end, min_end - 1, -1)
                    if _SENTENCE_END.search(text, positions[index - 1], positions[index])
                )
                end = next(sentence_ends, end)
            yield positions[first], positions[end]
            if end == last or number == self.max_passages:
                return
            first = bisect_left(token_counts, token_counts[end] - self.overlap)
            first = min(end, bisect_right(token_counts, token_counts[first]) - 1)  # skip spaces, which have no tokens


def _cut_positions(text: str, max_tokens: int) -> tuple[list[int], list[int]]:
    """Return the positions where `text` may be cut, and the number of tokens before each. Both lists begin with 0.

    The text may be cut after a sentence, after a word and the spaces that follow it, and inside a long word, so that no
    piece has more than `max_tokens` tokens. The counts are exact, except that they are too high for a word that is cut.
    """
    positions, token_counts = [0], [0]

    def cut(start: int, end: int) -> None:
        positions.append(end)
        token_counts.append(token_counts[-1] + estimate_tokens(text[start:end]))

    for match in _CUTTABLE_PIECE.finditer(text):
        start, end = match.span()
        # a letter counts at least 1/5 token
        while estimate_tokens(text[start : min(end, start + 8 * max_tokens)]) > max_tokens:
            position = start + (len(truncate_graphemes(text[start : start + max_tokens + 1], max_tokens)) or max_tokens)
            cut(start, position)
            start = position
        cut(start, end)
    return positions, token_counts


def passage_id(doc_id: str, number: int) -> str:
    return f"{doc_id}#{number}"


def document_id(passage_doc_id: str) -> str:
    """Return the id of the document that contains a passage."""
    return passage_doc_id.rpartition("#")[0]


def collapse_to_documents(ranking: Ranking) -> Ranking:
    """Return the ranking of documents by their best passages (MaxP).

    Args:
        ranking: A ranking of passages. Documents are tied if their best passages are tied.
    """
    tied_by_id: dict[str, bool] = {}
    for tier in ranking.tiers:
        new_ids = [doc_id for doc_id in dict.fromkeys(map(document_id, tier)) if doc_id not in tied_by_id]
        tied_by_id |= {doc_id: index > 0 for index, doc_id in enumerate(new_ids)}
    return Ranking(tuple(tied_by_id), tuple(tied_by_id.values()))


class SplitRun:
    """A run of documents, converted to a run of their passages. It is also the `PassageSource` of these passages.

    Iterating yields pairs of query id and candidates, which are passages of the first `depth` documents of the query.
    `document_rankings` converts rankings of passages to rankings of documents. Only one query is in memory at a time.

    Args:
        run: Pairs of query id and candidate documents. It is iterated twice.
        store: The documents.
        split: How documents are split.
        depth: Number of documents per query that are split (default: 100).
    """

    def __init__(
        self,
        run: Iterable[tuple[str, Sequence[Candidate]]],
        store: PassageSource,
        split: PassageSplit,
        depth: int = 100,
    ) -> None:
        self._run, self._store, self._split, self._depth = run, store, split, depth
        self._passages_by_doc_id: dict[str, tuple[str, ...]] = {}  # of the current query

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query_id, candidates in self._run:
            self._passages_by_doc_id = {}
            yield (
                query_id,
                tuple(
                    Candidate(passage_id(candidate.doc_id, number), candidate.score)
                    for candidate in candidates[: self._depth]
                    for number in range(len(self._split_document(candidate.doc_id, query_id)))
                ),
            )

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """Return a passage of a document.

        Args:
            doc_id: The id of the passage, such as `d#3`.
            query_id: The query whose candidate it is, for error messages.

        Raises:
            InputError: If the document does not exist.
        """
        document, _, number = doc_id.rpartition("#")
        return Passage(doc_id, self._split_document(document, query_id)[int(number)])

    def document_rankings(self, rankings: Iterable[tuple[str, Ranking]]) -> Iterator[tuple[str, Ranking]]:
        """Convert rankings of passages to rankings of documents.

        Args:
            rankings: Pairs of query id and ranking of passages, in the order of the run.

        Yields:
            Pairs of query id and ranking of all documents. Documents beyond `depth` come last, in the order of the run.
        """
        for (query_id, ranking), (_, candidates) in zip(rankings, self._run, strict=True):
            document_ranking = collapse_to_documents(ranking)
            unranked_ids = tuple(candidate.doc_id for candidate in candidates[self._depth :])
            yield (
                query_id,
                Ranking(document_ranking.doc_ids + unranked_ids, document_ranking.tied + (False,) * len(unranked_ids)),
            )

    def _split_document(self, doc_id: str, query_id: str | None) -> tuple[str, ...]:
        if doc_id not in self._passages_by_doc_id:
            self._passages_by_doc_id[doc_id] = tuple(self._split.passages(self._store.get(doc_id, query_id).text))
        return self._passages_by_doc_id[doc_id]


class DocumentGrades(dict[str, int]):
    """Grades of documents by document id. `get` returns the grade of a passage's document."""

    def get(self, doc_id: str, default: int = 0) -> int:  # type: ignore[override]
        return super().get(document_id(doc_id), default)


def passage_grades(qrels: Mapping[str, Mapping[str, int]]) -> dict[str, DocumentGrades]:
    """Return judgments of documents, `query_id -> {doc_id: grade}`, as judgments of their passages."""
    return {query_id: DocumentGrades(grades) for query_id, grades in qrels.items()}
