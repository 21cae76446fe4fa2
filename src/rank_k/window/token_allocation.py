"""How prompt, reasoning and answer share the model's context. Pure.

The rule: passages are cut evenly first, the longest first, down to `MIN_PASSAGE_TOKENS`; then the
budget, down to `MIN_COMPLETION_TOKENS`; then passages again. Nothing is ever left for the server to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rank_k.data.token_estimate import estimate_tokens
from rank_k.errors import QueryTooLong
from rank_k.types import Request

CHAT_TOKENS = 64
"""Upper bound of the tokens that a chat template adds to the messages."""

MIN_PASSAGE_TOKENS = 100
"""Tokens a passage keeps before the budget is touched: about an MS MARCO passage."""

MIN_COMPLETION_TOKENS = 512
"""Tokens reserved for reasoning and answer before passages are truncated below `MIN_PASSAGE_TOKENS`."""

MIN_BARE_PASSAGE_TOKENS = 16
"""Tokens below which a passage says nothing; a window that cannot give each this much is an error."""


class TokenAllocation(NamedTuple):
    """`passage_tokens`: the limit of each passage. `max_tokens`: the limit of reasoning and answer together."""

    passage_tokens: int
    max_tokens: int


def allocate_tokens(
    context_length: int, frame_tokens: int, passage_lengths: Sequence[int], max_tokens: int
) -> TokenAllocation:
    """The share of each, in tokens.

    `frame_tokens`: everything in the prompt that is not a passage. `passage_lengths`: the lengths of the passages.
    `max_tokens`: the requested limit of reasoning and answer. Raises `QueryTooLong` if not even bare passages and a
    short answer fit.
    """
    max_length = max(passage_lengths, default=0)
    limit = common_length_limit(passage_lengths, context_length - frame_tokens - max_tokens)
    if limit >= min(MIN_PASSAGE_TOKENS, max_length):
        return TokenAllocation(limit, max_tokens)
    limit = min(
        common_length_limit(passage_lengths, context_length - frame_tokens - min(max_tokens, MIN_COMPLETION_TOKENS)),
        MIN_PASSAGE_TOKENS,
    )
    if limit >= min(MIN_BARE_PASSAGE_TOKENS, max_length):
        available_tokens = context_length - frame_tokens - sum(min(length, limit) for length in passage_lengths)
        return TokenAllocation(limit, min(max_tokens, available_tokens))
    raise QueryTooLong(
        f"the query and its instructions take {frame_tokens} of the model's {context_length} tokens: no room for"
        f" {len(passage_lengths)} passages and an answer",
        "shorten the query, use a smaller --window, or a model with a longer context",
    )


def common_length_limit(lengths: Sequence[int], available_tokens: int) -> int:
    """The largest limit for which `lengths`, cut to it, fit into `available_tokens` together (below 0 if none does)."""
    if sum(lengths) <= available_tokens:
        return max(lengths, default=0)
    remaining_tokens, remaining_count = available_tokens, len(lengths)
    for length in sorted(lengths):
        if length * remaining_count > remaining_tokens:
            return remaining_tokens // remaining_count
        remaining_tokens -= length
        remaining_count -= 1
    return remaining_tokens


def max_answer_tokens(size: int) -> int:
    """Tokens of a ranking of `size` passages: up to eight each in a vocabulary that splits digits."""
    return 32 + 8 * size


def truncate_trace(trace: str, request: Request, max_tokens: int, context_length: int) -> str:
    """The end of `trace`, as much of it as fits into `context_length` tokens together with the prompt and
    `max_tokens`."""
    prompt_tokens = sum(estimate_tokens(message.content) for message in request.messages)
    available_tokens = max(
        context_length - prompt_tokens - max_tokens - 2 * CHAT_TOKENS, request.max_tokens - max_tokens, 64
    )
    trace_tokens = estimate_tokens(trace)
    return (
        trace
        if trace_tokens <= available_tokens
        else "... " + trace[-(len(trace) * available_tokens // trace_tokens) :]
    )
