"""Long documents: split into passages, reranked as passages, and ranked by their best passage (MaxP, Dai and Callan,
SIGIR 2019).

The passages of document `d` are `d#0`, `d#1`, ...: the number follows the last `#`, so that their ids are unique
whatever the ids of the documents are.
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
"""The shortest passages: words and characters must fit into them."""

_CUTTABLE_PIECE = re.compile(r"\s+|\S+?[。！？｡]+[”’」』）]*\s*|\S+\s*")
_SENTENCE_END = re.compile(r"(?:[.!?؟۔।…][\"'”’»)\]]*\s+|[。！？｡]+[”’」』）]*\s*|\n\s*\n\s*)\Z")


@dataclass(frozen=True, slots=True)
class PassageSplit:
    """How documents are split into passages.

    Attributes:
        tokens: the most tokens that a passage has, as `estimate_tokens` counts them.
        overlap: the most tokens at the end of a passage that the next one repeats.
        max_passages: number of passages that are kept of each document (None: all). The first ones are kept: choosing
            them costs nothing, and most documents say what they are about at the beginning.

    Raises:
        InputError: For values out of range: `tokens` below `MIN_PASSAGE_TOKENS`, `overlap` above half of `tokens`, or
            `max_passages` below 1.
    """

    tokens: int
    overlap: int = 0
    max_passages: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < MIN_PASSAGE_TOKENS:
            raise InputError(f"passages of {self.tokens} tokens are too short", f"give {MIN_PASSAGE_TOKENS} or more")
        if not 0 <= self.overlap <= self.tokens // 2:
            problem = f"passages of {self.tokens} tokens cannot overlap by {self.overlap}"
            raise InputError(problem, f"give at most half, {self.tokens // 2}")
        if self.max_passages is not None and self.max_passages < 1:
            raise InputError(f"max_passages must be at least 1 (got {self.max_passages})", "give 1 or more")

    def passages(self, text: str) -> Iterator[str]:
        """Yield the passages of a document, at least one. Without `overlap` and `max_passages` they are the whole text
        when joined."""
        return (text[start:end] for start, end in self.spans(text))

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the start and end of each passage in `text`.

        A passage ends with the last sentence that fits if that fills more than half of it, else with a word, else, in
        long words and scripts without blanks, with a grapheme.
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
            first = min(end, bisect_right(token_counts, token_counts[first]) - 1)  # past blanks, which count nothing


def _cut_positions(text: str, max_tokens: int) -> tuple[list[int], list[int]]:
    """Return where `text` may be cut and how many tokens are before each position; both begin with 0.

    It may be cut after words with the blanks that follow them, after sentences, and so that no piece has more than
    `max_tokens` tokens. Counts add up because a word never spans a blank; in a long word that is cut they are too high.
    """
    positions, token_counts = [0], [0]

    def cut(start: int, end: int) -> None:
        positions.append(end)
        token_counts.append(token_counts[-1] + estimate_tokens(text[start:end]))

    for match in _CUTTABLE_PIECE.finditer(text):
        start, end = match.span()
        # letters are at least 1/5 token
        while estimate_tokens(text[start : min(end, start + 8 * max_tokens)]) > max_tokens:
            position = start + (len(truncate_graphemes(text[start : start + max_tokens + 1], max_tokens)) or max_tokens)
            cut(start, position)
            start = position
        cut(start, end)
    return positions, token_counts


def passage_id(doc_id: str, number: int) -> str:
    return f"{doc_id}#{number}"


def document_id(passage_doc_id: str) -> str:
    """Return the id of the document that a passage belongs to."""
    return passage_doc_id.rpartition("#")[0]


def collapse_to_documents(ranking: Ranking) -> Ranking:
    """Return the ranking of documents by their best passages (MaxP). Two are tied if their best passages are."""
    tied_by_id: dict[str, bool] = {}
    for tier in ranking.tiers:
        new_ids = [doc_id for doc_id in dict.fromkeys(map(document_id, tier)) if doc_id not in tied_by_id]
        tied_by_id |= {doc_id: index > 0 for index, doc_id in enumerate(new_ids)}
    return Ranking(tuple(tied_by_id), tuple(tied_by_id.values()))


class SplitRun:
    """A run of documents as a run of passages: the first `depth` documents of each query, split.

    Iterating yields `(query_id, candidates)`, `get` returns the passages, and `document_rankings` turns their rankings
    into rankings of all the run's documents. Memory holds one query at a time.
    """

    def __init__(
        self,
        run: Iterable[tuple[str, Sequence[Candidate]]],
        store: PassageSource,
        split: PassageSplit,
        depth: int = 100,
    ) -> None:
        self._run, self._store, self._split, self._depth = run, store, split, depth
        self._passages_by_doc_id: dict[str, tuple[str, ...]] = {}  # of the query that was yielded last

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
        """Return the passage `doc_id` (`d#3`). Raises `InputError` if the store has no such document."""
        document, _, number = doc_id.rpartition("#")
        return Passage(doc_id, self._split_document(document, query_id)[int(number)])

    def document_rankings(self, rankings: Iterable[tuple[str, Ranking]]) -> Iterator[tuple[str, Ranking]]:
        """Yield `(query_id, ranking of documents)` from rankings of passages in the run's order.

        Documents beyond `depth` follow in the run's order.
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
    """Grades of documents, which are also those of their passages."""

    def get(self, doc_id: str, default: int = 0) -> int:  # type: ignore[override]
        return super().get(document_id(doc_id), default)


def passage_grades(qrels: Mapping[str, Mapping[str, int]]) -> dict[str, DocumentGrades]:
    """Return judgments of documents (`query_id -> doc_id -> grade`) as judgments of their passages."""
    return {query_id: DocumentGrades(grades) for query_id, grades in qrels.items()}
