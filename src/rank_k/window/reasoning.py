"""Decide for which windows a model should reason in the reasoning mode "auto". This module does no I/O."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from math import exp, isnan

from rank_k.types import Window, WindowRanking


@dataclass(frozen=True, slots=True)
class AutoReasoningPolicy:
    """The rules by which the mode "auto" reasons about a window. `benchmarks/auto_thinking.py` measured the defaults.

    Attributes:
        top_k: Only windows that can change the first `top_k` ranks are reasoned about.
        max_rank: Windows that reach below this rank are ranked without reasoning, because later windows contain their
            best passages again. Of the nine sliding windows over 100 candidates, the last four do not reach below 50.
        min_confidence: A window is reasoned about if the confidence of its direct ranking, from 0 to 1, is lower.
    """

    top_k: int = 10
    max_rank: int = 50
    min_confidence: float = 0.9

    def positions_in_top_k(self, window: Window) -> int:
        """Return how many positions of `window` can still be among the first `top_k` ranks; 0 if none can."""
        return min(max(self.top_k - window.rank_range[0] + 1, 0), len(window.doc_ids))


def should_reason(window: Window, direct_confidence: float | None, policy: AutoReasoningPolicy) -> bool:
    """Return whether to reason about `window` after it was ranked directly, which means without reasoning.

    The decision depends only on the arguments, so a replay of the run makes the same decision. The ranking after
    reasoning does not replace the direct one: the window's result has both.

    Args:
        window: The window.
        direct_confidence: The confidence of its direct ranking, from 0 to 1; None if it is unknown.
        policy: The thresholds.
    """
    return (
        policy.positions_in_top_k(window) > 0
        and window.rank_range[1] <= policy.max_rank
        and (direct_confidence is None or direct_confidence < policy.min_confidence)
    )


_CHAIN = re.compile(r"\[\d{1,4}\](?:[\s>=,]*\[\d{1,4}\])*")
_ID = re.compile(r"\[(\d{1,4})\]")


def answer_confidence(tokens: Sequence[tuple[str, float]], size: int, top_k: int = 10) -> float | None:
    """Return the confidence in the first `top_k` ids of an answer: the geometric mean of their probabilities.

    The answer is the longest chain of ids in the response, or the last one of several equally long chains. The
    probability of an id is the product of the probabilities of all tokens that overlap it, including its closing
    bracket, because `[1]` and `[10]` begin with the same characters. Ids outside 1..`size` and repeated ids are
    skipped. Never raises.

    Args:
        tokens: (text, natural log-probability) of the tokens of the response, in any tokenization.
        size: The number of passages in the window.
        top_k: The number of ids that count.

    Returns:
        A number from 0 to 1, or None if the answer has fewer than two ids or a probability is not a number.
    """
    text = "".join(piece for piece, _ in tokens)
    id_spans = _find_id_spans(text, size)
    if len(id_spans) < 2:
        return None
    ends = list(accumulate(len(piece) for piece, _ in tokens))  # of each token, in `text`
    log_probabilities = []
    for id_start, id_end in id_spans[: max(top_k, 1)]:
        first, last = bisect_right(ends, id_start), bisect_left(ends, id_end)
        log_probabilities.append(min(sum(value for _, value in tokens[first : last + 1]), 0.0))
    mean = sum(log_probabilities) / len(log_probabilities)
    return None if isnan(mean) else exp(mean)


def _find_id_spans(text: str, size: int) -> list[tuple[int, int]]:
    """Return (start, end) in `text` of the first mention of each id of the answer."""
    longest: list[tuple[int, int]] = []
    for chain in _CHAIN.finditer(text):
        spans: dict[int, tuple[int, int]] = {}
        for mention in _ID.finditer(text, chain.start(), chain.end()):
            if 1 <= int(mention[1]) <= size:
                spans.setdefault(int(mention[1]), mention.span())
        if len(spans) >= len(longest):
            longest = list(spans.values())
    return longest


def ranking_agreement(first: WindowRanking, second: WindowRanking, top_k: int = 10) -> float:
    """Return how well two rankings of a window agree about its top, from 0 (no better than random rankings) to 1.

    This is Kendall's tau, raised to at least 0, over the pairs with at least one passage among the first `top_k` of
    either ranking. A pair that only one ranking ties counts as neither agreement nor disagreement. Pairs that both tie,
    and pairs with a passage that is unranked in either, are left out. Without any pair, or if a ranking is invalid, the
    result is 0.
    """
    common_ids = first.ranked_ids & second.ranked_ids
    if not first.is_valid or not second.is_valid:
        return 0.0
    first_tiers = {doc_id: n for n, tier in enumerate(first.tiers) for doc_id in tier}
    second_tiers = {doc_id: n for n, tier in enumerate(second.tiers) for doc_id in tier}
    top_ids = {*first.doc_ids[:top_k], *second.doc_ids[:top_k]}
    balance = pairs = 0
    for a, b in combinations(common_ids, 2):
        if a not in top_ids and b not in top_ids:
            continue
        first_difference, second_difference = first_tiers[a] - first_tiers[b], second_tiers[a] - second_tiers[b]
        if first_difference or second_difference:
            pairs += 1
            product = first_difference * second_difference
            balance += (product > 0) - (product < 0)
    return max(balance / pairs, 0.0) if pairs else 0.0
