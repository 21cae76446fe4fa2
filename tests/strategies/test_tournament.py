"""TourRank: the paper's stages, stages for other lengths, and points."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.strategies.testing import check_strategy
from rank_k.strategies.tournament import Tournament, plan_stages
from rank_k.types import Window, WindowRanking
from tests.support.driving import rank_by_grade, ranking_without_ties, run_strategy


def test_tournament_stages_of_100_candidates_match_the_paper() -> None:
    rounds = check_strategy(Tournament(), 100, Random(0))
    assert [[len(w.doc_ids) for w in step.windows] for step in rounds] == [[20] * 5, [10] * 5, [20], [10], [5]]
    assert [step.remaining_windows for step in rounds] == [13, 8, 3, 2, 1]


def test_tournaments_run_in_parallel_with_shuffled_groups() -> None:
    rounds = check_strategy(Tournament(tournaments=3), 100, Random(0))
    assert [len(step.windows) for step in rounds] == [15, 15, 3, 3, 3]
    groups = [window.doc_ids for window in rounds[0].windows]
    assert {frozenset(group) for group in groups[:5]} == {frozenset(group) for group in groups[5:10]}
    assert len(set(groups)) == 15


@given(length=st.integers(0, 3000), window=st.integers(2, 40))
def test_plan_stages_terminates_with_balanced_groups(length: int, window: int) -> None:
    pool = length
    for count, promoted in plan_stages(length, window):
        assert pool > 1
        assert -(-pool // count) <= window
        assert count <= promoted < pool, "every group sends one on, and somebody leaves"
        assert -(-promoted // count) <= pool // count or window <= 3, "a group has as many as it sends on"
        pool = promoted
    assert pool <= 2


def test_tournament_gives_the_best_passages_most_points() -> None:
    grades = [(37 * i) % 100 for i in range(100)]
    ranking, _ = run_strategy(Tournament(), len(grades), rank_by_grade(grades))
    ranked_grades = [grades[int(d[1:])] for d in ranking.doc_ids]
    assert set(ranked_grades[:2]) == {99, 98}
    assert ranked_grades[0] > 50
    assert set(ranked_grades[:5]) == {99, 98, 97, 96, 95}
    assert set(ranked_grades[:10]) == set(range(90, 100))


def test_more_tournaments_correct_one_wrong_answer() -> None:
    """The first window is answered backwards; the points of the other tournaments put that right."""
    for tournaments in (1, 5):
        answered_windows: list[Window] = []

        def answer(window: Window, answered_windows: list[Window] = answered_windows) -> WindowRanking:
            answered_windows.append(window)
            return ranking_without_ties(
                tuple(sorted(window.doc_ids, key=lambda d: int(d[1:]), reverse=len(answered_windows) == 1))
            )

        ranking, _ = run_strategy(Tournament(tournaments=tournaments), 20, answer)
        assert ("d0" in ranking.doc_ids[:2]) == (tournaments > 1)


def test_tournament_breaks_ties_by_the_first_stage() -> None:
    def answer(window: Window) -> WindowRanking:
        tied = WindowRanking((window.doc_ids,), frozenset(window.doc_ids), True)
        return tied if len(window.doc_ids) > 10 else WindowRanking.unranked(window)

    ranking, rounds = run_strategy(Tournament(), 20, answer, seed=5)
    ids = tuple(f"d{i}" for i in range(20))
    assert rounds[0].windows[0].doc_ids != ids, "shown in another order"
    assert ranking.doc_ids == ids


def test_tournament_rejects_zero_tournaments() -> None:
    with pytest.raises(InputError, match="tournaments is 0; give 1 or more"):
        Tournament(tournaments=0)
