"""Detect near-duplicate texts: evaluation queries in the training data, and repeated training queries."""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

from rank_k.data.queries import read_queries

CONTAMINATION_SIMILARITY = 0.75
"""Minimum similarity of a training query to an excluded query. It is low, because losing a few rows hardly matters."""
DUPLICATE_SIMILARITY = 0.9
"""Minimum similarity of repeated queries. It is high, because different queries can be similar ("what causes ...")."""

_NON_WORD = re.compile(r"[\W_]+")


def normalize_text(text: str) -> str:
    """Return the words of `text`, NFKC-normalized, in lower case, without punctuation, separated by single spaces."""
    return _NON_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


class NearDuplicateIndex:
    """An index of texts that finds near duplicates of a text.

    Two texts are near duplicates if the Jaccard coefficient of their sets of character trigrams, after
    normalization, is at least `similarity`. Trigrams also work for inflected words, and for scripts without spaces
    between words.

    Two texts are compared only if they share one of their rarest trigrams. The number of rarest trigrams per text is
    chosen such that any two near duplicates share at least one of them (the prefix filter of Chaudhuri, Ganti and
    Kaushik, ICDE 2006). Each time the number of texts has doubled, the index is rebuilt with the current trigram
    frequencies.

    Args:
        similarity: The minimum Jaccard coefficient of near duplicates.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._names: list[str] = []
        self._trigrams: list[array[int]] = []
        self._frequencies: Counter[int] = Counter()
        self._indexed_frequencies: Counter[int] = Counter()  # at the last rebuild
        self._texts_by_trigram: dict[int, list[int]] = {}

    def add(self, text: str, name: str) -> None:
        """Add a text. `find` returns its `name`."""
        trigrams = _trigram_hashes(text)
        self._names.append(name)
        self._trigrams.append(trigrams)
        self._frequencies.update(trigrams)
        count = len(self._names)
        new_texts = range(count - 1, count)
        if count & (count - 1) == 0:  # a power of two
            self._indexed_frequencies, self._texts_by_trigram = self._frequencies.copy(), {}
            new_texts = range(count)
        for index in new_texts:
            for trigram in self._rarest(self._trigrams[index]):
                self._texts_by_trigram.setdefault(trigram, []).append(index)

    def find(self, text: str) -> str | None:
        """Return the name of a near duplicate of `text`: the one that was added first, or None if there is none."""
        trigrams = _trigram_hashes(text)
        trigram_set = set(trigrams)
        candidates = {index for trigram in self._rarest(trigrams) for index in self._texts_by_trigram.get(trigram, ())}
        for index in sorted(candidates):
            other = self._trigrams[index]
            if self._similarity * max(len(other), len(trigrams)) <= min(len(other), len(trigrams)):
                shared = len(trigram_set.intersection(other))
                if shared >= self._similarity * (len(trigrams) + len(other) - shared):
                    return self._names[index]
        return None

    def _rarest(self, trigrams: array[int]) -> list[int]:
        count = len(trigrams) - math.ceil(self._similarity * len(trigrams)) + 1
        return sorted(trigrams, key=lambda trigram: (self._indexed_frequencies[trigram], trigram))[:count]


def read_excluded_queries(files: Iterable[Path]) -> NearDuplicateIndex:
    """Return an index of the queries in `files`, which are to be excluded from the training data."""
    index = NearDuplicateIndex(CONTAMINATION_SIMILARITY)
    for file in files:
        for query in read_queries(file).values():
            index.add(query.text, f"{file}: {query.query_id}")
    return index


def _trigram_hashes(text: str) -> array[int]:
    """Return the checksums of the distinct trigrams in a text."""
    text = f" {normalize_text(text)} "
    trigrams = {text[i : i + 3] for i in range(max(len(text) - 2, 1))}
    return array("I", {crc32(trigram.encode("utf-8", "surrogatepass")) for trigram in trigrams})
