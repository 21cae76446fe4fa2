"""Rewards: bounded, of one kind with the package's own measures, and without surprises for any text."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.token_estimate import estimate_tokens
from rank_k.distill.rewards import FREE_TOKENS, format_reward, length_reward, ndcg_reward

WELL_FORMED = "<think>\nthe second answers it\n</think>\n\n[2] > [1] = [3]"


def reward_of(reward: Any, text: str, grades: list[int]) -> Any:
    (value,) = reward(completions=[[{"role": "assistant", "content": text}]], grades=[grades], prompts=[[]])
    assert reward(completions=[text], grades=[grades]) == [value]  # conversations and plain text alike
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (WELL_FORMED, 1.0),
        ("[2] > [1] = [3]", 0.5),  # no thought
        ("<think>\nhm\n</think>\n\n[2] > [1]", 0.5),  # one passage forgotten
        ("<think>\nhm\n</think>\n\n[2] > [1] > [1] > [9]", 0.0),
        ("<think>\nhm", 0.0),
        ("", 0.0),
    ],
)
def test_format_reward_by_hand(text: str, value: float) -> None:
    assert reward_of(format_reward, text, [0, 1, 0]) == value


def test_ndcg_reward_by_hand() -> None:
    assert reward_of(ndcg_reward, WELL_FORMED, [0, 1, 0]) == 1.0
    assert reward_of(ndcg_reward, "<think>\nx\n</think>\n\n[1] > [2] > [3]", [0, 1, 0]) == pytest.approx(
        1 / math.log2(3)
    )
    tied_ndcg = (1 + 1 / math.log2(3) + 0.5) / 3  # the one relevant passage is as likely at each of three places
    assert reward_of(ndcg_reward, "[1] = [2] = [3]", [0, 1, 0]) == pytest.approx(tied_ndcg)
    assert reward_of(ndcg_reward, "[3]", [0, 1, 0]) == pytest.approx((1 / math.log2(3) + 0.5) / 2)
    assert reward_of(ndcg_reward, "no idea", [0, 1, 0]) == 0.0
    assert reward_of(ndcg_reward, WELL_FORMED, [0, 0, 0]) is None


def test_length_reward_by_hand() -> None:
    assert reward_of(length_reward, WELL_FORMED, [0, 1, 0]) == 0.0
    reasoning = "word " * (4 * FREE_TOKENS)
    length_ratio = estimate_tokens(reasoning.strip()) / FREE_TOKENS
    assert length_ratio > 2
    assert reward_of(length_reward, f"<think>\n{reasoning}</think>\n\n[1]", [1]) == -min(2.0, math.log2(length_ratio))


@given(st.text(), st.lists(st.integers(-1, 3), min_size=1, max_size=20))
def test_rewards_are_bounded_for_any_text(text: str, grades: list[int]) -> None:
    assert 0 <= reward_of(format_reward, text, grades) <= 1
    ndcg = reward_of(ndcg_reward, text, grades)
    assert (ndcg is None) == (max(grades) <= 0)
    assert ndcg is None or -1e-9 <= ndcg <= 1 + 1e-9
    assert -2 <= reward_of(length_reward, text, grades) <= 0


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.randoms())
def test_ndcg_reward_is_largest_for_the_ideal_ranking(grades: list[int], random: Any) -> None:
    numbers = random.sample(range(1, len(grades) + 1), len(grades))
    best = sorted(numbers, key=lambda number: -grades[number - 1])
    values = [
        reward_of(ndcg_reward, " > ".join(f"[{number}]" for number in order), grades) for order in (numbers, best)
    ]
    assert values == [None, None] or values[0] <= values[1] + 1e-9 == pytest.approx(1 + 1e-9)
