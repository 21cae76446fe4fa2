"""Rewards: bounded, of one kind with the package's own measures, and without surprises for any text."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.data.token_estimate import estimate_tokens
from rank_k.distill.rewards import FREE_TOKENS, format_reward, length_reward, ndcg_reward

GOOD = "<think>\nthe second answers it\n</think>\n\n[2] > [1] = [3]"


def one(reward: Any, text: str, grades: list[int]) -> Any:
    (value,) = reward(completions=[[{"role": "assistant", "content": text}]], grades=[grades], prompts=[[]])
    assert reward(completions=[text], grades=[grades]) == [value]  # conversations and plain text alike
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        ("[2] > [1] = [3]", 0.5),  # no thought
        ("<think>\nhm\n</think>\n\n[2] > [1]", 0.5),  # one passage forgotten
        ("<think>\nhm\n</think>\n\n[2] > [1] > [1] > [9]", 0.0),
        ("<think>\nhm", 0.0),
        ("", 0.0),
    ],
)
def test_form(text: str, value: float) -> None:
    assert one(format_reward, text, [0, 1, 0]) == value


def test_gain_by_hand() -> None:
    assert one(ndcg_reward, GOOD, [0, 1, 0]) == 1.0
    assert one(ndcg_reward, "<think>\nx\n</think>\n\n[1] > [2] > [3]", [0, 1, 0]) == pytest.approx(1 / math.log2(3))
    tied = (1 + 1 / math.log2(3) + 0.5) / 3  # the one relevant passage is as likely at each of three places
    assert one(ndcg_reward, "[1] = [2] = [3]", [0, 1, 0]) == pytest.approx(tied)
    assert one(ndcg_reward, "[3]", [0, 1, 0]) == pytest.approx((1 / math.log2(3) + 0.5) / 2)
    assert one(ndcg_reward, "no idea", [0, 1, 0]) == 0.0
    assert one(ndcg_reward, GOOD, [0, 0, 0]) is None


def test_length_by_hand() -> None:
    assert one(length_reward, GOOD, [0, 1, 0]) == 0.0
    thought = "word " * (4 * FREE_TOKENS)
    times = estimate_tokens(thought.strip()) / FREE_TOKENS
    assert times > 2
    assert one(length_reward, f"<think>\n{thought}</think>\n\n[1]", [1]) == -min(2.0, math.log2(times))


@given(st.text(), st.lists(st.integers(-1, 3), min_size=1, max_size=20))
def test_any_text_gets_bounded_rewards(text: str, grades: list[int]) -> None:
    assert 0 <= one(format_reward, text, grades) <= 1
    gain = one(ndcg_reward, text, grades)
    assert (gain is None) == (max(grades) <= 0)
    assert gain is None or -1e-9 <= gain <= 1 + 1e-9
    assert -2 <= one(length_reward, text, grades) <= 0


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.randoms())
def test_no_order_gains_more_than_the_best(grades: list[int], random: Any) -> None:
    numbers = random.sample(range(1, len(grades) + 1), len(grades))
    best = sorted(numbers, key=lambda number: -grades[number - 1])
    values = [one(ndcg_reward, " > ".join(f"[{number}]" for number in order), grades) for order in (numbers, best)]
    assert values == [None, None] or values[0] <= values[1] + 1e-9 == pytest.approx(1 + 1e-9)
