"""Blocks: its plan for any length, what its windows hold, and that the whole list is put in order."""

from __future__ import annotations

import math
from itertools import chain
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k.errors import InputError, MissingExtra
from rank_k.strategies import PRESETS, make
from rank_k.strategies.blocks import Blocks, snake_deal
from rank_k.strategies.bradley_terry import fit
from rank_k.strategies.testing import check_strategy
from rank_k.types import Candidate, Ranking, Round, Window, WindowRanking, WindowResult
from tests.support.driving import by_grade, drive, one_by_one


def sizes(rounds: list[Round]) -> list[list[int]]:
    return [[len(window.doc_ids) for window in step.windows] for step in rounds]


def test_the_default_plan_for_100() -> None:
    rounds = check_strategy(Blocks(), 100, Random(0))
    assert sizes(rounds) == [[20] * 5, [20, 20]]
    assert [step.remaining_windows for step in rounds] == [7, 2]


def test_more_windows_at_the_boundary_come_one_after_another() -> None:
    rounds = check_strategy(Blocks(boundary=3), 100, Random(0))
    assert sizes(rounds) == [[20] * 5, [20, 20], [20], [20]]
    assert [step.remaining_windows for step in rounds] == [9, 4, 2, 1]


def test_the_last_windows_reach_no_lower_than_their_passages_stand() -> None:
    rounds = check_strategy(Blocks(), 100, Random(0))
    assert [window.rank_range for window in rounds[0].windows] == [(1, 100)] * 5
    head, boundary = rounds[1].windows
    assert head.rank_range == (1, 20), "the head holds the best twenty"
    standing = {doc_id: rank for rank, doc_id in enumerate(rounds[1].ranking.doc_ids, 1)}
    assert boundary.rank_range == (1, max(standing[doc_id] for doc_id in boundary.doc_ids))


@pytest.mark.parametrize(
    ("preset", "windows", "rounds"), [("paper", 9, 9), ("fast", 6, 2), ("balanced", 7, 2), ("thorough", 12, 2)]
)
def test_presets_cost_what_they_say(preset: str, windows: int, rounds: int) -> None:
    asked = check_strategy(make(**PRESETS[preset]), 100, Random(1))
    assert (sum(len(step.windows) for step in asked), len(asked)) == (windows, rounds)


@settings(max_examples=100)
@given(
    length=st.integers(0, 120),
    window=st.integers(2, 30),
    partitions=st.integers(1, 3),
    boundary=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    samples=st.integers(1, 3),
)
def test_any_length(length: int, window: int, partitions: int, boundary: int, seed: int, samples: int) -> None:
    rounds = check_strategy(Blocks(window, partitions, boundary), length, Random(seed), samples=samples)
    if length < 2:
        assert not rounds
    elif length <= window:
        assert sizes(rounds) == [[length]]
    else:
        # a window that was asked already is not asked again: few passages may leave nothing for later rounds
        assert 1 <= len(rounds) <= max(2, 1 + boundary)
        blocks = [w.doc_ids for w in rounds[0].windows]
        count = math.ceil(length / window)
        alone = partitions * (length % 2) if window == 2 else 0  # three passages in pairs: one is left over
        assert len(blocks) == partitions * count - alone
        assert {len(block) for block in blocks} <= {length // count, math.ceil(length / count)}
        for block in blocks:
            assert list(block) == sorted(block, key=lambda d: int(d[1:])), "first-stage order inside a block"
        if not alone:
            assert sorted(chain(*blocks[:count])) == sorted(f"d{i}" for i in range(length))
        assert all(step.ranking.probability is not None for step in rounds[1:])


@given(length=st.integers(0, 200), count=st.integers(1, 30))
def test_dealt_gives_every_hand_its_share_of_the_best(length: int, count: int) -> None:
    hands = snake_deal(range(length), count)
    assert sorted(chain(*hands)) == list(range(length))
    for hand in hands:
        assert all(number * count <= item < (number + 1) * count for number, item in enumerate(hand))
    if length % (2 * count) == 0:
        assert len(set(map(sum, hands))) == 1, "forth and back cancel"


def test_partitions_after_the_first_are_drawn_from_the_seed() -> None:
    candidates = [Candidate(f"d{i}", -i) for i in range(100)]

    def blocks(seed: int) -> list[tuple[str, ...]]:
        return [w.doc_ids for w in next(Blocks(partitions=2)(candidates, seed)).windows]

    assert blocks(1) == blocks(1)
    assert blocks(1)[:5] == blocks(2)[:5]
    assert blocks(1)[5:] != blocks(2)[5:]


def test_a_noiseless_judge_finds_a_needle_anywhere() -> None:
    for place in range(0, 100, 7):
        ranking, _ = drive(Blocks(), 100, by_grade([int(i == place) for i in range(100)]))
        assert ranking.doc_ids[0] == f"d{place}"


def test_the_ranking_and_its_probabilities_are_those_of_the_fit() -> None:
    grades = [(7 * i) % 4 for i in range(100)]
    ranking, rounds = drive(Blocks(first_stage_weight=0.5), len(grades), by_grade(grades))
    chances = ranking.probability
    assert chances is not None
    assert sum(chances.values()) == pytest.approx(10, abs=1e-6)
    assert rounds[0].ranking.probability is None
    # the head window is the best twenty so far, the boundary window holds those nearest to even chances
    best = rounds[1].ranking
    head, boundary = (window.doc_ids for window in rounds[1].windows)
    assert head == best.doc_ids[:20]
    assert are_least_certain(boundary, best)
    assert list(boundary) == sorted(boundary, key=best.doc_ids.index)
    assert set(boundary) != set(head)
    ids = tuple(f"d{i}" for i in range(100))
    outcomes = [outcome_of(window.doc_ids, grades) for step in rounds for window in step.windows]
    assert ranking.doc_ids == fit(ids, outcomes, 0.5).ranked()
    assert ranking.doc_ids != fit(ids, outcomes, 0.0).ranked()


def are_least_certain(shown: tuple[str, ...], ranking: Ranking) -> bool:
    """Whether no other passage is nearer to even chances of being among the first ten."""
    assert ranking.probability is not None
    doubt = {doc_id: chance * (1 - chance) for doc_id, chance in ranking.probability.items()}
    return min(doubt[d] for d in shown) >= max(doubt[d] for d in doubt if d not in shown) - 1e-7


def test_where_the_head_itself_is_least_certain_its_better_half_meets_those_behind_it() -> None:
    """As for most queries: the ten end in the middle of the head."""
    _, rounds = drive(Blocks(), 100, lambda window: one_by_one(window.doc_ids))
    best = rounds[1].ranking
    assert are_least_certain(best.doc_ids[:20], best)
    head, boundary = (window.doc_ids for window in rounds[1].windows)
    assert head == best.doc_ids[:20]
    assert boundary == best.doc_ids[:10] + best.doc_ids[20:30]


def outcome_of(shown: tuple[str, ...], grades: list[int]) -> WindowResult:
    window = Window(shown, (1, len(grades)))
    return WindowResult(window, (by_grade(grades)(window),))


def test_without_any_answer_the_first_stage_stands() -> None:
    ranking, _ = drive(Blocks(), 100, WindowRanking.unranked)
    assert ranking.doc_ids == tuple(f"d{i}" for i in range(100))
    assert not any(ranking.tied)


def test_the_same_question_is_not_asked_twice() -> None:
    """21 candidates in the right order: the head and the boundary window would be the same."""
    _, rounds = drive(Blocks(boundary=5), 21, lambda window: one_by_one(window.doc_ids))
    shown = [window.doc_ids for step in rounds for window in step.windows]
    assert len(shown) == len(set(shown)) < 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 1}, "at least 2"),
        ({"partitions": 0}, "give 1 or more"),
        ({"boundary": -1}, "give 0 or more"),
        ({"first_stage_weight": -0.5}, "first_stage_weight is -0.5; give 0"),
        ({"first_stage_weight": math.nan}, "first_stage_weight is nan; give 0"),
    ],
)
def test_a_wrong_setting_names_itself_and_the_remedy(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make("blocks", **options)  # type: ignore[arg-type]


def test_without_numpy_it_says_so_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(MissingExtra, match=r"pip install 'rank-k\[fit\]'"):
        make("blocks")
    for name in ("sliding", "single", "topdown", "tournament", "setwise"):
        check_strategy(make(name), 30, Random(3))
