"""Rewards for reinforcement learning by GRPO: was the answer well formed, was it good, was it short.

Plain functions of what TRL hands to a reward function: the completions, and the data set's other columns by name,
each a list with one item a completion. They return one number a completion, None where they have nothing to say.

    GRPOTrainer(model, reward_funcs=[format_reward, ndcg_reward, length_reward], train_dataset=rows, ...)

The data set needs a column `prompt`, and `grades`: for each row the grades of its passages in the order shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rank_k.data.token_estimate import estimate_tokens
from rank_k.distill.select import tier_ndcg
from rank_k.window.parsing import ParsedAnswer, parse_ranking

Completion = str | Sequence[dict[str, Any]]
"""As TRL has it: text, or the assistant's turn where the prompt is a conversation."""

FREE_TOKENS = 2000
"""Tokens of thought that cost nothing; the paper's shorter traces are of that length."""


def format_reward(completions: Sequence[Completion], grades: Sequence[Sequence[int]], **columns: object) -> list[float]:
    """1 for a complete order after a thought that was closed; 0.5 less for each kind of repair; 0 for no order."""
    return [
        max(0.0, 1.0 - 0.5 * (len(answer.repairs) + (not answer.trace.strip()))) if answer.is_valid else 0.0
        for answer, _, _ in _parse_completions(completions, grades)
    ]


def ndcg_reward(
    completions: Sequence[Completion], grades: Sequence[Sequence[int]], **columns: object
) -> list[float | None]:
    """nDCG@10 of the order, members of a tie sharing their places' gain; 0 for no order, None for rows where no
    passage is relevant. Passages that the answer left out come last, in the order shown, but tied."""
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
    """0 for a thought of up to `FREE_TOKENS` (estimated), then falling by 1 each time the length doubles, to -2."""
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
