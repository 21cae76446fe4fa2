"""Prompt, reasoning and answer share the context: passages are shortened first, then the budget, then passages
again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import QueryTooLong
from rank_k.window.token_allocation import (
    MIN_BARE_PASSAGE_TOKENS,
    MIN_COMPLETION_TOKENS,
    MIN_PASSAGE_TOKENS,
    TokenAllocation,
    allocate_tokens,
    common_length_limit,
)

lengths = st.lists(st.integers(0, 600), max_size=25)
contexts = st.integers(0, 20_000)
frames = st.integers(0, 4000)
budgets = st.integers(1, 12_000)


def total_tokens(passage_lengths: Sequence[int], limit: int) -> int:
    return sum(min(length, limit) for length in passage_lengths)


def allocate_or_none(
    context_length: int, frame_tokens: int, passage_lengths: Sequence[int], max_tokens: int
) -> TokenAllocation | None:
    try:
        return allocate_tokens(context_length, frame_tokens, passage_lengths, max_tokens)
    except QueryTooLong:
        return None


# --- common_length_limit ------------------------------------------------------------------------------------


@given(lengths, st.integers(-10, 16_000))
def test_common_length_limit_is_the_largest_that_fits(passage_lengths: list[int], available_tokens: int) -> None:
    limit = common_length_limit(passage_lengths, available_tokens)
    if limit < 0:
        assert available_tokens < 0  # with room for nothing, nothing fits; else at least empty passages do
    else:
        assert total_tokens(passage_lengths, limit) <= available_tokens
        assert limit == max(passage_lengths, default=0) or total_tokens(passage_lengths, limit + 1) > available_tokens


@pytest.mark.parametrize(
    ("passage_lengths", "available_tokens", "limit"),
    [
        ([10, 20, 30], 60, 30),
        ([10, 20, 30], 59, 29),
        ([10, 20, 30], 50, 20),  # only the longest gives way
        ([10, 20, 30], 30, 10),
        ([10, 20, 30], 29, 9),
        ([10, 20, 30], 2, 0),
        ([10, 20, 30], -1, -1),
        ([], 5, 0),
        ([7], 5, 5),
        ([0, 0], 0, 0),
    ],
)
def test_common_length_limit_matches_examples(passage_lengths: list[int], available_tokens: int, limit: int) -> None:
    assert common_length_limit(passage_lengths, available_tokens) == limit


# --- allocate_tokens ----------------------------------------------------------------------------------------


@given(contexts, frames, lengths, budgets)
def test_allocate_tokens_fits_and_shortens_passages_first(
    context_length: int, frame_tokens: int, passage_lengths: list[int], max_tokens: int
) -> None:
    allocation = allocate_or_none(context_length, frame_tokens, passage_lengths, max_tokens)
    longest = max(passage_lengths, default=0)
    available_tokens = context_length - frame_tokens
    if allocation is None:  # only if not even bare passages and a short answer fit
        assert (
            total_tokens(passage_lengths, min(MIN_BARE_PASSAGE_TOKENS, longest))
            + min(max_tokens, MIN_COMPLETION_TOKENS)
            > available_tokens
        )
        return
    assert total_tokens(passage_lengths, allocation.passage_tokens) + allocation.max_tokens <= available_tokens
    assert min(max_tokens, MIN_COMPLETION_TOKENS) <= allocation.max_tokens <= max_tokens
    assert min(MIN_BARE_PASSAGE_TOKENS, longest) <= allocation.passage_tokens <= longest
    if allocation.max_tokens < max_tokens:  # passages gave all they have to give first, and no token is left over
        assert allocation.passage_tokens <= MIN_PASSAGE_TOKENS
        assert total_tokens(passage_lengths, allocation.passage_tokens) + allocation.max_tokens == available_tokens
    if allocation.passage_tokens < min(MIN_PASSAGE_TOKENS, longest):  # then the budget did, before passages gave more
        assert allocation.max_tokens - min(max_tokens, MIN_COMPLETION_TOKENS) < len(passage_lengths)
    if allocation.max_tokens == max_tokens and allocation.passage_tokens < longest:  # no more is cut than must be
        assert total_tokens(passage_lengths, allocation.passage_tokens + 1) + max_tokens > available_tokens


@given(contexts, st.integers(1, 3000), frames, lengths, budgets)
def test_allocate_tokens_grows_with_the_context(
    context_length: int, extra_tokens: int, frame_tokens: int, passage_lengths: list[int], max_tokens: int
) -> None:
    small = allocate_or_none(context_length, frame_tokens, passage_lengths, max_tokens)
    if small is not None:
        large = allocate_tokens(context_length + extra_tokens, frame_tokens, passage_lengths, max_tokens)
        assert large.passage_tokens >= small.passage_tokens
        assert large.max_tokens >= small.max_tokens - len(
            passage_lengths
        )  # what a passage limit of whole tokens leaves over


@given(contexts, frames, lengths, budgets)
def test_allocate_tokens_shortens_nothing_that_fits(
    context_length: int, frame_tokens: int, passage_lengths: list[int], max_tokens: int
) -> None:
    if frame_tokens + sum(passage_lengths) + max_tokens <= context_length:
        assert allocate_tokens(context_length, frame_tokens, passage_lengths, max_tokens) == (
            max(passage_lengths, default=0),
            max_tokens,
        )


def test_allocate_tokens_of_paper_settings_in_shrinking_contexts() -> None:
    """20 passages of 450 tokens, a frame of 500 and 8,000 tokens for thought and answer."""
    passage_lengths = [450] * 20
    assert allocate_tokens(17_500, 500, passage_lengths, 8000) == (450, 8000)
    assert allocate_tokens(16_384, 500, passage_lengths, 8000) == (394, 8000)
    assert allocate_tokens(10_500, 500, passage_lengths, 8000) == (100, 8000)
    assert allocate_tokens(10_499, 500, passage_lengths, 8000) == (100, 7999)  # the budget gives way by what is missing
    assert allocate_tokens(8192, 500, passage_lengths, 8000) == (100, 5692)
    assert allocate_tokens(3012, 500, passage_lengths, 8000) == (100, 512)
    assert allocate_tokens(2048, 500, passage_lengths, 8000) == (51, 528)
    assert allocate_tokens(1332, 500, passage_lengths, 8000) == (16, 512)
    with pytest.raises(QueryTooLong):
        allocate_tokens(1331, 500, passage_lengths, 8000)


def test_allocate_tokens_keeps_short_passages() -> None:
    assert allocate_tokens(2000, 200, [40, 60, 90], 4000) == (90, 1610)


def test_allocate_tokens_does_not_raise_a_small_budget() -> None:
    assert allocate_tokens(500, 100, [450, 450], 64) == (168, 64)


def test_allocate_tokens_raises_query_too_long_with_numbers() -> None:
    with pytest.raises(QueryTooLong) as raised:
        allocate_tokens(4096, 5000, [450] * 20, 8000)
    for word in ("5000", "4096", "20 passages", "--window", "shorten"):
        assert word in str(raised.value)
    with pytest.raises(QueryTooLong):
        allocate_tokens(0, 0, [], 1)
