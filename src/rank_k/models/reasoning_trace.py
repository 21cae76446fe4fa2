"""Separate the reasoning trace of a response from its answer. This module does no I/O.

Servers with a reasoning parser send the trace in a separate field. All other servers send it as part of the text,
between an opening and a closing marker, which depend on the model (see `REASONING_MARKERS`). The chat templates of some
models (QwQ, DeepSeek-R1) end the prompt with the opening marker. The text of the response then starts with the trace
and contains only the closing marker.

`split_stream` separates chunks as they arrive, and `split_response` separates a complete response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

from rank_k.types import Response, StreamChunk


class ReasoningMarkers(NamedTuple):
    """The texts before and after a reasoning trace. They are matched without regard to case."""

    opening: str
    closing: str


REASONING_MARKERS = (
    ReasoningMarkers("<think>", "</think>"),  # DeepSeek-R1, QwQ, Qwen3, Rank-K
    ReasoningMarkers("<thinking>", "</thinking>"),
    ReasoningMarkers("<thought>", "</thought>"),
    ReasoningMarkers("<reasoning>", "</reasoning>"),
    ReasoningMarkers("<analysis>", "</analysis>"),
    ReasoningMarkers("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningMarkers("[THINK]", "[/THINK]"),  # Magistral
)
"""The markers of all models. No marker may be the beginning of a different marker."""


def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)), re.IGNORECASE | re.ASCII)


_OPENINGS = tuple(markers.opening for markers in REASONING_MARKERS)
_CLOSINGS = tuple(markers.closing for markers in REASONING_MARKERS)
OPENING_MARKER = _any_of(_OPENINGS)
CLOSING_MARKER = _any_of(_CLOSINGS)
_MARKER = _any_of(_OPENINGS + _CLOSINGS)
_BEGINNINGS = {marker[:length].lower() for marker in _OPENINGS + _CLOSINGS for length in range(1, len(marker))}
_LONGEST_BEGINNING = max(map(len, _BEGINNINGS))


# --- while it streams ---


def split_stream(prefill: str, may_reason: bool) -> Callable[[StreamChunk | None], StreamChunk]:
    """Return a function that separates the reasoning in streamed chunks.

    Text that may be the beginning of a marker is withheld until the next chunk. If neither the prefill nor a marker
    shows where the reasoning starts, a text that starts with a letter counts as reasoning, because rankings start with
    a bracket or a digit.

    Args:
        prefill: The beginning of the assistant's message, which the response continues.
        may_reason: Whether the response may contain reasoning.

    Returns:
        A function. Call it with each chunk, and at the end with None. It returns a chunk without markers.
    """
    is_reasoning = _ends_in_reasoning(prefill) if prefill or not may_reason else None
    separation = _separate(is_reasoning)
    next(separation)
    return separation.send


def _separate(is_reasoning: bool | None) -> Generator[StreamChunk, StreamChunk | None, None]:
    """Receive chunks and yield them without markers. `is_reasoning`: whether reasoning comes first (None: unknown)."""
    pending = ""
    output = StreamChunk("", "")
    while True:
        chunk = yield output
        is_end = chunk is None
        reasoning: list[str] = []
        text: list[str] = []
        if chunk is not None:
            pending += chunk.text
            if chunk.reasoning:
                reasoning.append(chunk.reasoning)
                is_reasoning = is_reasoning or False  # the server separates the reasoning
        if is_reasoning is None:
            is_reasoning = _starts_with_reasoning(pending)
        if is_reasoning is not None or is_end:
            *parts, pending = _split_at_markers(pending)
            if is_end:
                parts, pending = [*parts, pending], ""
            for part in parts:
                if _MARKER.fullmatch(part):
                    is_reasoning = OPENING_MARKER.fullmatch(part) is not None
                else:
                    (reasoning if is_reasoning else text).append(part)
        output = StreamChunk("".join(reasoning), "".join(text))


def _split_at_markers(text: str) -> list[str]:
    """Return the markers and the texts between them. The last item is text that may be the beginning of a marker."""
    parts = re.split(f"({_MARKER.pattern})", text, flags=_MARKER.flags)
    last = parts.pop()
    lengths = range(min(len(last), _LONGEST_BEGINNING), 0, -1)
    withheld = next((length for length in lengths if last[-length:].lower() in _BEGINNINGS), 0)
    return [*parts, last[: len(last) - withheld], last[len(last) - withheld :]]


def _starts_with_reasoning(text: str) -> bool | None:
    """Return whether reasoning comes before the first marker; None if the text is too short to decide."""
    start = text.lstrip()
    if not start or start.lower() in _BEGINNINGS:
        return None
    return start[0].isalpha()


def _ends_in_reasoning(text: str) -> bool:
    """Return whether the last marker in `text` opens a reasoning block."""
    markers = _MARKER.findall(text)
    return bool(markers) and OPENING_MARKER.fullmatch(markers[-1]) is not None


# --- a complete response ---


class ResponseParts(NamedTuple):
    """The parts of a response.

    Attributes:
        trace: The reasoning.
        answer: The text after the reasoning.
        alternative: A second text to parse if `answer` contains no ranking.
        reasoning_truncated: Whether the response ended before the answer began.
        unmatched_markers: The number of markers without a matching opening or closing marker.
    """

    trace: str
    answer: str
    alternative: str = ""
    reasoning_truncated: bool = False
    unmatched_markers: int = 0


def split_continuation(prefill: str, response: Response) -> ResponseParts:
    """Return the parts of a response.

    Args:
        prefill: The beginning of the assistant's message, which the response continues; "" if there is none.
        response: The response.
    """
    opening = REASONING_MARKERS[0].opening if _ends_in_reasoning(prefill) else ""
    is_closed = bool(prefill) and not opening
    return split_response(opening + response.text, response.reasoning or "", response.finish_reason, is_closed)


def stored_prefill(request: Mapping[str, Any]) -> str:
    """Return the beginning of the assistant's message in a stored request; "" if there is none.

    A request whose stop sequence is a closing marker has opened the reasoning, so its response starts with reasoning.
    """
    match request.get("messages"):
        case [*_, {"role": "assistant", "content": str() as content}]:
            return content
    ends_with_reasoning = any(stop in _CLOSINGS for stop in request.get("stop") or ())
    return REASONING_MARKERS[0].opening if ends_with_reasoning else ""


def split_response(text: str, reasoning: str, finish_reason: str | None, reasoning_closed: bool) -> ResponseParts:
    """Return the parts of a response, regardless of the fields in which the server sent them.

    Args:
        text: The text of the response.
        reasoning: The separate reasoning field; "" if the server does not send one.
        finish_reason: Why the response ended.
        reasoning_closed: Whether the request closed the reasoning. The whole response is then the answer.
    """
    closings = list(CLOSING_MARKER.finditer(text))
    if closings:
        inline_trace = _MARKER.sub("", text[: closings[-1].start()]).strip()
        trace = "\n".join(filter(None, (reasoning.strip(), inline_trace)))
        unmatched = len(closings) - (0 if reasoning or reasoning_closed else 1)
        answer = text[closings[-1].end() :]
        if len(closings) > 1 and not answer.strip() and finish_reason != "length":
            # The model repeated the closing marker after the answer.
            answer = text[closings[-2].end() : closings[-1].start()]
        return _split_after_reasoning(trace, answer, finish_reason, unmatched)
    if opening := OPENING_MARKER.search(text):
        trace = "\n".join(filter(None, (reasoning.strip(), text[opening.end() :].strip())))
        return ResponseParts(trace, "", reasoning_truncated=True)
    if reasoning_closed:
        return _split_closed_reasoning(text, reasoning)
    if reasoning.strip() and not text.strip():
        closings = list(CLOSING_MARKER.finditer(reasoning))
        if closings:  # some servers put the whole response into the reasoning field
            trace = OPENING_MARKER.sub("", reasoning[: closings[-1].start()]).strip()
            return _split_after_reasoning(trace, reasoning[closings[-1].end() :], finish_reason, 1)
        return ResponseParts(reasoning.strip(), "", reasoning_truncated=True)
    if finish_reason == "length" and not reasoning.strip() and not _is_bare_ranking(text):
        # Without any marker: the template opened the reasoning in the prompt, and the response ended before its end.
        return ResponseParts(text.strip(), "", reasoning_truncated=True)
    return ResponseParts(reasoning.strip(), text)


def _split_after_reasoning(trace: str, answer: str, finish_reason: str | None, unmatched: int) -> ResponseParts:
    if opening := OPENING_MARKER.search(answer):  # the model reasons a second time
        if answer[: opening.start()].strip():
            return ResponseParts(trace, answer[: opening.start()], unmatched_markers=unmatched + 1)
        second_trace = answer[opening.end() :].strip()
        return ResponseParts(f"{trace}\n{second_trace}", "", reasoning_truncated=True, unmatched_markers=unmatched)
    is_truncated = finish_reason == "length" and not answer.strip()
    return ResponseParts(trace, answer, reasoning_truncated=is_truncated, unmatched_markers=unmatched)


def _split_closed_reasoning(text: str, reasoning: str) -> ResponseParts:
    closings = list(CLOSING_MARKER.finditer(reasoning))
    trace, answer = "", reasoning
    if closings:
        trace, answer = reasoning[: closings[-1].start()], reasoning[closings[-1].end() :]
    if text.strip():
        return ResponseParts(reasoning.strip(), text, alternative=answer)
    return ResponseParts(OPENING_MARKER.sub("", trace).strip(), answer)


def _is_bare_ranking(text: str) -> bool:
    """Return whether a response contains only ids and separators, and therefore no reasoning."""
    return re.fullmatch(r"[\s\d\[\]>=,→＞＝]*", text) is not None
