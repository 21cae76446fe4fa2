"""Verdicts as an answer: what a student says of each passage -> the order that follows. Pure, total.

    [1] no
    [2] yes
    [3] no

Students of one word a passage (`rank_k.distill.label_traces`) end with an order too, but a small one writes an order
that does not follow from its own verdicts, and nothing in it that the verdicts do not say already. So the verdicts,
which such a student was trained to give and nothing else, are the answer, and the order is not asked for.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, groupby
from math import exp
from types import MappingProxyType

from rank_k.window.parsing import ParsedAnswer

_LINE = re.compile(r"^\[(\d{1,6})\] (\S+)[ \t]*$", re.MULTILINE)
_DOUBT = 0.4
"""How far a verdict that is not sure at all stands from one that is, on the way to the next: less than half."""


def parse_labels(
    said: str, size: int, words: Sequence[str], tokens: Sequence[tuple[str, float]] | None = None
) -> ParsedAnswer:
    """Read verdicts on a window of `size` passages. Never raises, whatever the text.

    `words`: the verdicts, worst first; `tokens`: (text, log-probability) of the tokens of `said`, if they are known.
    Passages of the better verdict come first. Of one verdict, those come first of which the model was the surer that
    it is the best, the less sure that it is the worst; in between, and without `tokens`, they are tied. The first
    verdict on a passage counts; passages without one come last, as they stood, and are no evidence.
    """
    chances = _Chances(said, tokens or ())
    repairs: Counter[str] = Counter()
    scores: dict[int, float] = {}
    for line in _LINE.finditer(said):
        number = int(line[1])
        if line[2] not in words:
            continue
        if not 1 <= number <= size:
            repairs["out_of_range"] += 1
        elif number in scores:
            repairs["repeated"] += 1
        else:
            scores[number] = _score(words.index(line[2]), len(words), chances(line.start(2)))
    rest = [number for number in range(1, size + 1) if number not in scores]
    if scores:
        repairs["missing"] = len(rest)
    else:
        repairs["unranked"] = 1
    ranked = sorted(scores, key=lambda number: -scores[number])
    tiers = [tuple(tier) for _, tier in groupby(ranked, key=scores.__getitem__)]
    return ParsedAnswer(
        (*tiers, *((number,) for number in rest)),
        frozenset(scores),
        MappingProxyType(dict(+repairs)),
        bool(scores),
        said,
    )


def _score(level: int, levels: int, chance: float) -> float:
    doubt = _DOUBT * (1 - chance)
    if level == levels - 1:
        return level - doubt
    return level + doubt if level == 0 else float(level)


class _Chances:
    """The probability of the token that holds a place of the text; 1 where that is not known."""

    def __init__(self, said: str, tokens: Sequence[tuple[str, float]]) -> None:
        self._tokens = tokens
        told = "".join(text for text, _ in tokens)
        offset = told.find(said) if said else -1
        self._starts = [end - offset for end in accumulate((len(text) for text, _ in tokens), initial=0)]
        self._known = offset >= 0

    def __call__(self, place: int) -> float:
        number = bisect_right(self._starts, place) - 1
        if not self._known or not 0 <= number < len(self._tokens):
            return 1.0
        return exp(min(self._tokens[number][1], 0.0))
