"""Texts that are the same, or nearly: to keep evaluation queries out of training data, and repetitions."""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from zlib import crc32

SHINGLE = 3
CONTAMINATED = 0.75
"""Likeness from which a query counts as one of those that must not be trained on: low, for leaving one out too many
costs nothing."""
REPEATED = 0.9
"""Likeness from which one query repeats another: high, for questions from one mould ("what causes X") differ by it."""

_NO_WORD = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """Lower case, compatible characters made one (NFKC), punctuation gone, words with one blank between."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


class NearTexts:
    """Remembers texts and finds the one that another text repeats.

    Two texts are near if their *likeness* is at least `likeness`: the Jaccard coefficient of the sets of their
    character trigrams, normalised. Trigrams serve scripts without blanks between words, and inflection.
    """

    def __init__(self, likeness: float) -> None:
        self._likeness = likeness
        self._shingles: list[array[int]] = []
        self._names: list[str] = []
        self._holders: dict[int, list[int]] = {}  # shingle -> texts among whose first it is

    def __len__(self) -> int:
        return len(self._names)

    def add(self, text: str, name: str) -> None:
        shingles = _shingles(text)
        for shingle in self._first(shingles):
            self._holders.setdefault(shingle, []).append(len(self._names))
        self._shingles.append(shingles)
        self._names.append(name)

    def find(self, text: str) -> str | None:
        """The name of a text that is near `text`: the first one added; None if there is none."""
        shingles = _shingles(text)
        mine = set(shingles)
        seen = {number for shingle in self._first(shingles) for number in self._holders.get(shingle, ())}
        for number in sorted(seen):
            other = self._shingles[number]
            if min(len(other), len(mine)) < self._likeness * max(len(other), len(mine)):
                continue
            common = sum(shingle in mine for shingle in other)
            if common >= self._likeness * (len(mine) + len(other) - common):
                return self._names[number]
        return None

    def _first(self, shingles: array[int]) -> array[int]:
        """The first of sorted shingles, so many that near texts must share one (Chaudhuri et al., ICDE 2006)."""
        return shingles[: len(shingles) - math.ceil(self._likeness * len(shingles)) + 1]


def _shingles(text: str) -> array[int]:
    """The trigrams of `text` as numbers, each once, sorted. The numbers are checksums, so that the sorted order is
    one in which no letter comes before another."""
    text = f" {normalised(text)} "
    parts = {text[i : i + SHINGLE] for i in range(max(len(text) - SHINGLE + 1, 1))}
    return array("I", sorted({crc32(part.encode("utf-8", "surrogatepass")) for part in parts}))
