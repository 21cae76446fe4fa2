"""Parse an answer that has one relevance label per passage, and rank by the labels. Parsing never fails.

    [1] no
    [2] yes
    [3] no

Small distilled models are trained to write such labels (`rank_k.distill.label_traces`). They could also write a
ranking, but the ranking of a small model often contradicts its own labels and adds no information. The labels are
therefore the answer.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from math import exp
from types import MappingProxyType

from rank_k.window.parsing import ParsedAnswer

_LINE = re.compile(r"^\[(\d{1,6})\] (\S+)[ \t]*$", re.MULTILINE)
_MAX_DOUBT = 0.4
"""How far a label's score moves toward the next level if the label's probability is 0.

It is less than half a level, so that a passage with a better label always has a higher score.
"""


def parse_labels(
    text: str, size: int, words: Sequence[str], tokens: Sequence[tuple[str, float]] | None = None
) -> ParsedAnswer:
    """Parse the relevance labels of a window. Never raises, whatever the text.

    Passages with a better label come first. Passages with the best label are ordered by the label's probability, most
    probable first, and passages with the worst label by its probability, least probable first. Other passages with the
    same label are tied. Without `tokens`, all passages with the same label are tied. Only the first label of a passage
    counts. Passages without a label come last in their input order and do not count as compared.

    Args:
        text: The response.
        size: The number of passages in the window.
        words: The labels, worst first.
        tokens: (text, log-probability) of the tokens of `text`, if they are known.
    """
    token_probability = _token_probabilities(text, tokens or ())
    repairs: Counter[str] = Counter()
    scores: dict[int, float] = {}
    for line in _LINE.finditer(text):
        number = int(line[1])
        if line[2] not in words:
            continue
        if not 1 <= number <= size:
            repairs["out_of_range"] += 1
        elif number in scores:
            repairs["repeated"] += 1
        else:
            scores[number] = _score(words.index(line[2]), len(words), token_probability(line.start(2)))
    unlabeled = [number for number in range(1, size + 1) if number not in scores]
    if scores:
        repairs["missing"] = len(unlabeled)
    else:
        repairs["unranked"] = 1
    ranked = sorted(scores, key=lambda number: -scores[number])
    tiers = [tuple(tier) for _, tier in groupby(ranked, key=scores.__getitem__)]
    return ParsedAnswer(
        (*tiers, *((number,) for number in unlabeled)),
        frozenset(scores),
        MappingProxyType(dict(+repairs)),
        bool(scores),
        text,
    )


def _score(level: int, level_count: int, probability: float) -> float:
    doubt = _MAX_DOUBT * (1 - probability)
    if level == level_count - 1:
        return level - doubt
    return level + doubt if level == 0 else float(level)


def _token_probabilities(text: str, tokens: Sequence[tuple[str, float]]) -> Callable[[int], float]:
    """Return a function that maps a position in `text` to the probability of the token there (1 if it is unknown)."""
    token_text = "".join(token for token, _ in tokens)
    offset = token_text.find(text) if text else -1
    starts = list(accumulate((len(token) for token, _ in tokens), initial=0))

    def token_probability(position: int) -> float:
        token_index = bisect_right(starts, position + offset) - 1
        return exp(min(tokens[token_index][1], 0.0)) if offset >= 0 and token_index < len(tokens) else 1.0

    return token_probability
