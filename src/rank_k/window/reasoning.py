"""What thinking may cost: how much a window is allowed, and when to think at all. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, isnan
from typing import Literal

from rank_k.errors import InputError
from rank_k.types import Window, WindowRanking


@dataclass(frozen=True, slots=True)
class ReasoningMode:
    """`full`: as the model likes. `off`: the answer at once. `budget`: at most `tokens` reasoning tokens a window.
    `auto`: the answer at once, and a thought where it pays."""

    kind: Literal["full", "off", "auto", "budget"] = "full"
    tokens: int | None = None

    @classmethod
    def parse(cls, text: str) -> ReasoningMode:
        """ "full", "off", "auto", or a number of tokens such as "500" or "2k" (2,000). Raises `InputError`."""
        word = text.strip().lower()
        if word in ("full", "off", "auto"):
            return cls(word)  # type: ignore[arg-type]
        found = re.fullmatch(r"(\d{1,9})(k?)", word)
        tokens = int(found[1]) * (1000 if found[2] else 1) if found else 0
        if tokens < 1:
            raise InputError(
                f"reasoning is {text!r}", "write full, off, auto, or reasoning tokens per window such as 500"
            )
        return cls("budget", tokens)

    def __str__(self) -> str:
        return self.kind if self.tokens is None else str(self.tokens)


@dataclass(frozen=True, slots=True)
class AutoReasoningPolicy:
    """When a thought pays. Defaults: chosen by `benchmarks/auto_thinking.py`, see docs/thinking.md.

    `cut`: the rank that matters. `head`: a window that can still move ranks below this one is ranked directly, since
    later windows show its best again; of the nine windows that slide over 100 candidates the last four are within 50.
    `least`: below this confidence of the direct order a window is thought about.
    """

    top_k: int = 10
    max_rank: int = 50
    min_confidence: float = 0.9

    def places(self, window: Window) -> int:
        """How many of the first places of `window` can still be ranks down to the cut; 0: it cannot touch the top."""
        return min(max(self.top_k - window.rank_range[0] + 1, 0), len(window.doc_ids))


def should_reason(window: Window, sure: float | None, rule: AutoReasoningPolicy) -> bool:
    """Whether to think about `window`, whose direct order is `sure`, from 0 to 1 (None: cannot be told).

    A pure function of what is given: nothing is learnt from other windows, so that a replay decides alike. What the
    thought finds is not to replace the direct order but to stand beside it (two orders in one outcome).
    """
    return (
        rule.places(window) > 0
        and window.rank_range[1] <= rule.max_rank
        and (sure is None or sure < rule.min_confidence)
    )


_CHAIN = re.compile(r"\[\d{1,4}\](?:[\s>=,]*\[\d{1,4}\])*")
_ID = re.compile(r"\[(\d{1,4})\]")


def confidence(tokens: Sequence[tuple[str, float]], size: int, cut: int = 10) -> float | None:
    """How sure a model was of the first `cut` ids of its answer, 0 to 1: the geometric mean of their probabilities.

    `tokens` are (text, natural log-probability) of the reply, in any tokenization. The answer is the longest chain of
    ids in it, the last where several are. An id's probability is that of all tokens which it touches, its closing
    bracket included: `[1]` and `[10]` begin alike. Ids outside 1..size and repeated ids are passed over. None if fewer
    than two ids are spelt, or where a probability is no number. Never raises.
    """
    text = "".join(piece for piece, _ in tokens)
    answer = _longest_chain(text, size)
    if len(answer) < 2:
        return None
    found: list[float] = []
    token = 0
    end = len(tokens[0][0])  # of `token`, in `text`
    for id_start, id_end in answer[: max(cut, 1)]:
        while end <= id_start:
            token += 1
            end += len(tokens[token][0])
        total = tokens[token][1]
        while end < id_end:
            token += 1
            end += len(tokens[token][0])
            total += tokens[token][1]
        found.append(min(total, 0.0))
    mean = sum(found) / len(found)
    return None if isnan(mean) else exp(mean)


def _longest_chain(text: str, size: int) -> list[tuple[int, int]]:
    """(start, end) in `text` of each id of the answer, at its first mention."""
    longest: list[tuple[int, int]] = []
    for chain in _CHAIN.finditer(text):
        first: dict[int, tuple[int, int]] = {}
        for mention in _ID.finditer(text, chain.start(), chain.end()):
            if 1 <= int(mention[1]) <= size:
                first.setdefault(int(mention[1]), mention.span())
        if len(first) >= len(longest):
            longest = list(first.values())
    return longest


def agreement(one: WindowRanking, other: WindowRanking, cut: int = 10) -> float:
    """How far two orders of one window agree near its head, from 0 (no more than by chance) to 1.

    Kendall's tau, nothing below 0, over the pairs of which one passage or both are among the first `cut` of either
    order. A pair that only one of them ties counts as chance does; a pair that both tie, or with a passage that one of
    them did not place, does not count. 0 where no pair is left: nothing was told apart.
    """
    placed = one.ranked_ids & other.ranked_ids
    if not one.is_valid or not other.is_valid:
        return 0.0
    tier_in_one = {doc_id: n for n, tier in enumerate(one.tiers) for doc_id in tier}
    tier_in_other = {doc_id: n for n, tier in enumerate(other.tiers) for doc_id in tier}
    near = {*one.doc_ids[:cut], *other.doc_ids[:cut]}
    agreed = pairs = 0
    for a, b in combinations(placed, 2):
        if a not in near and b not in near:
            continue
        in_one, in_other = tier_in_one[a] - tier_in_one[b], tier_in_other[a] - tier_in_other[b]
        if in_one or in_other:
            pairs += 1
            product = in_one * in_other
            agreed += (product > 0) - (product < 0)
    return max(agreed / pairs, 0.0) if pairs else 0.0
