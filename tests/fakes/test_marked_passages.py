"""Marked passages, and the oracle that ranks them."""

from __future__ import annotations

import pytest

from tests.fakes.model_server.client import DATASET, marks_of, prompt, window_doc_ids
from tests.fakes.model_server.marked_passages import (
    make_dataset,
    mark_relevance,
    oracle_tiers,
    passage_marks,
    response_tokens,
)

pytestmark = pytest.mark.integration


def test_make_dataset_is_deterministic_and_perfect_follows_the_grades() -> None:
    same_dataset = make_dataset(30, 100)
    assert same_dataset == DATASET
    assert make_dataset(30, 100, seed=1).run != DATASET.run
    for query in DATASET.queries:
        grades = DATASET.qrels[query.query_id]
        perfect = DATASET.perfect(query.query_id)
        assert sorted(perfect) == sorted(grades) == sorted(window_doc_ids(query.query_id, 0, 100))
        assert [grades[doc_id] for doc_id in perfect] == [3] * 2 + [2] * 4 + [1] * 8 + [0] * 86


def test_make_dataset_strict_has_no_equal_grades() -> None:
    strict = make_dataset(2, 30, strict=True)
    assert sorted(strict.qrels["Q01"].values()) == list(range(30))
    assert all(len(tier) == 1 for tier in oracle_tiers(strict.marks("Q01", strict.qrels["Q01"])))


def test_passage_marks_reads_passages_and_skips_examples() -> None:
    doc_ids = window_doc_ids()
    user_turn = {"role": "user", "content": prompt(doc_ids)}
    assistant_turn = {"role": "assistant", "content": "[1] is good\n[2] is bad"}
    assert passage_marks(
        [user_turn, assistant_turn, {"role": "user", "content": "[1] > [2]\nthe order, please"}]
    ) == marks_of(doc_ids)
    assert passage_marks([{"role": "user", "content": "[1] no mark here\n[2] nor here"}]) == (
        "no mark here",
        "nor here",
    )
    assert passage_marks([{"role": "user", "content": "Hello"}]) == ()


def test_oracle_tiers_ties_equal_grades_and_hashes_ungraded_marks() -> None:
    assert oracle_tiers(["a-G1", "b-G3", "c-G1", "d-G0"]) == [[2], [1, 3], [4]]
    assert len(oracle_tiers([f"p{i}" for i in range(20)])) == 20
    assert 0 <= mark_relevance("p1") < 1 <= mark_relevance("p1-G1")


def test_response_tokens_are_lognormal() -> None:
    lengths = sorted(response_tokens((f"m{i}", f"n{i}")) for i in range(4000))
    assert lengths[0] >= 100
    assert lengths[-1] <= 2000
    assert 415 < sum(lengths) / len(lengths) < 445
    assert 1.55 < lengths[int(len(lengths) * 0.8413)] / lengths[len(lengths) // 2] < 1.75  # exp(0.5) = 1.65
    assert response_tokens(tuple(f"m{i}" for i in range(1500))) == 3020
