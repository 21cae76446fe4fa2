"""Setwise: heapsort, parallel subtrees, and answers without the parent."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.strategies.setwise import Setwise
from rank_k.strategies.testing import check_strategy
from rank_k.types import WindowRanking
from tests.support.driving import rank_by_grade, ranking_without_ties, run_strategy


@settings(max_examples=100)
@given(
    grades=st.lists(st.integers(0, 1000), min_size=2, max_size=120, unique=True),
    window=st.integers(2, 25),
    k=st.integers(1, 12),
)
def test_setwise_sorts_the_top_k_and_keeps_the_rest(grades: list[int], window: int, k: int) -> None:
    ranking, _ = run_strategy(Setwise(window, k), len(grades), rank_by_grade(grades))
    ranked_grades = [grades[int(d[1:])] for d in ranking.doc_ids]
    assert ranked_grades[:k] == sorted(grades, reverse=True)[:k]
    remaining_numbers = [int(d[1:]) for d in ranking.doc_ids[k:]]
    assert remaining_numbers == sorted(remaining_numbers), "the rest stands as in the first stage"


def test_setwise_ranks_subtrees_of_a_level_in_one_round() -> None:
    rounds = check_strategy(Setwise(window=4), 40, Random(0))  # three children: levels of 1, 3, 9 and 27 places
    assert [len(w.doc_ids) for w in rounds[0].windows] == [4] * 9
    assert rounds[0].windows[0].doc_ids == ("d4", "d13", "d14", "d15")
    root_rounds = [step for step in rounds if {w.doc_ids[0] for w in step.windows} <= {"d1", "d2", "d3"}]
    assert len(root_rounds[0].windows) == 3


def test_setwise_keeps_parents_that_are_unranked_or_tied() -> None:
    for make_order in (
        lambda w: replace(ranking_without_ties((*w.doc_ids[1:], w.doc_ids[0])), ranked_ids=frozenset(w.doc_ids[1:])),
        lambda w: WindowRanking((tuple(reversed(w.doc_ids)),), frozenset(w.doc_ids), True),
        WindowRanking.unranked,
    ):
        ranking, _ = run_strategy(Setwise(window=3, k=1), 9, make_order)
        assert ranking.doc_ids == tuple(f"d{i}" for i in range(9))


def test_setwise_rank_range_excludes_ranked_and_lower_passages() -> None:
    rounds = check_strategy(Setwise(window=5, k=3), 30, Random(2))
    assert [window.rank_range for window in rounds[0].windows] == [(1, 25), (1, 29), (1, 30)]  # the deepest level
    roots = [
        step.windows[0].rank_range for step in rounds if "d2" in step.windows[0].doc_ids and len(step.windows) == 1
    ]
    assert roots == [(1, 5), (2, 6), (3, 7)], "who wins at the root is ranked, whatever the rest does"


def test_setwise_rejects_zero_k() -> None:
    with pytest.raises(InputError, match="k is 0; give 1 or more"):
        Setwise(k=0)
