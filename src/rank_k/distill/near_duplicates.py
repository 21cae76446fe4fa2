"""Texts that are the same, or nearly: to keep evaluation queries out of training data, and repetitions."""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from zlib import crc32

SHINGLE = 3
CONTAMINATED = 0.75
"""Likeness from which a query counts as one of those that must not be trained on: low, for leaving one out too many
costs nothing."""
REPEATED = 0.9
"""Likeness from which one query repeats another: high, for questions from one mould ("what causes X") differ by it."""

_NO_WORD = re.compile(r"[\W_]+")


def normalized(text: str) -> str:
    """Lower case, compatible characters made one (NFKC), punctuation gone, words with one blank between."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


class NearDuplicateIndex:
    """Remembers texts and finds the one that another text repeats.

    Two texts are near if their *likeness* is at least `likeness`: the Jaccard coefficient of the sets of their
    character trigrams, normalized. Trigrams serve scripts without blanks between words, and inflection.
    """

    def __init__(self, likeness: float) -> None:
        self._likeness = likeness
        self._shingles: list[array[int]] = []
        self._names: list[str] = []
        self._counts: Counter[int] = Counter()
        self._rarity: dict[int, int] = {}  # the counts as they were when the index was last made
        self._holders: dict[int, list[int]] = {}  # shingle -> texts among whose rarest it is

    def __len__(self) -> int:
        return len(self._names)

    def add(self, text: str, name: str) -> None:
        shingles = _shingles(text)
        self._shingles.append(shingles)
        self._names.append(name)
        self._counts.update(shingles)
        count = len(self._names)
        if count & (count - 1):
            self._index(count - 1)
        else:  # twice as many as last time: another look at which ones are rare
            self._rarity, self._holders = dict(self._counts), {}
            for number in range(count):
                self._index(number)

    def find(self, text: str) -> str | None:
        """The name of a text that is near `text`: the first one added; None if there is none."""
        shingles = _shingles(text)
        mine = set(shingles)
        seen = {number for shingle in self._rarest(shingles) for number in self._holders.get(shingle, ())}
        least, most = self._likeness * len(mine), len(mine) / self._likeness
        for number in sorted(seen):
            other = self._shingles[number]
            if least <= len(other) <= most:
                common = len(mine.intersection(other))
                if common >= self._likeness * (len(mine) + len(other) - common):
                    return self._names[number]
        return None

    def _index(self, number: int) -> None:
        for shingle in self._rarest(self._shingles[number]):
            self._holders.setdefault(shingle, []).append(number)

    def _rarest(self, shingles: array[int]) -> list[int]:
        """The rarest shingles of a text, so many that two near texts must share one (the prefix filter of Chaudhuri,
        Ganti and Kaushik, ICDE 2006)."""
        count = len(shingles) - math.ceil(self._likeness * len(shingles)) + 1
        return sorted(shingles, key=lambda shingle: (self._rarity.get(shingle, 0), shingle))[:count]


def _shingles(text: str) -> array[int]:
    """The trigrams of `text`, each once, as checksums."""
    text = f" {normalized(text)} "
    parts = {text[i : i + SHINGLE] for i in range(max(len(text) - SHINGLE + 1, 1))}
    return array("I", {crc32(part.encode("utf-8", "surrogatepass")) for part in parts})
