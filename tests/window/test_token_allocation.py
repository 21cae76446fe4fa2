"""Prompt, thought and answer share the context: passages give way first, then the budget, then passages again."""

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


def used(passages: Sequence[int], limit: int) -> int:
    return sum(min(length, limit) for length in passages)


def share_or_none(context: int, frame: int, passages: Sequence[int], budget: int) -> TokenAllocation | None:
    try:
        return allocate_tokens(context, frame, passages, budget)
    except QueryTooLong:
        return None


# --- common_length_limit ------------------------------------------------------------------------------------


@given(lengths, st.integers(-10, 16_000))
def test_the_even_limit_is_the_largest_that_fits(passages: list[int], room: int) -> None:
    limit = common_length_limit(passages, room)
    if limit < 0:
        assert room < 0  # with room for nothing, nothing fits; else at least empty passages do
    else:
        assert used(passages, limit) <= room
        assert limit == max(passages, default=0) or used(passages, limit + 1) > room


@pytest.mark.parametrize(
    ("passages", "room", "limit"),
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
def test_even_limits(passages: list[int], room: int, limit: int) -> None:
    assert common_length_limit(passages, room) == limit


# --- shared ----------------------------------------------------------------------------------------


@given(contexts, frames, lengths, budgets)
def test_a_share_fits_and_gives_way_in_order(context: int, frame: int, passages: list[int], budget: int) -> None:
    share = share_or_none(context, frame, passages, budget)
    longest = max(passages, default=0)
    room = context - frame
    if share is None:  # only if not even bare passages and a short answer fit
        assert used(passages, min(MIN_BARE_PASSAGE_TOKENS, longest)) + min(budget, MIN_COMPLETION_TOKENS) > room
        return
    assert used(passages, share.passage_tokens) + share.max_tokens <= room
    assert min(budget, MIN_COMPLETION_TOKENS) <= share.max_tokens <= budget
    assert min(MIN_BARE_PASSAGE_TOKENS, longest) <= share.passage_tokens <= longest
    if share.max_tokens < budget:  # passages gave all they have to give first, and no token is left over
        assert share.passage_tokens <= MIN_PASSAGE_TOKENS
        assert used(passages, share.passage_tokens) + share.max_tokens == room
    if share.passage_tokens < min(MIN_PASSAGE_TOKENS, longest):  # then the budget did, before passages gave more
        assert share.max_tokens - min(budget, MIN_COMPLETION_TOKENS) < len(passages)
    if share.max_tokens == budget and share.passage_tokens < longest:  # no more is cut than must be
        assert used(passages, share.passage_tokens + 1) + budget > room


@given(contexts, st.integers(1, 3000), frames, lengths, budgets)
def test_more_context_never_means_less(context: int, more: int, frame: int, passages: list[int], budget: int) -> None:
    small = share_or_none(context, frame, passages, budget)
    if small is not None:
        large = allocate_tokens(context + more, frame, passages, budget)
        assert large.passage_tokens >= small.passage_tokens
        assert large.max_tokens >= small.max_tokens - len(passages)  # what a passage limit of whole tokens leaves over


@given(contexts, frames, lengths, budgets)
def test_all_is_given_where_all_fits(context: int, frame: int, passages: list[int], budget: int) -> None:
    if frame + sum(passages) + budget <= context:
        assert allocate_tokens(context, frame, passages, budget) == (max(passages, default=0), budget)


def test_the_shares_of_the_paper_in_shrinking_contexts() -> None:
    """20 passages of 450 tokens, a frame of 500 and 8,000 tokens for thought and answer."""
    passages = [450] * 20
    assert allocate_tokens(17_500, 500, passages, 8000) == (450, 8000)
    assert allocate_tokens(16_384, 500, passages, 8000) == (394, 8000)
    assert allocate_tokens(10_500, 500, passages, 8000) == (100, 8000)
    assert allocate_tokens(10_499, 500, passages, 8000) == (100, 7999)  # the budget gives way by what is missing
    assert allocate_tokens(8192, 500, passages, 8000) == (100, 5692)
    assert allocate_tokens(3012, 500, passages, 8000) == (100, 512)
    assert allocate_tokens(2048, 500, passages, 8000) == (51, 528)
    assert allocate_tokens(1332, 500, passages, 8000) == (16, 512)
    with pytest.raises(QueryTooLong):
        allocate_tokens(1331, 500, passages, 8000)


def test_short_passages_are_not_cut_before_the_budget() -> None:
    assert allocate_tokens(2000, 200, [40, 60, 90], 4000) == (90, 1610)


def test_a_small_budget_is_not_raised() -> None:
    assert allocate_tokens(500, 100, [450, 450], 64) == (168, 64)


def test_what_does_not_fit_is_told_with_numbers_and_a_remedy() -> None:
    with pytest.raises(QueryTooLong) as raised:
        allocate_tokens(4096, 5000, [450] * 20, 8000)
    for word in ("5000", "4096", "20 passages", "--window", "shorten"):
        assert word in str(raised.value)
    with pytest.raises(QueryTooLong):
        allocate_tokens(0, 0, [], 1)
