"""Texts that are the same, or nearly: to keep evaluation queries out of training data, and repetitions."""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from zlib import crc32

SHINGLE_LENGTH = 3
CONTAMINATION_SIMILARITY = 0.75
"""Similarity from which a query counts as one of those that must not be trained on: low, since leaving out one too
many costs nothing."""
DUPLICATE_SIMILARITY = 0.9
"""Similarity from which a query repeats another: high, since different questions ("what causes X") are similar too."""

_NON_WORD = re.compile(r"[\W_]+")


def normalize_text(text: str) -> str:
    """Lower case, compatible characters made one (NFKC), punctuation gone, words with one blank between."""
    return _NON_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


class NearDuplicateIndex:
    """Remembers texts and finds the one that another text repeats.

    Two texts are near if their *similarity* is at least `similarity`: the Jaccard coefficient of the sets of their
    character trigrams, normalized. Trigrams serve scripts without blanks between words, and inflection.
    """

    def __init__(self, similarity: float) -> None:
        self._min_similarity = similarity
        self._trigram_hashes: list[array[int]] = []
        self._names: list[str] = []
        self._shingle_counts: Counter[int] = Counter()
        self._shingle_counts_at_rebuild: dict[int, int] = {}  # the counts as they were when the index was last made
        self._texts_by_shingle: dict[int, list[int]] = {}  # shingle -> texts among whose rarest it is

    def __len__(self) -> int:
        return len(self._names)

    def add(self, text: str, name: str) -> None:
        shingles = _trigram_hashes(text)
        self._trigram_hashes.append(shingles)
        self._names.append(name)
        self._shingle_counts.update(shingles)
        count = len(self._names)
        if count & (count - 1):
            self._index_text(count - 1)
        else:  # twice as many as last time: another look at which ones are rare
            self._shingle_counts_at_rebuild, self._texts_by_shingle = dict(self._shingle_counts), {}
            for index in range(count):
                self._index_text(index)

    def find(self, text: str) -> str | None:
        """The name of a text that is near `text`: the first one added; None if there is none."""
        shingles = _trigram_hashes(text)
        shingle_set = set(shingles)
        candidate_indices = {
            index for shingle in self._rarest_shingles(shingles) for index in self._texts_by_shingle.get(shingle, ())
        }
        min_size, max_size = self._min_similarity * len(shingle_set), len(shingle_set) / self._min_similarity
        for index in sorted(candidate_indices):
            other = self._trigram_hashes[index]
            if min_size <= len(other) <= max_size:
                shared_count = len(shingle_set.intersection(other))
                if shared_count >= self._min_similarity * (len(shingle_set) + len(other) - shared_count):
                    return self._names[index]
        return None

    def _index_text(self, index: int) -> None:
        for shingle in self._rarest_shingles(self._trigram_hashes[index]):
            self._texts_by_shingle.setdefault(shingle, []).append(index)

    def _rarest_shingles(self, shingles: array[int]) -> list[int]:
        """The rarest shingles of a text, so many that two near texts must share one (the prefix filter of Chaudhuri,
        Ganti and Kaushik, ICDE 2006)."""
        count = len(shingles) - math.ceil(self._min_similarity * len(shingles)) + 1
        return sorted(shingles, key=lambda shingle: (self._shingle_counts_at_rebuild.get(shingle, 0), shingle))[:count]


def _trigram_hashes(text: str) -> array[int]:
    """The trigrams of `text`, each once, as checksums."""
    text = f" {normalize_text(text)} "
    trigrams = {text[i : i + SHINGLE_LENGTH] for i in range(max(len(text) - SHINGLE_LENGTH + 1, 1))}
    return array("I", {crc32(trigram.encode("utf-8", "surrogatepass")) for trigram in trigrams})
