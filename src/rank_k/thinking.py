"""What thinking may cost: how much a window is allowed, and when to think at all. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal

from rank_k.errors import InputError
from rank_k.records import Order, Window


@dataclass(frozen=True, slots=True)
class Think:
    """`full`: as the model likes. `off`: the answer at once. `budget`: at most `tokens` reasoning tokens a window.
    `auto`: the answer at once, and a thought where it pays."""

    kind: Literal["full", "off", "auto", "budget"] = "full"
    tokens: int | None = None

    @classmethod
    def parse(cls, text: str) -> Think:
        """ "full", "off", "auto", or a number of tokens such as "500" or "2k"."""
        if text in ("full", "off", "auto"):
            return cls(text)  # type: ignore[arg-type]
        found = re.fullmatch(r"(\d{1,9})(k?)", text.strip().lower())
        tokens = int(found[1]) * (1000 if found[2] else 1) if found else 0
        if tokens < 1:
            raise InputError(f"think is {text!r}", "write full, off, auto, or reasoning tokens per window such as 500")
        return cls("budget", tokens)

    def __str__(self) -> str:
        return self.kind if self.tokens is None else str(self.tokens)


@dataclass(frozen=True, slots=True)
class AutoRule:
    """When a thought pays. `cut`: the rank that matters. `least`: below this confidence of the direct order a
    window is thought about."""

    cut: int = 10
    least: float = 0.5


def pays(window: Window, sure: float | None, rule: AutoRule) -> bool:
    """Whether to think about `window`, whose direct order is `sure` (None: cannot be told)."""
    best, _ = window.reach
    return best <= rule.cut and (sure is None or sure < rule.least)


def confidence(tokens: Sequence[tuple[str, float]], size: int, cut: int = 10) -> float | None:
    """How sure a model was of the first `cut` ids of its answer: the geometric mean of their probabilities.

    `tokens` are (text, log-probability) of the answer's tokens, in any tokenisation. An id's probability is that of
    all tokens which it touches, its closing bracket included: `[1]` and `[10]` begin alike. None if no id of
    1..size is spelt.
    """
    text = "".join(piece for piece, _ in tokens)
    ends: list[int] = []
    length = 0
    for piece, _ in tokens:
        length += len(piece)
        ends.append(length)
    found: list[float] = []
    first = 0
    for match in re.finditer(r"\[(\d{1,4})\]", text):
        if not 1 <= int(match[1]) <= size:
            continue
        while first < len(ends) and ends[first] <= match.start():
            first += 1
        last = first
        total = tokens[last][1]
        while ends[last] < match.end():
            last += 1
            total += tokens[last][1]
        found.append(min(total, 0.0))
        if len(found) == cut:
            break
    return exp(sum(found) / len(found)) if found else None


def agreement(one: Order, other: Order, cut: int = 10) -> float:
    """How far two orders of a window agree near its head: the mean overlap of their first 1, 2, ... `cut` ids.

    1 if they agree on all, 0 where one of them is no order.
    """
    if not one.ranked or not other.ranked:
        return 0.0
    a, b = one.doc_ids, other.doc_ids
    depths = range(1, min(cut, len(a)) + 1)
    return sum(len(set(a[:k]) & set(b[:k])) / k for k in depths) / len(depths)
