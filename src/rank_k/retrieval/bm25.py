"""First-stage retrieval with BM25."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.retrieval.analyzers import Analyzer, analyzer_for
from rank_k.types import Candidate, Passage, Query


def retrieve(
    queries: Iterable[Query],
    passages: Iterable[Passage],
    *,
    depth: int = 100,
    analyzer: Analyzer | None = None,
    k1: float = 0.9,
    b: float = 0.4,
) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
    """Retrieve the best passages for each query with BM25.

    The variant of BM25 is that of Lucene, without the constant factor k1 + 1 (Kamphuis et al., ECIR 2020). Passages
    that contain no term of the query are never candidates. Passages with equal scores keep their order.

    The index is built when the function is called. It is in memory and takes 4 bytes per term, plus the postings. Each
    query is processed when its result is requested.

    Args:
        queries: The queries.
        passages: All passages of the corpus.
        depth: Maximum number of candidates per query (default: 100).
        analyzer: Converts text to index terms (default: `analyzer_for("en")`).
        k1: Term saturation (default: 0.9, as in Anserini).
        b: Length normalization (default: 0.4, as in Anserini).

    Returns:
        An iterator over pairs of query id and candidates, in the order of `queries`. Candidates are sorted by their
        BM25 scores, highest first.

    Raises:
        InputError: If there are no passages, if an id has two different texts, or if `depth` is below 1.
        MissingExtra: If bm25s is not installed.
    """
    if depth < 1:
        raise InputError(f"depth must be at least 1 (got {depth})", "retrieve at least one candidate per query")
    bm25s = load("bm25s")
    analyze = analyzer or analyzer_for("en")
    doc_numbers: dict[str, int] = {}
    vocabulary: dict[str, int] = {}
    terms_by_doc_number: list[array[int]] = []
    for passage in passages:
        terms = array("i", [vocabulary.setdefault(term, len(vocabulary)) for term in analyze(passage.text)])
        doc_number = doc_numbers.setdefault(passage.doc_id, len(terms_by_doc_number))
        if doc_number == len(terms_by_doc_number):
            terms_by_doc_number.append(terms)
        elif terms_by_doc_number[doc_number] != terms:
            problem = f"document {passage.doc_id} appears twice with different texts"
            raise InputError(problem, "keep one of them")
    if not terms_by_doc_number:
        raise InputError("there are no passages to search", "check the documents file")
    index: Any = None
    if vocabulary:
        index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy", csc_backend="numpy")
        corpus = bm25s.tokenization.Tokenized(ids=terms_by_doc_number, vocab=vocabulary)
        index.index(corpus, create_empty_token=False, show_progress=False)
    doc_ids = list(doc_numbers)

    def ranked_queries() -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query in queries:
            terms = [vocabulary[term] for term in analyze(query.text) if term in vocabulary]
            best = _best_doc_numbers(index.get_scores_from_ids(terms), depth) if terms else []
            yield query.query_id, tuple(Candidate(doc_ids[doc_number], score) for doc_number, score in best)

    return ranked_queries()


def _best_doc_numbers(scores: Any, depth: int) -> list[tuple[int, float]]:
    """Return document numbers and scores of the `depth` highest positive scores. Ties keep the order of documents.

    The corresponding function of bm25s breaks ties at random.
    """
    import numpy as np

    rank = max(len(scores) - depth, 0)
    threshold = np.partition(scores, rank)[rank]  # the score of the last candidate
    doc_numbers = np.flatnonzero((scores >= threshold) & (scores > 0))
    order = doc_numbers[np.argsort(-scores[doc_numbers], kind="stable")][:depth]
    return [(int(doc_number), float(scores[doc_number])) for doc_number in order]
