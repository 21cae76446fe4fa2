"""Blocks: its plan for any length, the content of its windows, and the ranking of all candidates."""

from __future__ import annotations

import math
from itertools import chain
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.errors import InputError, MissingExtra
from rank_k.strategies import PRESETS, make_strategy
from rank_k.strategies.blocks import Blocks, snake_deal
from rank_k.strategies.bradley_terry import fit_strengths
from rank_k.strategies.testing import check_strategy
from rank_k.types import Candidate, Ranking, Round, Window, WindowRanking, WindowResult
from tests.support.driving import rank_by_grade, ranking_without_ties, run_strategy


def window_sizes(rounds: list[Round]) -> list[list[int]]:
    return [[len(window.doc_ids) for window in step.windows] for step in rounds]


def test_blocks_plan_for_100_candidates() -> None:
    rounds = check_strategy(Blocks(), 100, Random(0))
    assert window_sizes(rounds) == [[20] * 5, [20, 20]]
    assert [step.remaining_windows for step in rounds] == [7, 2]


def test_blocks_boundary_windows_follow_one_per_round() -> None:
    rounds = check_strategy(Blocks(boundary=3), 100, Random(0))
    assert window_sizes(rounds) == [[20] * 5, [20, 20], [20], [20]]
    assert [step.remaining_windows for step in rounds] == [9, 4, 2, 1]


def test_blocks_rank_range_ends_at_the_lowest_passage() -> None:
    rounds = check_strategy(Blocks(), 100, Random(0))
    assert [window.rank_range for window in rounds[0].windows] == [(1, 100)] * 5
    head, boundary = rounds[1].windows
    assert head.rank_range == (1, 20), "the head holds the best twenty"
    rank_of = {doc_id: rank for rank, doc_id in enumerate(rounds[1].ranking.doc_ids, 1)}
    assert boundary.rank_range == (1, max(rank_of[doc_id] for doc_id in boundary.doc_ids))


@pytest.mark.parametrize(
    ("preset", "windows", "rounds"), [("paper", 9, 9), ("fast", 6, 2), ("balanced", 7, 2), ("thorough", 12, 2)]
)
def test_presets_take_the_documented_windows_and_rounds(preset: str, windows: int, rounds: int) -> None:
    planned_rounds = check_strategy(make_strategy(**PRESETS[preset]), 100, Random(1))
    assert (sum(len(step.windows) for step in planned_rounds), len(planned_rounds)) == (windows, rounds)


@settings(max_examples=100)
@given(
    length=st.integers(0, 120),
    window=st.integers(2, 30),
    partitions=st.integers(1, 3),
    boundary=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    samples=st.integers(1, 3),
)
def test_blocks_conforms_for_any_length_and_options(
    length: int, window: int, partitions: int, boundary: int, seed: int, samples: int
) -> None:
    rounds = check_strategy(Blocks(window, partitions, boundary), length, Random(seed), samples=samples)
    if length < 2:
        assert not rounds
    elif length <= window:
        assert window_sizes(rounds) == [[length]]
    else:
        # a window that was asked already is not asked again: few passages may leave nothing for later rounds
        assert 1 <= len(rounds) <= max(2, 1 + boundary)
        blocks = [w.doc_ids for w in rounds[0].windows]
        count = math.ceil(length / window)
        leftover_count = partitions * (length % 2) if window == 2 else 0  # three passages in pairs: one is left over
        assert len(blocks) == partitions * count - leftover_count
        assert {len(block) for block in blocks} <= {length // count, math.ceil(length / count)}
        for block in blocks:
            assert list(block) == sorted(block, key=lambda d: int(d[1:])), "first-stage order inside a block"
        if not leftover_count:
            assert sorted(chain(*blocks[:count])) == sorted(f"d{i}" for i in range(length))
        assert all(step.ranking.probability is not None for step in rounds[1:])


@given(length=st.integers(0, 200), count=st.integers(1, 30))
def test_snake_deal_distributes_the_best_evenly(length: int, count: int) -> None:
    groups = snake_deal(range(length), count)
    assert sorted(chain(*groups)) == list(range(length))
    for group in groups:
        assert all(number * count <= item < (number + 1) * count for number, item in enumerate(group))
    if length % (2 * count) == 0:
        assert len(set(map(sum, groups))) == 1, "forth and back cancel"


def test_blocks_draws_further_partitions_from_the_seed() -> None:
    candidates = [Candidate(f"d{i}", -i) for i in range(100)]

    def blocks(seed: int) -> list[tuple[str, ...]]:
        return [w.doc_ids for w in next(Blocks(partitions=2)(candidates, seed)).windows]

    assert blocks(1) == blocks(1)
    assert blocks(1)[:5] == blocks(2)[:5]
    assert blocks(1)[5:] != blocks(2)[5:]


def test_blocks_finds_one_relevant_passage_at_any_rank() -> None:
    for position in range(0, 100, 7):
        ranking, _ = run_strategy(Blocks(), 100, rank_by_grade([int(i == position) for i in range(100)]))
        assert ranking.doc_ids[0] == f"d{position}"


def test_blocks_returns_the_fitted_ranking_and_probabilities() -> None:
    grades = [(7 * i) % 4 for i in range(100)]
    ranking, rounds = run_strategy(Blocks(first_stage_weight=0.5), len(grades), rank_by_grade(grades))
    probabilities = ranking.probability
    assert probabilities is not None
    assert sum(probabilities.values()) == pytest.approx(10, abs=1e-6)
    assert rounds[0].ranking.probability is None
    # the head window is the best twenty so far, the boundary window holds those nearest to even chances
    current_ranking = rounds[1].ranking
    head, boundary = (window.doc_ids for window in rounds[1].windows)
    assert head == current_ranking.doc_ids[:20]
    assert are_least_certain(boundary, current_ranking)
    assert list(boundary) == sorted(boundary, key=current_ranking.doc_ids.index)
    assert set(boundary) != set(head)
    ids = tuple(f"d{i}" for i in range(100))
    results = [window_result(window.doc_ids, grades) for step in rounds for window in step.windows]
    assert ranking.doc_ids == fit_strengths(ids, results, 0.5).ranked_ids()
    assert ranking.doc_ids != fit_strengths(ids, results, 0.0).ranked_ids()


def are_least_certain(doc_ids: tuple[str, ...], ranking: Ranking) -> bool:
    """Whether no other passage is nearer to even chances of being among the first ten."""
    assert ranking.probability is not None
    uncertainty = {doc_id: probability * (1 - probability) for doc_id, probability in ranking.probability.items()}
    return min(uncertainty[d] for d in doc_ids) >= max(uncertainty[d] for d in uncertainty if d not in doc_ids) - 1e-7


def test_blocks_boundary_window_extends_below_an_uncertain_head() -> None:
    """As for most queries: the ten end in the middle of the head."""
    _, rounds = run_strategy(Blocks(), 100, lambda window: ranking_without_ties(window.doc_ids))
    current_ranking = rounds[1].ranking
    assert are_least_certain(current_ranking.doc_ids[:20], current_ranking)
    head, boundary = (window.doc_ids for window in rounds[1].windows)
    assert head == current_ranking.doc_ids[:20]
    assert boundary == current_ranking.doc_ids[:10] + current_ranking.doc_ids[20:30]


def window_result(doc_ids: tuple[str, ...], grades: list[int]) -> WindowResult:
    window = Window(doc_ids, (1, len(grades)))
    return WindowResult(window, (rank_by_grade(grades)(window),))


def test_blocks_keeps_the_first_stage_without_answers() -> None:
    ranking, _ = run_strategy(Blocks(), 100, WindowRanking.unranked)
    assert ranking.doc_ids == tuple(f"d{i}" for i in range(100))
    assert not any(ranking.tied)


def test_blocks_never_repeats_a_window() -> None:
    """21 candidates in the right order: the head and the boundary window would be the same."""
    _, rounds = run_strategy(Blocks(boundary=5), 21, lambda window: ranking_without_ties(window.doc_ids))
    doc_ids = [window.doc_ids for step in rounds for window in step.windows]
    assert len(doc_ids) == len(set(doc_ids)) < 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window is 1; give 2 or more"),
        ({"partitions": 0}, "give 1 or more"),
        ({"boundary": -1}, "give 0 or more"),
        ({"first_stage_weight": -0.5}, "first_stage_weight is -0.5; give 0"),
        ({"first_stage_weight": math.nan}, "first_stage_weight is nan; give 0"),
    ],
)
def test_blocks_rejects_invalid_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_strategy("blocks", **options)  # type: ignore[arg-type]


def test_blocks_raises_missing_extra_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(MissingExtra, match=r"pip install 'rank-k\[fit\]'"):
        make_strategy("blocks")
    for name in ("sliding", "single", "topdown", "tournament", "setwise"):
        check_strategy(make_strategy(name), 30, Random(3))
