"""Long documents: cut into passages, reranked as passages, and ranked again by their best one (MaxP, Dai and
Callan, SIGIR 2019).

The passages of document `d` are `d#0`, `d#1`, ...: the number follows the last `#`, so that no two are alike
whatever the documents are called.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from rank_k.data.token_estimate import estimate_tokens, truncate_graphemes
from rank_k.errors import InputError
from rank_k.types import Candidate, Passage, PassageSource, Ranking

MIN_PASSAGE_TOKENS = 16
"""Passages are not cut shorter: words and characters must fit into them."""

_CUTTABLE_PIECE = re.compile(r"\s+|\S+?[。！？｡]+[”’」』）]*\s*|\S+\s*")
_SENTENCE_END = re.compile(r"(?:[.!?؟۔।…][\"'”’»)\]]*\s+|[。！？｡]+[”’」』）]*\s*|\n\s*\n\s*)\Z")


@dataclass(frozen=True, slots=True)
class PassageSplit:
    """How documents are cut: into passages of at most `tokens` tokens (as `estimate_tokens` counts them), each
    beginning with at most the last `overlap` tokens of the one before. `most`: only the first so many of each
    document are kept, all if None; the first, because they cost nothing to choose and are where most documents say
    what they are about.

    Raises `InputError` for numbers that cannot be.
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
            raise InputError(f"{self.max_passages} passages of each document are none", "give 1 or more")

    def passages(self, text: str) -> Iterator[str]:
        """The passages of a document, at least one. Without overlap and `most` they make up the whole text, joined."""
        return (text[start:end] for start, end in self.spans(text))

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where they begin and end in `text`.

        A passage ends with the last sentence that fits if that fills more than half of it, else with a word, else,
        in long words and scripts without blanks, with a character as people see it.
        """
        return islice(self._all_spans(text), self.max_passages)

    def _all_spans(self, text: str) -> Iterator[tuple[int, int]]:
        positions, token_counts = _cut_positions(text, max(MIN_PASSAGE_TOKENS // 2, self.tokens // 16))
        first, last = 0, len(positions) - 1
        while True:
            end = bisect_right(token_counts, token_counts[first] + self.tokens) - 1
            if end < last:
                min_end = bisect_right(token_counts, token_counts[first] + (self.tokens + self.overlap) // 2)
                sentence_ends = (
                    index
                    for index in range(end, min_end - 1, -1)
                    if _ends_sentence(text, positions[index - 1], positions[index])
                )
                end = next(sentence_ends, end)
            yield positions[first], positions[end]
            if end == last:
                return
            first = bisect_left(token_counts, token_counts[end] - self.overlap)
            first = min(end, bisect_right(token_counts, token_counts[first]) - 1)  # past blanks, which count nothing


def _cut_positions(text: str, max_tokens: int) -> tuple[list[int], list[int]]:
    """Where `text` may be cut: after words with the blanks behind them, after sentences, and so that no piece has more
    than `most` tokens; and how many tokens lie before each place. Both begin with 0. Counts add up because what
    counts as one never spans a blank; where a long word is cut they are on the high side."""
    positions, token_counts = [0], [0]
    for match in _CUTTABLE_PIECE.finditer(text):
        start, end = match.span()
        while (
            estimate_tokens(text[start : min(end, start + 8 * max_tokens)]) > max_tokens
        ):  # letters are at least 1/5 token
            position = start + (len(truncate_graphemes(text[start : start + max_tokens + 1], max_tokens)) or max_tokens)
            positions.append(position)
            token_counts.append(token_counts[-1] + estimate_tokens(text[start:position]))
            start = position
        positions.append(end)
        token_counts.append(token_counts[-1] + estimate_tokens(text[start:end]))
    return positions, token_counts


def _ends_sentence(text: str, start: int, end: int) -> bool:
    return _SENTENCE_END.search(text, start, end) is not None


def passage_id(doc_id: str, number: int) -> str:
    return f"{doc_id}#{number}"


def document_id(passage_doc_id: str) -> str:
    """The document that a passage is of."""
    return passage_doc_id.rpartition("#")[0]


def expand_to_passages(candidates: Iterable[Candidate], count: Callable[[str], int]) -> tuple[Candidate, ...]:
    """A run of passages from one of documents: `count(doc_id)` of each, in the documents' order and then their own."""
    return tuple(
        Candidate(passage_id(candidate.doc_id, number), candidate.score)
        for candidate in candidates
        for number in range(count(candidate.doc_id))
    )


def collapse_to_documents(ranking: Ranking) -> Ranking:
    """A ranking of documents from one of passages, each where its best passage stands (MaxP). Two are tied if their
    best passages are."""
    doc_ids: dict[str, bool] = {}
    for tier in ranking.tiers:
        is_first = True
        for passage_doc_id in tier:
            if (doc_id := document_id(passage_doc_id)) not in doc_ids:
                doc_ids[doc_id] = not is_first
                is_first = False
    return Ranking(tuple(doc_ids), tuple(doc_ids.values()))


class SplitRun:
    """A run of documents as a run of passages: the first `depth` documents of each query, cut.

    Iterating yields `(query_id, candidates)`, `get` has the passages' texts, and `document_rankings` turns their
    rankings into rankings of all the run's documents. Memory holds one query at a time.
    """

    def __init__(
        self,
        run: Iterable[tuple[str, Sequence[Candidate]]],
        store: PassageSource,
        split: PassageSplit,
        depth: int = 100,
    ) -> None:
        self._run, self._store, self._split, self._depth = run, store, split, depth
        self._passages_by_doc_id: dict[str, tuple[str, ...]] = {}  # the documents of the query that was come to last

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query_id, candidates in self._run:
            self._passages_by_doc_id = {}
            counts = {
                candidate.doc_id: len(self._split_document(candidate.doc_id, query_id))
                for candidate in candidates[: self._depth]
            }
            yield query_id, expand_to_passages(candidates[: self._depth], counts.__getitem__)

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """The passage `doc_id` (`d#3`). Raises `InputError` where the store has no such document."""
        document, _, number = doc_id.rpartition("#")
        return Passage(doc_id, self._split_document(document, query_id)[int(number)])

    def document_rankings(self, rankings: Iterable[tuple[str, Ranking]]) -> Iterator[tuple[str, Ranking]]:
        """`(query_id, ranking of documents)` from rankings of passages that come in the run's order. Documents beyond
        `depth` follow as they stood."""
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
    """Grades of documents that answer for passages: each is worth what its document is."""

    def get(self, doc_id: str, default: int = 0) -> int:  # type: ignore[override]
        return super().get(document_id(doc_id), default)
