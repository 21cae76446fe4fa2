"""Rewards for reinforcement learning with GRPO: for the form, the quality and the length of an answer.

TRL calls a reward function with the completions and with the other columns of the data set by name. All of them are
lists with one item per completion, and so is the result; None means no reward for this completion.

    GRPOTrainer(model, reward_funcs=[format_reward, ndcg_reward, length_reward], train_dataset=rows, ...)

The data set needs the columns `prompt` and `grades`, the grades of a row's passages in the order of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rank_k.data.token_estimate import estimate_tokens
from rank_k.distill.select import tier_ndcg
from rank_k.window.parsing import ParsedAnswer, parse_ranking

Completion = str | Sequence[dict[str, Any]]
"""A completion in TRL: a text, or the assistant's turns if the prompt is a conversation."""

FREE_TOKENS = 2000
"""Reasoning tokens without a penalty: the length of the shorter traces in the paper."""


def format_reward(completions: Sequence[Completion], grades: Sequence[Sequence[int]], **columns: object) -> list[float]:
    """Return 1 for a complete ranking after complete reasoning, 0.5 less per kind of repair, 0 without a ranking."""
    return [
        max(0.0, 1.0 - 0.5 * (len(answer.repairs) + (not answer.trace.strip()))) if answer.is_valid else 0.0
        for answer, _, _ in _parse_completions(completions, grades)
    ]


def ndcg_reward(
    completions: Sequence[Completion], grades: Sequence[Sequence[int]], **columns: object
) -> list[float | None]:
    """Return the nDCG@10 of each ranking, 0 without a ranking, and None for rows without a relevant passage.

    Tied passages share the gain of their positions. Passages that the answer does not rank are tied at the end.
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
    """Return 0 for reasoning of up to `FREE_TOKENS` (estimated), and 1 less for each doubling, but at least -2."""
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
