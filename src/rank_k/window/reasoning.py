"""How much a window may reason, and when it should reason at all. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from math import exp, isnan

from rank_k.options import ReasoningMode as ReasoningMode
from rank_k.types import Window, WindowRanking


@dataclass(frozen=True, slots=True)
class AutoReasoningPolicy:
    """When to reason. Defaults: chosen by `benchmarks/auto_thinking.py`, see docs/results/reasoning.md.

    `top_k`: the rank that matters. `max_rank`: a window that can still move ranks below this one is ranked directly,
    since later windows show its best again; of the nine windows that slide over 100 candidates the last four are within
    50. `min_confidence`: a window is ranked with reasoning when the confidence of its direct ranking is below this.
    """

    top_k: int = 10
    max_rank: int = 50
    min_confidence: float = 0.9

    def positions_in_top_k(self, window: Window) -> int:
        """How many of the first places of `window` can still be ranks down to the cut; 0: it cannot touch the top."""
        return min(max(self.top_k - window.rank_range[0] + 1, 0), len(window.doc_ids))


def should_reason(window: Window, direct_confidence: float | None, policy: AutoReasoningPolicy) -> bool:
    """Whether to reason about `window`. `direct_confidence`: of its direct ranking, from 0 to 1 (None: unknown).

    A pure function of what is given: nothing is learnt from other windows, so that a replay decides alike. The
    ranking after reasoning does not replace the direct one: the result holds both.
    """
    return (
        policy.positions_in_top_k(window) > 0
        and window.rank_range[1] <= policy.max_rank
        and (direct_confidence is None or direct_confidence < policy.min_confidence)
    )


_CHAIN = re.compile(r"\[\d{1,4}\](?:[\s>=,]*\[\d{1,4}\])*")
_ID = re.compile(r"\[(\d{1,4})\]")


def answer_confidence(tokens: Sequence[tuple[str, float]], size: int, top_k: int = 10) -> float | None:
    """How sure a model was of the first `top_k` ids of its answer, 0 to 1: the geometric mean of their probabilities.

    `tokens` are (text, natural log-probability) of the reply, in any tokenization. The answer is the longest chain of
    ids in it, the last where several are. An id's probability is that of all tokens which it touches, its closing
    bracket included: `[1]` and `[10]` begin alike. Ids outside 1..size and repeated ids are passed over. None if fewer
    than two ids are spelt, or where a probability is no number. Never raises.
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
    """(start, end) in `text` of each id of the answer, at its first mention."""
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
    """How far two orders of one window agree near its head, from 0 (no more than by chance) to 1.

    Kendall's tau, nothing below 0, over the pairs of which one passage or both are among the first `top_k` of either
    order. A pair that only one of them ties counts as chance does; a pair that both tie, or with a passage that one of
    them did not place, does not count. 0 where no pair is left: nothing was told apart.
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
