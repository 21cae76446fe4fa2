"""BM25: the formula, the order of ties, what is found and what is refused."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.retrieval.bm25 import retrieve
from rank_k.types import Passage, Query

TEXTS = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)


def passages_of(texts: list[str]) -> list[Passage]:
    return [Passage(f"d{i}", text) for i, text in enumerate(texts)]


@given(texts=st.lists(TEXTS, min_size=1, max_size=8), query=TEXTS, depth=st.integers(1, 10))
def test_scores_are_lucene_bm25_and_ties_stand_in_document_order(texts: list[str], query: str, depth: int) -> None:
    documents = [Counter(text.split()) for text in texts]
    mean_length = sum(map(Counter.total, documents)) / len(documents)

    def score(document: Counter[str]) -> float:
        total = 0.0
        for term in query.split():
            df = sum(term in other for other in documents)
            if document[term]:
                norm = 0.9 * (1 - 0.4 + 0.4 * document.total() / mean_length)
                total += math.log(1 + (len(documents) - df + 0.5) / (df + 0.5)) * (
                    document[term] / (document[term] + norm)
                )
        return total

    expected = {f"d{i}": score(document) for i, document in enumerate(documents) if score(document) > 0}
    [(query_id, found)] = retrieve([Query("q", query)], passages_of(texts), depth=depth, analyzer=str.split)
    assert query_id == "q"
    assert len(found) == min(depth, len(expected))
    for candidate in found:
        assert candidate.score == pytest.approx(expected[candidate.doc_id], rel=1e-5)
    keys = [(-candidate.score, int(candidate.doc_id[1:])) for candidate in found]
    assert keys == sorted(keys)
    left_out = set(expected) - {candidate.doc_id for candidate in found}
    assert all(expected[doc_id] <= found[-1].score * (1 + 1e-5) for doc_id in left_out)


def test_of_many_equal_passages_the_first_are_kept() -> None:
    texts = ["sky", *["blue sky"] * 500, "blue blue sky"]
    [(_, found)] = retrieve([Query("q", "blue")], passages_of(texts), depth=4)
    assert [candidate.doc_id for candidate in found] == ["d501", "d1", "d2", "d3"]


def test_queries_keep_their_order_and_may_find_nothing() -> None:
    queries = [Query("2", "zebra"), Query("1", "the sky"), Query("0", "")]
    found = list(retrieve(queries, passages_of(["blue sky", "grass"])))
    assert [query_id for query_id, _ in found] == ["2", "1", "0"]
    assert [[candidate.doc_id for candidate in candidates] for _, candidates in found] == [[], ["d0"], []]


def test_passages_without_words() -> None:
    assert list(retrieve([Query("q", "sky")], passages_of(["", "the", "..."]))) == [("q", ())]


def test_a_passage_given_twice_is_one_candidate_and_two_texts_of_one_id_are_refused() -> None:
    twice = [Passage("d", "blue sky"), Passage("e", "blue"), Passage("d", "blue sky")]
    [(_, found)] = retrieve([Query("q", "sky")], twice)
    assert [candidate.doc_id for candidate in found] == ["d"]
    with pytest.raises(InputError, match="document d is given twice"):
        retrieve([Query("q", "sky")], [Passage("d", "blue"), Passage("d", "green")])


def test_nothing_to_search_and_no_depth_are_errors_at_once() -> None:
    with pytest.raises(InputError, match="no passages"):
        retrieve([Query("q", "sky")], [])
    with pytest.raises(InputError, match="depth 0"):
        retrieve([Query("q", "sky")], passages_of(["sky"]), depth=0)
