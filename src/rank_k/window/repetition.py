"""Stop responses that repeat themselves.

`repetition_detector` reads a text while it streams. Reasoning often repeats something without being stuck: a trace may
go through its list twice, and a list of labels repeats one sentence with different numbers. A text therefore counts as
repeating itself only if it ends with one of the following:

    a copy          text that appears for the third time, word for word
    a paragraph     text that appears for the third time, with one or two different numbers each time
    a list          one sentence with different numbers, more than twice for each passage of the window
    a few phrases   sentences in any order, each of which appeared several times before

The first three are periodic: `text[i] == text[i - period]` for all characters of the *run* at the end of the text. In
paragraphs and lists, every number is replaced by 0 before this comparison, so that numbers may differ. A different word
ends a run: "[1] is about cats, [2] is about dogs" is not periodic.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import islice

from rank_k.models.base import ModelWrapper
from rank_k.types import OnChunk, Request, Response, StreamChunk

CHECK_INTERVAL = 128
"""Characters between two checks."""

TAIL_CHARACTERS = 24_000
"""Number of characters at the end of the text that are searched for repetitions. The longest possible period is half of
this, about 1,800 English words. In a trace of 8,000 tokens, text that repeats at a longer distance cannot be
distinguished from a second reading of the passages."""

COPIED_TOKENS = 100
COPIED_CHARACTERS = 400
"""A copy is a repetition when this many tokens, or this many characters, of it appear for the third time. Ordinary
traces do not contain so much text three times. The limit in characters is for long words, as in German, and for text
with few words, such as an endless line of dashes."""

PARAGRAPH_TOKENS = 64
PARAGRAPH_COPIED_TOKENS = 160
PARAGRAPH_CHANGES = 2
"""A paragraph of at least `PARAGRAPH_TOKENS` (about 50 words) in which at most `PARAGRAPH_CHANGES` numbers differ each
time is a repetition when `PARAGRAPH_COPIED_TOKENS` of it appear for the third time. A shorter paragraph may be an
ordinary list with the same sentence about every passage."""

LISTS = 2
LIST_TOKENS = 512
"""One sentence with different numbers is a repetition when it appears more than `LISTS` times for each passage of the
window, in at least `LIST_TOKENS` tokens. Listing all passages twice is ordinary reasoning, and so is a small matrix of
numbers."""

PHRASES_CHARACTERS = 1_200
PHRASES_TIMES = 3
PHRASES_WITHIN = 8_000
"""Phrases in any order are a repetition when each phrase in the last `PHRASES_CHARACTERS` characters appeared at least
`PHRASES_TIMES` times before, within the last `PHRASES_WITHIN` characters."""

_PHRASE = 36  # length of a phrase in characters
_UNSPACED_SCRIPTS = (  # Thai to Tibetan, Burmese, Khmer, kana, ideographs, Hangul, ideographs beyond the basic plane
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[^\W\d_{_UNSPACED_SCRIPTS}]+|\d{{1,3}}|\S")
_NUMBER = re.compile(r"\d+")


def repetition_detector(passages: int = 20) -> Callable[[str], int | None]:
    """Return a function that reads a text piece by piece and returns where the text begins to repeat itself.

    Args:
        passages: The number of passages of the window.

    Returns:
        A function that receives the next piece of the text. It returns None until it detects a repetition, and then the
        position where the repetition starts: `text[:start]` contains the repeated text once. The result does not depend
        on how the text is split into pieces. Pieces after the detection are ignored.
    """
    detection = _detect_repetition(passages)
    next(detection)
    return detection.send


def _detect_repetition(passages: int) -> Generator[int | None, str, None]:
    unchecked = ""
    checked_characters = 0
    tail = ""
    shape = ""  # the tail with every number replaced by 0
    start = None
    while True:
        piece = yield start
        if start is not None:
            continue
        unchecked += piece
        for end in range(CHECK_INTERVAL, len(unchecked) + 1, CHECK_INTERVAL):
            text = unchecked[end - CHECK_INTERVAL : end]
            text_shape = _NUMBER.sub("0", text)
            if text[0].isdecimal() and tail[-1:].isdecimal():
                text_shape = text_shape[1:]  # the text continues a number that the shape already contains
            checked_characters += len(text)
            tail = (tail + text)[-TAIL_CHARACTERS:]
            shape = (shape + text_shape)[-TAIL_CHARACTERS:]
            if repeated_characters := _repeated_characters(tail, shape, passages):
                start = checked_characters - repeated_characters
                break
        unchecked = unchecked[len(unchecked) - len(unchecked) % CHECK_INTERVAL :]


def _repeated_characters(tail: str, shape: str, passages: int) -> int:
    """Return the length of the repetition at the end of the text, from the second appearance on; 0 if none."""
    for period, run in islice(_runs(tail, COPIED_TOKENS), 4):  # the nearest is usually right
        if run - period >= COPIED_CHARACTERS or _count_tokens(tail[period - run :]) >= COPIED_TOKENS:
            return run
    for period, run in islice(_runs(shape, COPIED_CHARACTERS), 1):
        numbers = _NUMBER.findall(tail)[::-1]
        run_numbers, shift = numbers[: shape[-run:].count("0")], shape[-period:].count("0")
        changes = sum(a != b for a, b in zip(run_numbers, numbers[shift:], strict=False))
        is_list = run > LISTS * passages * period and _count_tokens(shape[-run:]) >= LIST_TOKENS
        is_paragraph = (
            changes * period <= PARAGRAPH_CHANGES * run
            and _count_tokens(shape[-period:]) >= PARAGRAPH_TOKENS
            and _count_tokens(shape[period - run :]) >= PARAGRAPH_COPIED_TOKENS
        )
        if is_list or is_paragraph:
            return min(run + sum(len(number) - 1 for number in run_numbers), len(tail))
    recent = tail[-PHRASES_WITHIN:]
    starts = range(len(recent) - PHRASES_CHARACTERS, len(recent) - _PHRASE, 8)
    if starts[0] > 0 and all(recent.count(recent[i : i + _PHRASE]) > PHRASES_TIMES for i in starts):
        return PHRASES_CHARACTERS
    return 0


def _runs(text: str, min_copied: int) -> Iterator[tuple[int, int]]:
    """Yield (period, length of the run) at the end of `text` if at least `min_copied` characters are a third copy.

    The shortest period comes first.
    """
    for period in _periods(text, min_copied):

        def differs(length: int, period: int = period) -> bool:
            return text[-length:] != text[-length - period : -period]

        run = period + min_copied
        if run + period <= len(text) and not differs(run):
            yield period, bisect_left(range(len(text) - period + 1), True, lo=run, key=differs) - 1


def _periods(text: str, length: int) -> Iterator[int]:
    """Yield the distances from the last `length` characters to their earlier occurrences, the nearest first."""
    mark, end = text[-length:], len(text)
    while (start := text.rfind(mark, 0, end - 1)) >= 0:
        end = start + len(mark)
        yield len(text) - end


def _count_tokens(text: str) -> int:
    """Estimate the tokens of `text`: words, groups of three digits, marks, and letters of scripts without spaces."""
    return len(_TOKEN.findall(text))


class StopOnRepetition(ModelWrapper):
    """Stop responses of `model` that begin to repeat themselves.

    A stopped response has the `finish_reason` "stopped", and its reasoning and text end where the repetition begins.
    Stopping it saved at most `max_tokens` minus its completion tokens.
    """

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        if request.forced_text is not None:  # nothing is generated
            return await self.model.complete(request, on_chunk)
        passages = max(len(request.context.doc_ids), 1)
        find_in_reasoning, find_in_text = repetition_detector(passages), repetition_detector(passages)
        reasoning_end: int | None = None
        text_end: int | None = None

        def pass_on(chunk: StreamChunk) -> bool:
            nonlocal reasoning_end, text_end
            is_stopped = on_chunk is not None and bool(on_chunk(chunk))
            reasoning_end, text_end = find_in_reasoning(chunk.reasoning), find_in_text(chunk.text)
            return is_stopped or reasoning_end is not None or text_end is not None

        response = await self.model.complete(request, pass_on)
        if reasoning_end is None and text_end is None:
            return response
        reasoning = response.reasoning and response.reasoning[:reasoning_end]
        return replace(response, reasoning=reasoning, text=response.text[:text_end], finish_reason="stopped")
