"""Passages that carry marks, and the oracle that ranks windows of them.

Everything that looks random is a hash of the window's contents (the marks of its passages, in the order shown), so that
every client, and the simulation in `benchmarks.ideal`, meets the same latencies, traces and faults.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from rank_k.types import Candidate, Passage, Query, Run

MARK = re.compile(r"mark:([\w.]+(?:-[\w.]+)*)")
_GRADE_PATTERN = re.compile(r"-G(\d+)$")
_PASSAGE_LINE_PATTERN = re.compile(r"^\[(\d+)\] (?![>=])(.+)$", re.MULTILINE)


class Dataset(NamedTuple):
    """Queries with a first-stage run and judgments that the oracle agrees with entirely."""

    queries: tuple[Query, ...]
    passages: Mapping[str, Passage]
    run: Run
    qrels: Mapping[str, Mapping[str, int]]

    def marks(self, query_id: str, doc_ids: Iterable[str]) -> tuple[str, ...]:
        """Return the marks of the passages of a window."""
        return tuple(f"{doc_id}-G{self.qrels[query_id][doc_id]}" for doc_id in doc_ids)

    def perfect(self, query_id: str) -> list[str]:
        """The best ranking there is; equal grades in first-stage order."""
        grades = self.qrels[query_id]
        return sorted((c.doc_id for c in self.run[query_id]), key=lambda doc_id: -grades[doc_id])


def make_dataset(n_queries: int, n_passages: int, seed: int = 0, *, strict: bool = False, words: int = 60) -> Dataset:
    """Queries `Q00`, `Q01`, ... with `n_passages` candidates each, in random first-stage order.

    Grades per query: 2 passages of grade 3, 4 of grade 2, 8 of grade 1, the others 0; with `strict`, all
    different (n_passages - 1 down to 0), so that there is only one perfect ranking. `words`: the length of
    a passage; its mark comes first, where no truncation reaches it.
    """
    rng = random.Random(f"{seed}:{n_queries}:{n_passages}")
    queries, passages, run, qrels = [], {}, {}, {}
    vocabulary = [a + b for a in ("ba", "ke", "mi", "no", "su", "té") for b in ("lar", "ven", "dos", "rim")]
    for number in range(n_queries):
        query_id = f"Q{number:02d}"
        queries.append(Query(query_id, f"query {number}: which passage has the highest grade?"))
        best_first = [f"{query_id}-D{index:03d}" for index in range(n_passages)]
        rng.shuffle(best_first)
        default_grades = [3] * 2 + [2] * 4 + [1] * 8 + [0] * n_passages
        grades = range(n_passages - 1, -1, -1) if strict else default_grades[:n_passages]
        qrels[query_id] = dict(zip(best_first, grades, strict=True))
        for doc_id, grade in sorted(qrels[query_id].items()):
            text = " ".join(rng.choices(vocabulary, k=words))
            passages[doc_id] = Passage(doc_id, f"mark:{doc_id}-G{grade} {text}")
        first_stage = rng.sample(best_first, n_passages)
        run[query_id] = [Candidate(doc_id, float(n_passages - i)) for i, doc_id in enumerate(first_stage)]
    return Dataset(tuple(queries), passages, run, qrels)


def passage_marks(messages: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The marks of the passages `[1] ...`, `[2] ...` that the user's messages show, one per line.

    Of several such lists the longest counts: a ranking given as an example is not one. A passage without
    `mark:` is its own mark.
    """
    longest: list[str] = []
    for message in messages:
        if message.get("role") != "user" or not isinstance(message.get("content"), str):
            continue
        marks: list[str] = []
        for line in _PASSAGE_LINE_PATTERN.finditer(message["content"]):
            if int(line[1]) == 1:
                marks = []
            if int(line[1]) == len(marks) + 1:
                mark = MARK.search(line[2])
                marks.append(mark[1] if mark else line[2].strip())
            if len(marks) > len(longest):
                longest = marks
    return tuple(longest)


def hash_fraction(*names: str) -> float:
    """A number in [0, 1) that is the same for the same strings, on every machine."""
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def mark_relevance(mark: str) -> float:
    """The grade of `...-G2`; for a mark without one, the first 7 bytes of its sha256 as a fraction of 1."""
    grade = _GRADE_PATTERN.search(mark)
    return float(grade[1]) if grade else hash_fraction(mark)


def oracle_tiers(marks: Sequence[str]) -> list[list[int]]:
    """The true order of a window: tiers of 1-based numbers, best first, equal marks tied."""
    numbers = sorted(range(1, len(marks) + 1), key=lambda i: (-mark_relevance(marks[i - 1]), i))
    return [list(tier) for _, tier in itertools.groupby(numbers, key=lambda i: mark_relevance(marks[i - 1]))]


def window_key(marks: Sequence[str]) -> str:
    """Return the name of a window in the log: 16 hex digits of the sha256 of its contents."""
    return hashlib.sha256("\n".join(marks).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@lru_cache(maxsize=4096)
def response_tokens(marks: tuple[str, ...]) -> int:
    """Return the number of tokens of reasoning and answer together.

    Lognormal of mean 430 and sigma 0.5, clipped to 100 .. 2,000; more where the answer alone needs more.
    """
    draw = random.Random(window_key(marks)).lognormvariate(math.log(430) - 0.5**2 / 2, 0.5)
    return max(round(min(max(draw, 100), 2000)), 2 * len(marks) + 20)


def response_latency(marks: tuple[str, ...], first_token: float = 0.2, per_token: float = 0.002) -> float:
    """Return the seconds from the arrival of a request to the end of its response, where nothing fails."""
    return first_token + per_token * response_tokens(marks)
