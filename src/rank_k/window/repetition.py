"""Detect, while a reasoning trace streams in, that it has begun to repeat itself. Pure.

`RepetitionTracker` reads the text token by token. `RepetitionDetector` gives the same result at a third of the cost: it
passes text to a tracker only after the text has become as compressible as repetitive text is. Most traces never do.

The text is read as words, numbers and marks, and letter by letter in scripts that do not divide words: about as
many tokens as a model makes of it. Blank space does not count. Where the same eight tokens stand as stood not long
ago, a *run* is followed: the stretch in which every token is the one a fixed `lag` before, numbers taken for alike.
When a run is a loop, the constants below say; the last of them is for what repeats without a fixed lag.

Ordinary reasoning sets the limits. A trace may go through its list twice, so repeating a text once is never a loop.
A list of labels is the same sentence again and again with other numbers, so a run in which numbers change may be as
long as two lists. A new word ends a run: "[1] is about cats, [2] is about dogs" is none.

Time is linear, about half a microsecond a character of English and two of Chinese; the state is a third of a
megabyte, however long the text.
"""

from __future__ import annotations

import re
import zlib
from array import array
from dataclasses import dataclass, replace
from functools import lru_cache

from rank_k.models.base import ModelWrapper
from rank_k.types import OnChunk, Request, Response, StreamChunk

MAX_PERIOD_TOKENS = 2048
"""The longest period that is detected: about 1,600 English words. A trace of 8,000 tokens holds what repeats at a
longer distance two or three times at most, which looks the same as reading the passages again."""

REPEATED_TAIL_TOKENS = 100
REPEATED_TAIL_CHARACTERS = 400
"""Tokens, or characters, of a third verbatim repetition that make a loop. No ordinary trace repeats so much three
times, and both stay within the 256 model tokens in which a loop must be detected. The characters count where words are
long, as in German and Russian, and where there are few words or none, such as an endless line of dashes."""

CHANGED_TAIL_TOKENS = 160
MAX_CHANGED_NUMBERS = 2
MIN_PARAGRAPH_TOKENS = 64
"""A paragraph of at least `MIN_PARAGRAPH_TOKENS` tokens (about 50 words) that repeats with at most
`MAX_CHANGED_NUMBERS` numbers changed each time is a loop when `CHANGED_TAIL_TOKENS` tokens of it appear a third time. A
shorter one may be the sentence that a plain list repeats for every passage."""

MAX_LISTS = 2
MIN_LIST_TOKENS = 512
"""The same sentence with other numbers is a loop when it appears more than `MAX_LISTS` times per passage of the window
and for at least `MIN_LIST_TOKENS` tokens. Going through all passages one by one, twice, is ordinary reasoning, and so
is a matrix of small numbers."""

STALE_TOKENS = 256
MIN_STALE_REPEATS = 3
NEW_TOKEN_WEIGHT = 16
"""A few sentences that repeat in no fixed order are a loop when each of `STALE_TOKENS` consecutive tokens has appeared
in the same context `MIN_STALE_REPEATS` times before. A token that has not subtracts `NEW_TOKEN_WEIGHT` from that
count."""

CHECK_INTERVAL = 256
"""Characters between two checks."""

TAIL_CHECKS = ((640, 1, 0.40), (2_000, 2, 0.30), (6_000, 3, 0.26), (24_000, 4, 0.24))
"""(characters of the tail, intervals between checks, ratio): a tail that zlib compresses below the ratio is suspicious.
Short tails reveal short loops early; long tails reveal loops with a long period. Ordinary prose stays above every
ratio; every loop in `tests/window/traces` falls below one."""

SHORT_TEXT_RATIO = 0.5
"""The ratio for texts shorter than the first tail, which shrink less."""

_UNSPACED_SCRIPTS = (  # Thai to Tibetan, Burmese, Khmer, kana, ideographs, Hangul, ideographs beyond the basic plane
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = rf"[^\W\d_{_UNSPACED_SCRIPTS}]"
_TOKEN = re.compile(
    rf"""
      {_WORD}{{1,24}}+(?!{_WORD})   # a word; a longer one goes letter by letter, as those of _UNSPACED_SCRIPTS
    | \d{{1,3}}                     # a number, or three digits of one
    | ([^\w\s\u2600-\U0010ffff]|_)\1{{0,23}}  # a mark, or a line of it; an emoji is a word
    | \s{{32}}                      # endless blank space counts as tokens
    | \S
    """,
    re.VERBOSE,
)

# A rolling hash of the last eight tokens in 64 bits: each token shifts it by a byte, so that the ninth last token is
# shifted out. The upper bits, which depend on all eight tokens, are the index into the table.
_HASH_MULTIPLIER = 0x9E3779B97F4A7C15  # odd; 2^64 by the golden ratio, whose multiples fall far from each other
_SHIFTED_MULTIPLIER = _HASH_MULTIPLIER << 8
_NUMBER_CODE = _HASH_MULTIPLIER
_HASH_MASK = (1 << 64) - 1
_TABLE_SIZE = 1 << 13  # four times the longest period, so that most are found where they were put
_INDEX_SHIFT = 64 - 13
_MAX_RUNS = 8  # at a time; more than two is rare


class RepetitionTracker:
    """Read a reasoning trace piece by piece and report where it begins to repeat itself.

    `passages`: how many the window shows; a list of so many lines is no loop, however alike they are.
    `start`: where the repetition begins, in characters: `text[:start]` is the trace with the repeated
    text in it once. `period`: characters after which it says the same again. Both None until a loop is seen. How the
    text is cut into pieces changes nothing but that a loop is seen at the end of a piece.
    """

    def __init__(self, passages: int = 20) -> None:
        self.start: int | None = None
        self.period: int | None = None
        self._passages = passages
        self._unfinished_token = ""  # the beginning of a token that may go on
        self._read_characters = 0  # characters before it
        self._token_count = 0  # tokens
        self._exact_codes = array("Q")  # the last tokens, as they are
        self._shape_codes = array("Q")  # and with all numbers alike
        self._token_ends = array("Q")  # where each ends
        self._hash_table = array("Q", bytes(8 * _TABLE_SIZE))
        self._hash_positions = array("Q", bytes(8 * _TABLE_SIZE))
        self._repeat_counts = bytearray(_TABLE_SIZE)
        self._exact_hash = self._shape_hash = 0
        self._runs: list[_Run] = []
        self._stale_tokens = 0
        self._stale_start = 0

    def feed(self, text: str) -> bool:
        """Read the next piece. Return True once the trace repeats itself; later pieces are ignored."""
        if self.start is not None:
            return True
        text = self._unfinished_token + text
        consumed = 0
        for match in _TOKEN.finditer(text):
            end = match.end()
            if end == len(text):
                break  # it may go on
            consumed = end
            if self._add_token(match.group(), self._read_characters + end):
                self._unfinished_token = ""
                return True
        self._unfinished_token = text[consumed:]
        self._read_characters += consumed
        return False

    def _add_token(self, token: str, end: int) -> bool:
        exact_code, shape_code = _token_codes(token)
        self._exact_codes.append(exact_code)
        self._shape_codes.append(shape_code)
        self._token_ends.append(end)
        self._token_count += 1
        identical = exact_code == shape_code and self._exact_hash == self._shape_hash  # no number among the eight
        self._exact_hash = (self._exact_hash * _SHIFTED_MULTIPLIER + exact_code) & _HASH_MASK
        self._shape_hash = (
            self._exact_hash if identical else (self._shape_hash * _SHIFTED_MULTIPLIER + shape_code) & _HASH_MASK
        )
        if self._runs and self._extend_runs(exact_code, shape_code):
            return True
        repeats = self._record_hash(self._exact_hash)
        if self._shape_hash != self._exact_hash:
            self._record_hash(self._shape_hash)
        if (repeats or self._stale_tokens) and self._is_stale(repeats):
            return True
        if len(self._token_ends) >= 4 * MAX_PERIOD_TOKENS:
            for history in (self._exact_codes, self._shape_codes, self._token_ends):
                del history[: -2 * MAX_PERIOD_TOKENS]
        return False

    def _record_hash(self, hash_value: int) -> int:
        """Store the position of these eight tokens; return how often they appeared recently, at most
        `MIN_STALE_REPEATS`."""
        index = hash_value >> _INDEX_SHIFT
        lag = self._token_count - self._hash_positions[index]
        self._hash_positions[index] = self._token_count
        if self._hash_table[index] != hash_value or lag > MAX_PERIOD_TOKENS:
            self._hash_table[index] = hash_value
            self._repeat_counts[index] = 0
            return 0
        self._start_run(lag)
        repeats = min(self._repeat_counts[index] + 1, MIN_STALE_REPEATS)
        self._repeat_counts[index] = repeats
        return repeats

    def _start_run(self, lag: int) -> None:
        """Follow the run of this lag, unless it is being followed, from where it began."""
        if len(self._runs) >= _MAX_RUNS or any(run.lag == lag for run in self._runs):
            return
        shape_codes, exact_codes = self._shape_codes, self._exact_codes
        first = last = len(shape_codes) - 1
        changes, last_change = 0, -1
        while first >= lag and shape_codes[first] == shape_codes[first - lag]:
            if exact_codes[first] != exact_codes[first - lag]:
                changes += 1
                last_change = max(last_change, first)  # met from the end
            first -= 1
        if first == last:
            return  # other tokens with the same hash
        length = last - first
        identical_length = last - max(first, last_change)
        self._runs.append(
            _Run(
                lag,
                length,
                identical_length,
                changes,
                self._token_ends[first],
                self._token_ends[last - identical_length],
            )
        )

    def _extend_runs(self, exact_code: int, shape_code: int) -> bool:
        """Take the newest token into all runs; whether one of them is a loop."""
        any_ended = False
        for run in self._runs:
            lag = run.lag
            if self._shape_codes[-1 - lag] != shape_code:
                run.lag = 0
                any_ended = True
                continue
            run.length += 1
            if self._exact_codes[-1 - lag] == exact_code:
                run.identical_length += 1
            else:
                run.changed_numbers += 1
                run.identical_length = 0
                run.identical_start = self._token_ends[-1]
            if run.length > lag and self._is_loop(run):
                return True
        if any_ended:
            self._runs = [run for run in self._runs if run.lag]
        return False

    def _is_loop(self, run: _Run) -> bool:
        lag, end = run.lag, self._token_ends[-1]
        if run.identical_length >= lag:
            characters = end - self._token_ends[-1 - lag]
            if (
                run.identical_length >= lag + REPEATED_TAIL_TOKENS
                or end - run.identical_start >= characters + REPEATED_TAIL_CHARACTERS
            ):
                return self._set_repetition(run.identical_start, characters)
        if (
            lag >= MIN_PARAGRAPH_TOKENS
            and run.length >= lag + CHANGED_TAIL_TOKENS
            and run.changed_numbers * lag <= MAX_CHANGED_NUMBERS * run.length
        ):
            return self._set_repetition(run.start, end - self._token_ends[-1 - lag])
        if run.length >= MIN_LIST_TOKENS and run.length > MAX_LISTS * self._passages * lag:
            return self._set_repetition(run.start, end - self._token_ends[-1 - lag])
        return False

    def _is_stale(self, repeats: int) -> bool:
        if repeats < MIN_STALE_REPEATS:
            self._stale_tokens = max(0, self._stale_tokens - NEW_TOKEN_WEIGHT)
            return False
        if not self._stale_tokens:
            self._stale_start = self._token_ends[-1]
        self._stale_tokens += 1
        # there is no one period: what is said again is in what was said since
        return self._stale_tokens >= STALE_TOKENS and self._set_repetition(
            self._stale_start, self._token_ends[-1] - self._stale_start
        )

    def _set_repetition(self, start: int, period: int) -> bool:
        self.start, self.period = start, period
        return True


@dataclass(slots=True)
class _Run:
    """A stretch in which every token is the one `lag` before, numbers taken for alike.

    `length`: of the stretch, in tokens. `identical_length`: how many of the last tokens are identical, numbers
    included. `changed_numbers`: how many numbers differ. `start`, `identical_start`: where the two stretches begin, in
    characters.
    """

    lag: int
    length: int
    identical_length: int
    changed_numbers: int
    start: int
    identical_start: int


@lru_cache(maxsize=8192)
def _token_codes(token: str) -> tuple[int, int]:
    """A token as a number that is the same in every process, and the same with all numbers alike."""
    code = zlib.crc32(token.encode("utf-8", "surrogatepass")) * _HASH_MULTIPLIER & _HASH_MASK
    return code, _NUMBER_CODE if token[0].isdecimal() else code


class RepetitionDetector:
    """Detect the same repetitions as a `RepetitionTracker`, up to 1,024 characters later and at lower cost."""

    def __init__(self, passages: int = 20) -> None:
        self._passages = passages
        self._tracker: RepetitionTracker | None = None  # created on demand: it takes a third of a megabyte
        self._unread_pieces: list[str] = []  # not yet passed to the tracker
        self._recent_pieces: list[str] = []  # since the last check
        self._tail = ""
        self._recent_length = 0  # characters in `_recent_pieces`
        self._interval_count = 0

    @property
    def start(self) -> int | None:
        """Where the repetition begins, in characters; None while there is none."""
        return self._tracker.start if self._tracker else None

    def feed(self, text: str) -> bool:
        """Read the next piece of the trace. Return True once it repeats itself."""
        if self.start is not None:
            return True
        self._unread_pieces.append(text)
        self._recent_pieces.append(text)
        self._recent_length += len(text)
        if self._recent_length < CHECK_INTERVAL:
            return False
        intervals = self._recent_length // CHECK_INTERVAL
        self._tail = (self._tail + "".join(self._recent_pieces))[-TAIL_CHECKS[-1][0] :]
        self._recent_pieces, self._recent_length = [], 0
        previous_count, self._interval_count = self._interval_count, self._interval_count + intervals
        if not self._is_suspicious(previous_count):
            return False
        if self._tracker is None:
            self._tracker = RepetitionTracker(self._passages)
        unread_text, self._unread_pieces = "".join(self._unread_pieces), []
        return self._tracker.feed(unread_text)

    def _is_suspicious(self, previous_count: int) -> bool:
        shorter_length = 0
        for length, interval, ratio in TAIL_CHECKS:
            is_due = self._interval_count // interval > previous_count // interval
            if is_due and len(self._tail) > shorter_length:
                is_short = len(self._tail) < TAIL_CHECKS[0][0]
                tail_bytes = self._tail[-length:].encode("utf-8", "replace")
                if _compressed_size(tail_bytes) < (SHORT_TEXT_RATIO if is_short else ratio) * len(tail_bytes):
                    return True
            shorter_length = length
        return False


class StopOnRepetition(ModelWrapper):
    """Stop responses of `model` that begin to repeat themselves.

    A stopped response has the `finish_reason` "stopped", and its reasoning and text end where the repetition begins.
    Stopping it saved up to `max_tokens` less its completion tokens.
    """

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        if request.forced_text is not None:  # nothing is generated
            return await self.model.complete(request, on_chunk)
        passages = max(len(request.context.doc_ids), 1)
        reasoning_detector, text_detector = RepetitionDetector(passages), RepetitionDetector(passages)

        def pass_on(chunk: StreamChunk) -> bool:
            is_stopped = on_chunk is not None and bool(on_chunk(chunk))
            if chunk.reasoning and reasoning_detector.feed(chunk.reasoning):
                is_stopped = True
            if chunk.text and text_detector.feed(chunk.text):
                is_stopped = True
            return is_stopped

        response = await self.model.complete(request, pass_on)
        reasoning_end, text_end = reasoning_detector.start, text_detector.start
        if reasoning_end is None and text_end is None:
            return response
        reasoning = response.reasoning and response.reasoning[:reasoning_end]
        return replace(response, reasoning=reasoning, text=response.text[:text_end], finish_reason="stopped")


def _compressed_size(data: bytes) -> int:
    """Return the size of `data` after fast zlib compression.

    The zlib window is no larger than `data`: allocating a full one can take ten times as long as reading a short tail.
    """
    window_bits = min(max(len(data).bit_length(), 9), 15)  # as a power of two
    deflate = zlib.compressobj(1, zlib.DEFLATED, window_bits, memLevel=min(window_bits - 7, 8))
    return len(deflate.compress(data)) + len(deflate.flush())
