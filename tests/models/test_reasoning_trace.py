"""The reasoning trace is separated from the answer, while it streams and in complete responses."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.models.reasoning_trace import (
    REASONING_MARKERS,
    ResponseParts,
    split_continuation,
    split_response,
    split_stream,
    stored_prefill,
)
from rank_k.types import Response, StreamChunk

MARKERS = [marker for markers in REASONING_MARKERS for marker in markers]
ANY_MARKER = re.compile("|".join(map(re.escape, MARKERS)), re.IGNORECASE | re.ASCII)

pieces = st.sampled_from([*MARKERS, *(marker.upper() for marker in MARKERS), *(marker[:-2] for marker in MARKERS)])
texts = st.lists(pieces | st.text(max_size=6) | st.sampled_from(["[1] > [2]", "\n\n", "["]), max_size=8).map("".join)
prefills = st.sampled_from(["", "<think>\n", "<think>\nhm\n</think>\n\n"])


def stream(text: str, cuts: list[int], prefill: str = "", may_reason: bool = True) -> tuple[str, str]:
    """Return reasoning and answer of a text that arrives in pieces."""
    separate = split_stream(prefill, may_reason)
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    chunks = [separate(StreamChunk("", text[start:end])) for start, end in itertools.pairwise(bounds)]
    chunks.append(separate(None))
    return "".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks)


@given(texts, st.lists(st.integers(0, 1000), max_size=20), prefills, st.booleans())
def test_split_stream_does_not_depend_on_the_pieces(text: str, cuts: list[int], prefill: str, may_reason: bool) -> None:
    whole = stream(text, [], prefill, may_reason)
    assert stream(text, cuts, prefill, may_reason) == whole
    assert stream(text, [*range(len(text))], prefill, may_reason) == whole


@given(texts, prefills, st.booleans())
def test_split_stream_loses_only_markers(text: str, prefill: str, may_reason: bool) -> None:
    reasoning, answer = stream(text, [3, 7], prefill, may_reason)
    assert len(reasoning) + len(answer) == len(ANY_MARKER.sub("", text))
    assert sorted(reasoning + answer) == sorted(ANY_MARKER.sub("", text))


@given(st.sampled_from(REASONING_MARKERS), st.lists(st.integers(0, 1000), max_size=20), st.booleans())
def test_every_marker_separates_streams_and_responses(markers: tuple[str, str], cuts: list[int], opened: bool) -> None:
    """`opened`: the chat template has opened the reasoning, so that the opening marker is not in the text."""
    opening, closing = markers
    text = f"{'' if opened else opening}Is [1] better? No.{closing}[2] > [1]"
    assert stream(text, cuts) == ("Is [1] better? No.", "[2] > [1]")
    assert split_response(text, "", "stop", reasoning_closed=False)[:2] == ("Is [1] better? No.", "[2] > [1]")


def test_no_marker_is_the_beginning_of_another() -> None:
    assert not [(a, b) for a, b in itertools.permutations(MARKERS, 2) if b.lower().startswith(a.lower())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[2] > [1]", ("", "[2] > [1]")),
        ("2 > 1", ("", "2 > 1")),
        ("Passage 1 is", ("Passage 1 is", "")),
        ("[", ("", "[")),
    ],
)
def test_split_stream_without_markers_starts_with_reasoning_or_a_ranking(text: str, expected: tuple[str, str]) -> None:
    assert stream(text, [1]) == expected
    assert stream(text, [1], may_reason=False) == ("", text)


def test_split_stream_keeps_what_the_server_separated() -> None:
    separate = split_stream("", may_reason=True)
    chunks = [
        separate(chunk) for chunk in (StreamChunk("Passage", ""), StreamChunk(" 1", ""), StreamChunk("", "So: [1]"))
    ]
    assert [*chunks, separate(None)] == [("Passage", ""), (" 1", ""), ("", "So: [1]"), ("", "")]


def test_labels_after_a_prefilled_opening_are_the_trace() -> None:
    """rank-k-nano writes a label for each passage after an opening marker that Rank-K prefills."""
    request = {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "<think>\n"}]}
    response = Response("[1] no\n[2] yes\n", finish_reason="stop")
    assert stored_prefill(request) == "<think>\n"
    assert split_continuation(stored_prefill(request), response) == ResponseParts(
        "[1] no\n[2] yes", "", reasoning_truncated=True
    )
    assert split_continuation("<think>\nx\n</think>\n\n", Response("[2] > [1]"))[:2] == ("", "[2] > [1]")
    requests_without_prefill: list[dict[str, Any]] = [{}, {"messages": []}, {"messages": request["messages"][:1]}]
    assert {*map(stored_prefill, requests_without_prefill)} == {""}
    assert stored_prefill({"messages": [], "stop": ["</think>"]}) == "<think>"
