"""Divide the model's context between prompt, reasoning and answer. This module does no I/O.

If they do not all fit, the longest passages are truncated first, to at least `MIN_PASSAGE_TOKENS`. Next, the token
limit of reasoning and answer is lowered, to at least `MIN_COMPLETION_TOKENS`. Last, passages are truncated further.
Every request then fits into the context, so the server does not reject it for its length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from rank_k.data.token_estimate import estimate_tokens
from rank_k.errors import QueryTooLong
from rank_k.types import Request

CHAT_TOKENS = 64
"""Upper bound on the number of tokens that a chat template adds to the messages."""

MIN_PASSAGE_TOKENS = 100
"""Passages keep at least this many tokens until the limit of reasoning and answer has been lowered.

It is about the length of an MS MARCO passage.
"""

MIN_COMPLETION_TOKENS = 512
"""The limit of reasoning and answer is not lowered below this; passages are truncated further instead."""

MIN_BARE_PASSAGE_TOKENS = 16
"""The minimum number of tokens of a useful passage. If not even these fit, the window is an error."""


class TokenAllocation(NamedTuple):
    """Token limits: `passage_tokens` for each passage, `max_tokens` for reasoning and answer together."""

    passage_tokens: int
    max_tokens: int


def allocate_tokens(
    context_length: int, frame_tokens: int, passage_lengths: Sequence[int], max_tokens: int
) -> TokenAllocation:
    """Return the token limits of the passages, and of reasoning and answer.

    `frame_tokens`: the tokens of everything in the prompt except the passages. `passage_lengths`: the tokens of each
    passage. `max_tokens`: the requested limit of reasoning and answer. Raises `QueryTooLong` if not even
    `MIN_BARE_PASSAGE_TOKENS` of each passage and a short answer fit.
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
        f"the query and the instructions need {frame_tokens} of the {context_length} tokens of the model's context,"
        f" which leaves no space for {len(passage_lengths)} passages and an answer",
        "shorten the query, or use a smaller --window or a model with a longer context",
    )


def common_length_limit(lengths: Sequence[int], available_tokens: int) -> int:
    """Return the largest length to which all passages can be truncated to fit `available_tokens` together.

    It is -1 if they do not even fit with length 0.
    """
    limits = range(max(lengths, default=0) + 1)
    return bisect_right(limits, available_tokens, key=lambda limit: sum(min(length, limit) for length in lengths)) - 1


def max_answer_tokens(size: int) -> int:
    """Return an upper bound on the tokens of a ranking of `size` passages.

    It is eight tokens per passage, which is enough for vocabularies that split numbers into digits.
    """
    return 32 + 8 * size


def truncate_trace(trace: str, request: Request, max_tokens: int, context_length: int) -> str:
    """Return as much of the end of `trace` as fits into `context_length` with the prompt and `max_tokens`."""
    prompt_tokens = sum(estimate_tokens(message.content) for message in request.messages)
    available_tokens = max(
        context_length - prompt_tokens - max_tokens - 2 * CHAT_TOKENS, request.max_tokens - max_tokens, 64
    )
    trace_tokens = estimate_tokens(trace)
    if trace_tokens <= available_tokens:
        return trace
    return "... " + trace[-(len(trace) * available_tokens // trace_tokens) :]
