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
    """Yield the best passages for each query by BM25: `(query_id, candidates)` in the order of `queries`.

    Only passages that share a term with the query are candidates. Equal scores keep the order of `passages`. The index
    is built at once, in memory (4 bytes per term and the postings); each query is answered when its result is consumed.

    Args:
        queries: the queries.
        passages: all passages of the corpus.
        depth: the most candidates per query.
        analyzer: turns texts into terms (default: `analyzer_for("en")`).
        k1: term saturation of Lucene's variant of BM25 (Kamphuis et al., ECIR 2020, without the constant factor
            k1 + 1). Both defaults are Anserini's.
        b: length normalization.

    Raises:
        InputError: If there are no passages, one id has two texts, or `depth` is below 1.
        MissingExtra: If bm25s is not installed.
    """
    if depth < 1:
        raise InputError(f"depth must be at least 1 (got {depth})", "request at least one candidate per query")
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
    """Return the `depth` highest positive scores with their document numbers, ties in the documents' order.

    The top k of bm25s breaks ties at random.
    """
    import numpy as np

    rank = max(len(scores) - depth, 0)
    threshold = np.partition(scores, rank)[rank]  # the score of the last candidate
    doc_numbers = np.flatnonzero((scores >= threshold) & (scores > 0))
    order = doc_numbers[np.argsort(-scores[doc_numbers], kind="stable")][:depth]
    return [(int(doc_number), float(scores[doc_number])) for doc_number in order]
