"""Responses that are put together from events: where the reasoning is, and how many tokens it has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rank_k.errors import ServerError
from rank_k.models.sse import ResponseEvent, join_events, parse_event
from rank_k.types import Usage

COUNTS = {"prompt_tokens": 50, "completion_tokens": 40}
TRACE, ANSWER = "Passage [2] is better. ", "[2] > [1] = [3] > [4]"


def events(*deltas: dict[str, Any], usage: dict[str, Any] | None = COUNTS) -> list[ResponseEvent]:
    payloads: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
    payloads += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"usage": usage, "choices": []}]
    return [*(parse_event(json.dumps(payload).encode()) for payload in payloads), parse_event(b"[DONE]")]


@pytest.mark.parametrize(
    "deltas",
    [
        [{"content": f"<think>{TRACE}</think>{ANSWER}"}],
        [{"content": "<thi"}, {"content": f"nk>{TRACE}</thi"}, {"content": f"nk>{ANSWER}"}],
        [{"content": f"{TRACE}</think>{ANSWER}"}],  # the chat template opens the reasoning
        [{"content": f"[THINK]{TRACE}[/THINK]{ANSWER}"}],
        [{"reasoning": TRACE}, {"content": ANSWER}],
        [{"reasoning_content": TRACE}, {"content": ANSWER}],
    ],
)
def test_join_events_estimates_uncounted_reasoning_tokens(deltas: list[dict[str, Any]]) -> None:
    """About half of the characters are reasoning, wherever the server puts it."""
    usage = join_events(events(*deltas), 1.0).usage
    assert 14 <= usage.reasoning_tokens <= 24
    assert (usage.completion_tokens, usage.estimated, usage.reasoning_is_estimated) == (40, False, True)


def test_join_events_keeps_the_text_as_it_was_sent() -> None:
    text = f"<think>{TRACE}</think>{ANSWER}"
    response = join_events(events({"content": text}), 1.0)
    assert (response.text, response.reasoning, response.finish_reason) == (text, None, "stop")


def test_join_events_uses_the_counts_of_the_server() -> None:
    counts = COUNTS | {"completion_tokens_details": {"reasoning_tokens": 31}}
    usage = join_events(events({"content": f"<think>{TRACE}</think>{ANSWER}"}, usage=counts), 1.0).usage
    assert usage == Usage(50, 40, 31)


def test_join_events_counts_all_tokens_of_prefilled_reasoning() -> None:
    """rank-k-nano's labels are its reasoning: nothing has to be estimated."""
    usage = join_events(events({"content": "[1] no\n[2] yes\n"}), 1.0, prefill="<think>\n").usage
    assert usage == Usage(50, 40, 40)


def test_join_events_counts_no_reasoning_in_an_answer() -> None:
    assert join_events(events({"content": ANSWER}), 1.0).usage == Usage(50, 40, 0)
    assert join_events(events({"content": ANSWER}), 1.0, prefill="<think>\nx\n</think>\n\n").usage == Usage(50, 40, 0)


def test_join_events_rejects_a_stream_that_ends_early() -> None:
    with pytest.raises(ServerError, match="before the response was complete"):
        join_events(events({"content": ANSWER})[:1], 1.0)
