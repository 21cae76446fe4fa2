"""A `RepetitionTracker` at a fraction of its cost: looks closely only at text that compresses like text that repeats
itself.

Most thoughts never go in circles, and reading them token by token to be sure of that would be a quarter of what a
call costs. A thought that does so compresses well, and to find that out takes a third of the time.
"""

from __future__ import annotations

import zlib

from rank_k.window.repetition import RepetitionTracker

STEP = 256
"""Characters between looks."""

LOOKS = ((640, 1, 0.40), (2_000, 2, 0.30), (6_000, 3, 0.26), (24_000, 4, 0.24))
"""(characters of the tail, steps between looks, ratio): a tail that zlib shrinks below the ratio is suspicious. Short
tails see short circles, soon; long ones those whose every round is long. Ordinary prose stays above all of them; every
loop in `tests/traces` falls below one."""

SHORT_RATIO = 0.5
"""The ratio for texts shorter than the first tail, which shrink less."""


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
        if self._fresh < STEP:
            return False
        steps = self._fresh // STEP
        self._tail = (self._tail + "".join(self._recent))[-LOOKS[-1][0] :]
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
        for length, every, ratio in LOOKS:
            due = self._steps // every > before // every
            if due and len(self._tail) > shorter:
                whole = len(self._tail) < LOOKS[0][0]
                raw = self._tail[-length:].encode("utf-8", "replace")
                if _compressed(raw) < (SHORT_RATIO if whole else ratio) * len(raw):
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
