"""BM25 for those who have no run of their own."""

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
    """The `depth` best passages for each query by BM25: `(query_id, candidates)` in the order of `queries`.

    Only passages that share a term with the query are candidates, so there can be fewer than `depth`, or
    none. Equal scores stand in the order of `passages`. The formula is Lucene's variant (Kamphuis et al.,
    ECIR 2020, without the constant factor k1 + 1) and k1, b are Anserini's defaults. `analyzer` is
    `analyzer_for("en")` unless given. The index is built at once, in memory (4 bytes a term and the
    postings); the queries are then answered one by one as the result is consumed.

    Raises `InputError` (no passages, one id with two texts, depth below 1) and `MissingExtra`.
    """
    if depth < 1:
        raise InputError(f"depth {depth} is below 1", "ask for at least one candidate a query")
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
            problem = f"document {passage.doc_id} is given twice, with different texts"
            raise InputError(problem, "keep one of them")
    if not terms_by_doc_number:
        raise InputError("there are no passages to search", "check the documents file")
    index = None
    if vocabulary:
        index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy", csc_backend="numpy")
        corpus = bm25s.tokenization.Tokenized(ids=terms_by_doc_number, vocab=vocabulary)
        index.index(corpus, create_empty_token=False, show_progress=False)
    doc_ids = list(doc_numbers)

    def ranked_queries() -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query in queries:
            terms = [vocabulary[term] for term in analyze(query.text) if term in vocabulary]
            best = _best_doc_numbers(index.get_scores_from_ids(terms), depth) if index is not None and terms else []
            yield query.query_id, tuple(Candidate(doc_ids[doc_number], score) for doc_number, score in best)

    return ranked_queries()


def _best_doc_numbers(scores: Any, depth: int) -> list[tuple[int, float]]:
    """The `depth` highest positive scores with their document numbers. bm25s's own top k breaks ties at random."""
    import numpy as np

    if depth < len(scores):
        threshold = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        positive_doc_numbers = np.flatnonzero((scores >= threshold) & (scores > 0))
    else:
        positive_doc_numbers = np.flatnonzero(scores > 0)
    order = positive_doc_numbers[np.argsort(-scores[positive_doc_numbers], kind="stable")][:depth]
    return [(int(doc_number), float(scores[doc_number])) for doc_number in order]
