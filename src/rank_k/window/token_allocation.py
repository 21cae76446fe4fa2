"""How prompt, thought and answer share the model's context. Pure.

The rule: passages are cut evenly first, the longest first, down to `LEAST_PASSAGE`; then the budget, down to
`LEAST_BUDGET`; then passages again. Nothing is ever left for the server to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rank_k.errors import QueryTooLong

MIN_PASSAGE_TOKENS = 100
"""Tokens a passage keeps before the budget is touched: about an MS MARCO passage."""

MIN_COMPLETION_TOKENS = 512
"""Tokens of thought and answer kept before passages are cut below `LEAST_PASSAGE`."""

MIN_BARE_PASSAGE_TOKENS = 16
"""Tokens below which a passage says nothing; a window that cannot give each this much is an error."""


class TokenAllocation(NamedTuple):
    """`passage` tokens for each passage at most; `budget` tokens for thought and answer."""

    passage_tokens: int
    max_tokens: int


def allocate_tokens(context: int, frame: int, passages: Sequence[int], budget: int) -> TokenAllocation:
    """The share of each, in tokens.

    `frame` is everything in the prompt that is not a passage, `passages` their lengths, `budget` what was
    asked for. Raises `QueryTooLong` if not even bare passages and a short answer fit.
    """
    longest = max(passages, default=0)
    limit = even_limit(passages, context - frame - budget)
    if limit >= min(MIN_PASSAGE_TOKENS, longest):
        return TokenAllocation(limit, budget)
    limit = min(even_limit(passages, context - frame - min(budget, MIN_COMPLETION_TOKENS)), MIN_PASSAGE_TOKENS)
    if limit >= min(MIN_BARE_PASSAGE_TOKENS, longest):
        room = context - frame - sum(min(length, limit) for length in passages)
        return TokenAllocation(limit, min(budget, room))
    raise QueryTooLong(
        f"the query and its instructions take {frame} of the model's {context} tokens: no room for"
        f" {len(passages)} passages and an answer",
        "shorten the query, use a smaller --window, or a model with a longer context",
    )


def even_limit(lengths: Sequence[int], room: int) -> int:
    """The largest limit for which `lengths`, cut to it, fit into `room` together (below 0 if none does)."""
    if sum(lengths) <= room:
        return max(lengths, default=0)
    left, rest = room, len(lengths)
    for length in sorted(lengths):
        if length * rest > left:
            return left // rest
        left -= length
        rest -= 1
    return left
