"""BM25: the formula, the order of ties, what is found and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.cli import main
from rank_k.data.trec import RunFile
from rank_k.errors import InputError
from rank_k.retrieval.bm25 import retrieve
from rank_k.types import Passage, Query

TEXTS = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)


def make_passages(texts: list[str]) -> list[Passage]:
    return [Passage(f"d{i}", text) for i, text in enumerate(texts)]


@given(texts=st.lists(TEXTS, min_size=1, max_size=8), query=TEXTS, depth=st.integers(1, 10))
def test_retrieve_scores_lucene_bm25_with_ties_in_document_order(texts: list[str], query: str, depth: int) -> None:
    documents = [Counter(text.split()) for text in texts]
    mean_length = sum(map(Counter.total, documents)) / len(documents)

    def score(document: Counter[str]) -> float:
        total = 0.0
        for term in query.split():
            df = sum(term in other_document for other_document in documents)
            if document[term]:
                norm = 0.9 * (1 - 0.4 + 0.4 * document.total() / mean_length)
                total += math.log(1 + (len(documents) - df + 0.5) / (df + 0.5)) * (
                    document[term] / (document[term] + norm)
                )
        return total

    expected = {f"d{i}": score(document) for i, document in enumerate(documents) if score(document) > 0}
    [(query_id, candidates)] = retrieve([Query("q", query)], make_passages(texts), depth=depth, analyzer=str.split)
    assert query_id == "q"
    assert len(candidates) == min(depth, len(expected))
    for candidate in candidates:
        assert candidate.score == pytest.approx(expected[candidate.doc_id], rel=1e-5)
    sort_keys = [(-candidate.score, int(candidate.doc_id[1:])) for candidate in candidates]
    assert sort_keys == sorted(sort_keys)
    omitted_ids = set(expected) - {candidate.doc_id for candidate in candidates}
    assert all(expected[doc_id] <= candidates[-1].score * (1 + 1e-5) for doc_id in omitted_ids)


def test_retrieve_keeps_first_of_equal_passages() -> None:
    texts = ["sky", *["blue sky"] * 500, "blue blue sky"]
    [(_, candidates)] = retrieve([Query("q", "blue")], make_passages(texts), depth=4)
    assert [candidate.doc_id for candidate in candidates] == ["d501", "d1", "d2", "d3"]


def test_retrieve_command_writes_bm25_scores(tmp_path: Path) -> None:
    texts = ["sky", *["blue sky"] * 3, "blue blue sky"]
    (tmp_path / "documents.tsv").write_text("".join(f"d{i}\t{text}\n" for i, text in enumerate(texts)))
    (tmp_path / "queries.tsv").write_text("q\tblue\n")
    files = ["--documents", str(tmp_path / "documents.tsv"), "--queries", str(tmp_path / "queries.tsv")]
    assert main(["retrieve", *files, "--output", str(tmp_path / "run.trec")]) == 0
    [(_, expected)] = retrieve([Query("q", "blue")], make_passages(texts))
    [(_, written)] = RunFile(tmp_path / "run.trec")
    assert [candidate.doc_id for candidate in written] == ["d4", "d1", "d2", "d3"]
    assert [candidate.score for candidate in written] == pytest.approx([candidate.score for candidate in expected])


def test_retrieve_keeps_query_order_and_allows_empty_results() -> None:
    queries = [Query("2", "zebra"), Query("1", "the sky"), Query("0", "")]
    run = list(retrieve(queries, make_passages(["blue sky", "grass"])))
    assert [query_id for query_id, _ in run] == ["2", "1", "0"]
    assert [[candidate.doc_id for candidate in candidates] for _, candidates in run] == [[], ["d0"], []]


def test_retrieve_handles_passages_without_words() -> None:
    assert list(retrieve([Query("q", "sky")], make_passages(["", "the", "..."]))) == [("q", ())]


def test_retrieve_merges_repeated_passages_and_rejects_conflicting_texts() -> None:
    passages = [Passage("d", "blue sky"), Passage("e", "blue"), Passage("d", "blue sky")]
    [(_, candidates)] = retrieve([Query("q", "sky")], passages)
    assert [candidate.doc_id for candidate in candidates] == ["d"]
    with pytest.raises(InputError, match="document d appears twice"):
        retrieve([Query("q", "sky")], [Passage("d", "blue"), Passage("d", "green")])


def test_retrieve_rejects_missing_passages_and_zero_depth() -> None:
    with pytest.raises(InputError, match="no passages"):
        retrieve([Query("q", "sky")], [])
    with pytest.raises(InputError, match="depth must be at least 1"):
        retrieve([Query("q", "sky")], make_passages(["sky"]), depth=0)
