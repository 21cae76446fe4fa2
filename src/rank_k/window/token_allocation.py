"""How prompt, reasoning and answer share the model's context. Pure.

The rule: passages are truncated first, the longest first, down to `MIN_PASSAGE_TOKENS`; then the budget is lowered,
down to `MIN_COMPLETION_TOKENS`; then passages are truncated further. The server never has to reject a request for its
length.
"""

from __future__ import annotations

from bisect import bisect_right
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
"""Tokens that each passage needs to be of use; a window with less is an error."""


class TokenAllocation(NamedTuple):
    """`passage_tokens`: the limit of each passage. `max_tokens`: the limit of reasoning and answer together."""

    passage_tokens: int
    max_tokens: int


def allocate_tokens(
    context_length: int, frame_tokens: int, passage_lengths: Sequence[int], max_tokens: int
) -> TokenAllocation:
    """Return the limits of passages and completion, in tokens.

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
        f"the query and its instructions take {frame_tokens} of the model's {context_length} tokens: no space for"
        f" {len(passage_lengths)} passages and an answer",
        "shorten the query, use a smaller --window, or a model with a longer context",
    )


def common_length_limit(lengths: Sequence[int], available_tokens: int) -> int:
    """Return the largest limit for which `lengths`, truncated to it, fit into `available_tokens` together; else -1."""
    limits = range(max(lengths, default=0) + 1)
    return bisect_right(limits, available_tokens, key=lambda limit: sum(min(length, limit) for length in lengths)) - 1


def max_answer_tokens(size: int) -> int:
    """Return the tokens of a ranking of `size` passages: up to eight each in a vocabulary that splits digits."""
    return 32 + 8 * size


def truncate_trace(trace: str, request: Request, max_tokens: int, context_length: int) -> str:
    """Return the end of `trace`, as much as fits into `context_length` with the prompt and `max_tokens`."""
    prompt_tokens = sum(estimate_tokens(message.content) for message in request.messages)
    available_tokens = max(
        context_length - prompt_tokens - max_tokens - 2 * CHAT_TOKENS, request.max_tokens - max_tokens, 64
    )
    trace_tokens = estimate_tokens(trace)
    if trace_tokens <= available_tokens:
        return trace
    return "... " + trace[-(len(trace) * available_tokens // trace_tokens) :]
