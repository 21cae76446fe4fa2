"""Detect, while a reasoning trace streams in, that it has begun to repeat itself. Pure.

`RepetitionTracker` reads the text token by token. `RepetitionDetector` gives the same result at a third of the cost: it
passes text to a tracker only after the text has become as compressible as repetitive text is. Most traces never do.

The text is read as words, numbers and marks, and letter by letter in scripts that do not divide words: about as
many tokens as a model makes of it. Blank space does not count. Where the same eight tokens stand as stood not long
ago, a *run* is followed: the stretch in which every token is the one a fixed `lag` before, numbers taken for alike.
When a run is a loop, the constants below say; the last of them is for what repeats without a fixed lag.

What is honest sets the limits. A thought may read its list twice, so saying all of something twice is never a
loop. A list of verdicts is the same sentence again and again with other numbers, so a run in which numbers
change may be as long as two lists. A new word ends a run: "[1] is about cats, [2] is about dogs" is none.

Time is linear, about half a microsecond a character of English and two of Chinese; the state is a third of a
megabyte, however long the text.
"""

from __future__ import annotations

import re
import zlib
from array import array
from dataclasses import dataclass
from functools import lru_cache

LONGEST_PERIOD = 2048
"""Tokens, about 1,600 English words. A thought of 8,000 tokens holds what repeats at a longer distance twice or
three times at most, which cannot be told from reading again."""

TAIL = 100
TAIL_CHARACTERS = 400
"""Tokens, or characters, that must be said a third time, word for word, behind a second saying. No thought says so
much three times over, and both stay within the 256 tokens of a model by which a loop has to be noticed: the
characters where words are long, as in German and Russian, and for what has few words or none, such as a line of
dashes without end."""

CHANGED_TAIL = 160
CHANGES = 2
SHORTEST_PARAGRAPH = 64
"""A paragraph of at least `SHORTEST_PARAGRAPH` tokens (about 50 words) that comes again with at most `CHANGES`
numbers changed in each saying is a loop when `CHANGED_TAIL` tokens of it are said a third time. A shorter one may
be the sentence that a plain list says of every passage."""

LISTS = 2
LEAST_LIST = 512
"""The same sentence with other numbers is a loop when it has come more than `LISTS` times for every passage shown
and for `LEAST_LIST` tokens: going through all passages one by one, and once again, is honest, and so is a matrix
of small numbers."""

STALE = 256
STALE_TIMES = 3
NEWS = 16
"""A few sentences that come again and again without any fixed order are a loop when `STALE` tokens in a row stood
in the same surroundings `STALE_TIMES` times before; a token that did not takes back `NEWS` of them."""

CHECK_INTERVAL = 256
"""Characters between two checks."""

TAIL_CHECKS = ((640, 1, 0.40), (2_000, 2, 0.30), (6_000, 3, 0.26), (24_000, 4, 0.24))
"""(characters of the tail, intervals between checks, ratio): a tail that zlib compresses below the ratio is suspicious.
Short tails reveal short loops early; long tails reveal loops with a long period. Ordinary prose stays above every ratio;
every loop in `tests/window/traces` falls below one."""

SHORT_TEXT_RATIO = 0.5
"""The ratio for texts shorter than the first tail, which shrink less."""

_ONE_BY_ONE = (  # Thai to Tibetan, Burmese, Khmer, kana, ideographs, Hangul, ideographs beyond the basic plane
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = rf"[^\W\d_{_ONE_BY_ONE}]"
_TOKEN = re.compile(
    rf"""
      {_WORD}{{1,24}}+(?!{_WORD})   # a word; a longer one goes letter by letter, as those of _ONE_BY_ONE
    | \d{{1,3}}                     # a number, or three digits of one
    | ([^\w\s\u2600-\U0010ffff]|_)\1{{0,23}}  # a mark, or a line of it; an emoji is a word
    | \s{{32}}                      # so much of nothing is something: blank lines without end
    | \S
    """,
    re.VERBOSE,
)

# Eight tokens leave their trace in 64 bits: with each token the sum is shifted by a byte, so that the ninth last
# is shifted out. The upper bits, which all eight reach, give the place in the table.
_SPREAD = 0x9E3779B97F4A7C15  # odd; 2^64 by the golden ratio, whose multiples fall far from each other
_SHIFT = _SPREAD << 8
_NUMBER = _SPREAD
_BITS = (1 << 64) - 1
_PLACES = 1 << 13  # four times the longest period, so that most are found where they were put
_PLACE = 64 - 13
_RUNS = 8  # at a time; more than two is rare


class RepetitionTracker:
    """Fed with a thought piece by piece, says from which moment on it repeats itself.

    `passages`: how many the window shows; a list of so many lines is no loop, however alike they are.
    `start`: where the repetition begins, in characters: `text[:start]` is the thought with what is repeated in
    it once. `period`: characters after which it says the same again. Both None until a loop is seen. How the
    text is cut into pieces changes nothing but that a loop is seen at the end of a piece.
    """

    def __init__(self, passages: int = 20) -> None:
        self.start: int | None = None
        self.period: int | None = None
        self._passages = passages
        self._pending = ""  # the beginning of a token that may go on
        self._read = 0  # characters before it
        self._count = 0  # tokens
        self._exact = array("Q")  # the last tokens, as they are
        self._shapes = array("Q")  # and with all numbers alike
        self._ends = array("Q")  # where each ends
        self._sums = array("Q", bytes(8 * _PLACES))
        self._places = array("Q", bytes(8 * _PLACES))
        self._times = bytearray(_PLACES)
        self._exact_sum = self._shape_sum = 0
        self._runs: list[_Run] = []
        self._stale = 0
        self._stale_start = 0

    def feed(self, text: str) -> bool:
        """Read on. True from the moment the thought is seen to repeat itself; what comes later is not read."""
        if self.start is not None:
            return True
        text = self._pending + text
        taken = 0
        for match in _TOKEN.finditer(text):
            end = match.end()
            if end == len(text):
                break  # it may go on
            taken = end
            if self._take(match.group(), self._read + end):
                self._pending = ""
                return True
        self._pending = text[taken:]
        self._read += taken
        return False

    def _take(self, token: str, end: int) -> bool:
        exact, shape = _codes(token)
        self._exact.append(exact)
        self._shapes.append(shape)
        self._ends.append(end)
        self._count += 1
        identical = exact == shape and self._exact_sum == self._shape_sum  # no number among the eight
        self._exact_sum = (self._exact_sum * _SHIFT + exact) & _BITS
        self._shape_sum = self._exact_sum if identical else (self._shape_sum * _SHIFT + shape) & _BITS
        if self._runs and self._follow(exact, shape):
            return True
        times = self._note(self._exact_sum)
        if self._shape_sum != self._exact_sum:
            self._note(self._shape_sum)
        if (times or self._stale) and self._is_stale(times):
            return True
        if len(self._ends) >= 4 * LONGEST_PERIOD:
            for kept in (self._exact, self._shapes, self._ends):
                del kept[: -2 * LONGEST_PERIOD]
        return False

    def _note(self, trace: int) -> int:
        """Remember where these eight tokens stand; how often they stood elsewhere lately, at most `STALE_TIMES`."""
        place = trace >> _PLACE
        lag = self._count - self._places[place]
        self._places[place] = self._count
        if self._sums[place] != trace or lag > LONGEST_PERIOD:
            self._sums[place] = trace
            self._times[place] = 0
            return 0
        self._begin(lag)
        times = min(self._times[place] + 1, STALE_TIMES)
        self._times[place] = times
        return times

    def _begin(self, lag: int) -> None:
        """Follow the run of this lag, unless it is being followed, from where it began."""
        if len(self._runs) >= _RUNS or any(run.lag == lag for run in self._runs):
            return
        shapes, exact = self._shapes, self._exact
        first = here = len(shapes) - 1
        changes, last_change = 0, -1
        while first >= lag and shapes[first] == shapes[first - lag]:
            if exact[first] != exact[first - lag]:
                changes += 1
                last_change = max(last_change, first)  # met from the end
            first -= 1
        if first == here:
            return  # another eight with the same trace
        length = here - first
        same = here - max(first, last_change)
        self._runs.append(_Run(lag, length, same, changes, self._ends[first], self._ends[here - same]))

    def _follow(self, exact: int, shape: int) -> bool:
        """Take the newest token into all runs; whether one of them is a loop."""
        broken = False
        for run in self._runs:
            lag = run.lag
            if self._shapes[-1 - lag] != shape:
                run.lag = 0
                broken = True
                continue
            run.length += 1
            if self._exact[-1 - lag] == exact:
                run.same += 1
            else:
                run.changes += 1
                run.same = 0
                run.same_start = self._ends[-1]
            if run.length > lag and self._is_loop(run):
                return True
        if broken:
            self._runs = [run for run in self._runs if run.lag]
        return False

    def _is_loop(self, run: _Run) -> bool:
        lag, end = run.lag, self._ends[-1]
        if run.same >= lag:
            characters = end - self._ends[-1 - lag]
            if run.same >= lag + TAIL or end - run.same_start >= characters + TAIL_CHARACTERS:
                return self._found(run.same_start, characters)
        if lag >= SHORTEST_PARAGRAPH and run.length >= lag + CHANGED_TAIL and run.changes * lag <= CHANGES * run.length:
            return self._found(run.start, end - self._ends[-1 - lag])
        if run.length >= LEAST_LIST and run.length > LISTS * self._passages * lag:
            return self._found(run.start, end - self._ends[-1 - lag])
        return False

    def _is_stale(self, times: int) -> bool:
        if times < STALE_TIMES:
            self._stale = max(0, self._stale - NEWS)
            return False
        if not self._stale:
            self._stale_start = self._ends[-1]
        self._stale += 1
        # there is no one period: what is said again is in what was said since
        return self._stale >= STALE and self._found(self._stale_start, self._ends[-1] - self._stale_start)

    def _found(self, start: int, period: int) -> bool:
        self.start, self.period = start, period
        return True


@dataclass(slots=True)
class _Run:
    """A stretch in which every token is the one `lag` before, numbers taken for alike.

    `length` of it in tokens; `same`, how many of the last are alike to the letter; `changes`, how many numbers
    are not. `start`, `same_start`: where the two stretches begin, in characters.
    """

    lag: int
    length: int
    same: int
    changes: int
    start: int
    same_start: int


@lru_cache(maxsize=8192)
def _codes(token: str) -> tuple[int, int]:
    """A token as a number that is the same in every process, and the same with all numbers alike."""
    code = zlib.crc32(token.encode("utf-8", "surrogatepass")) * _SPREAD & _BITS
    return code, _NUMBER if token[0].isdecimal() else code


class RepetitionDetector:
    """Fed and asked like a `RepetitionTracker`, with the same verdict; `feed` tells of it up to 1,024 characters
    later."""

    def __init__(self, passages: int = 20) -> None:
        self._passages = passages
        self._watch: RepetitionTracker | None = (
            None  # made when something looks suspicious: it takes a third of a megabyte
        )
        self._unread: list[str] = []  # not yet looked at closely
        self._recent: list[str] = []  # since the last look
        self._tail = ""
        self._fresh = 0  # characters in `_recent`
        self._steps = 0

    @property
    def start(self) -> int | None:
        """Where the repetition begins, in characters; None while there is none."""
        return self._watch.start if self._watch else None

    def feed(self, text: str) -> bool:
        """Take in a piece of the thought; True once it is seen to go in circles."""
        if self.start is not None:
            return True
        self._unread.append(text)
        self._recent.append(text)
        self._fresh += len(text)
        if self._fresh < CHECK_INTERVAL:
            return False
        steps = self._fresh // CHECK_INTERVAL
        self._tail = (self._tail + "".join(self._recent))[-TAIL_CHECKS[-1][0] :]
        self._recent, self._fresh = [], 0
        before, self._steps = self._steps, self._steps + steps
        if not self._is_suspicious(before):
            return False
        if self._watch is None:
            self._watch = RepetitionTracker(self._passages)
        unread, self._unread = "".join(self._unread), []
        return self._watch.feed(unread)

    def _is_suspicious(self, before: int) -> bool:
        shorter = 0
        for length, every, ratio in TAIL_CHECKS:
            due = self._steps // every > before // every
            if due and len(self._tail) > shorter:
                whole = len(self._tail) < TAIL_CHECKS[0][0]
                raw = self._tail[-length:].encode("utf-8", "replace")
                if _compressed(raw) < (SHORT_TEXT_RATIO if whole else ratio) * len(raw):
                    return True
            shorter = length
        return False


def _compressed(raw: bytes) -> int:
    """The length to which zlib, in haste, brings `raw`.

    Its window is no larger than `raw`: to make and clear a full one can take ten times as long as to read a short tail.
    """
    window = min(max(len(raw).bit_length(), 9), 15)  # as a power of two
    deflate = zlib.compressobj(1, zlib.DEFLATED, window, memLevel=min(window - 7, 8))
    return len(deflate.compress(raw)) + len(deflate.flush())
