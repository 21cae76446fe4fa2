"""Rewards for reinforcement learning with GRPO: for the format, the quality and the length of an answer.

TRL calls a reward function with the completions, and with the columns of the data set as keyword arguments. Each
argument is a list with one item per completion. The result is a list with one reward per completion; None means that
the completion gets no reward.

    GRPOTrainer(model, reward_funcs=[format_reward, ndcg_reward, length_reward], train_dataset=rows, ...)

The data set needs the columns `prompt` and `grades`. `grades` lists the relevance grades of a row's passages, in the
order of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rank_k.data.token_estimate import estimate_tokens
from rank_k.distill.select import tier_ndcg
from rank_k.window.parsing import ParsedAnswer, parse_ranking

Completion = str | Sequence[dict[str, Any]]
"""A completion in TRL: a string, or the messages of the assistant if the prompt is a conversation."""

FREE_TOKENS = 2000
"""The number of reasoning tokens without a penalty: the length of the shorter traces in the Rank-K paper."""


def format_reward(completions: Sequence[Completion], grades: Sequence[Sequence[int]], **columns: object) -> list[float]:
    """Return a reward for the format of each answer.

    An answer without a ranking gets 0. All others get 1 minus 0.5 for each kind of parse repair, and minus 0.5 if the
    reasoning is missing, but at least 0.
    """
    return [
        max(0.0, 1.0 - 0.5 * (len(answer.repairs) + (not answer.trace.strip()))) if answer.is_valid else 0.0
        for answer, _, _ in _parse_completions(completions, grades)
    ]


def ndcg_reward(
    completions: Sequence[Completion], grades: Sequence[Sequence[int]], **columns: object
) -> list[float | None]:
    """Return the nDCG@10 of each ranking: 0 without a ranking, and None for rows without a relevant passage.

    Each tied passage counts with the mean gain of its tier. Passages that the answer does not rank form the last tier.
    """
    rewards: list[float | None] = []
    for answer, row_grades, _ in _parse_completions(completions, grades):
        tiers = [
            [row_grades[number - 1] for number in tier if number in answer.ranked_numbers] for tier in answer.tiers
        ]
        unranked = [grade for number, grade in enumerate(row_grades, 1) if number not in answer.ranked_numbers]
        value = tier_ndcg([*filter(None, tiers), *([unranked] if unranked else [])])
        rewards.append(value if value is None or answer.is_valid else 0.0)
    return rewards


def length_reward(completions: Sequence[Completion], grades: Sequence[Sequence[int]], **columns: object) -> list[float]:
    """Return a penalty for the length of the reasoning in tokens, which is estimated.

    It is 0 up to `FREE_TOKENS`, -1 at twice this length, and -2 from four times this length on.
    """
    lengths = (
        estimate_tokens(answer.trace or _completion_text(completion))
        for answer, _, completion in _parse_completions(completions, grades)
    )
    return [-min(2.0, math.log2(max(length / FREE_TOKENS, 1.0))) for length in lengths]


def _parse_completions(
    completions: Sequence[Completion], grades: Sequence[Sequence[int]]
) -> Iterator[tuple[ParsedAnswer, Sequence[int], Completion]]:
    for completion, row_grades in zip(completions, grades, strict=True):
        yield parse_ranking(_completion_text(completion), len(row_grades)), row_grades, completion


def _completion_text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else "".join(str(turn.get("content", "")) for turn in completion)
