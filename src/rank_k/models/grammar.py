"""The grammar of an answer: a ranking of exactly the passages of a window, ties included, and nothing else. Pure.

    [3] > [2] = [4] > [1]

One language, in the two notations that servers accept. With at most `MAX_EXACT_SIZE` passages, `ranking_gbnf` also
ensures that each id appears once. That takes a rule for every set of remaining ids, 2^n rules, so for larger windows,
and always in `ranking_regex`, the grammar has as many ids as there are passages, each of 1..size. The parser then
counts which ids are missing or repeated.

A space, a newline or two newlines may come before the first bracket: models are trained to end their reasoning with
"\\n\\n", which is one token in many tokenizers, and forbidding it would move them away from what they know. Nothing may
follow the last bracket, so that constrained decoding has to end there.

GBNF is the notation of llama.cpp. The documentation of XGrammar, the default of vLLM and SGLang, calls it EBNF.
LLGuidance, the other choice of both servers, documents Lark instead. A regular expression is what all of them read,
hence `ranking_regex` for those two servers.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_EXACT_SIZE = 8
"""Passages up to which `ranking_gbnf` accepts permutations only: 2^8 rules are 15 kB of grammar. Each further passage
more than doubles that, and the grammar is part of every request."""

_LEADING_WHITESPACE = r'(" " | "\n" "\n"?)?'


@lru_cache(maxsize=64)
def ranking_gbnf(size: int) -> str:
    """Return the grammar for a window of `size` passages in GBNF; its first rule is `root`."""
    if size <= MAX_EXACT_SIZE:
        return _permutation_rules(size)
    return "\n".join(
        (
            f'root ::= {_LEADING_WHITESPACE} "[" id "]" (" " [>=] " [" id "]"){{{size - 1}}}',
            f"id ::= {' | '.join(_number_alternatives(size))}",
        )
    )


@lru_cache(maxsize=64)
def ranking_regex(size: int) -> str:
    """Return a regular expression without anchors, for servers that match the whole response.

    Each of `size` ids is one of 1..size. Ids may be repeated: no short expression excludes that.
    """
    numeral = f"(?:{'|'.join(_number_alternatives(size))})"
    other_ids = rf"(?: [>=] \[{numeral}\]){{{size - 1}}}" if size > 1 else ""
    return rf"(?: |\n\n?)?\[{numeral}\]{other_ids}"


def matches_grammar(text: str, size: int, *, each_once: bool = False) -> bool:
    """Return whether the grammar accepts an answer (without its reasoning): whether the server applied the grammar.

    `each_once`: also require a permutation, which only `ranking_gbnf` of at most `MAX_EXACT_SIZE` passages ensures.
    """
    if re.fullmatch(ranking_regex(size), text) is None:
        return False
    return not each_once or len(set(re.findall(r"\d+", text))) == size


def _permutation_rules(size: int) -> str:
    """Return a rule for every set of remaining ids, named by the set as a bit mask.

    The rule before a set's rule contains the opening bracket, so that all alternatives of a set begin with a digit.
    """
    all_ids = (1 << size) - 1
    rules = [f'root ::= {_LEADING_WHITESPACE} "[" s{all_ids}', 'x ::= " > [" | " = ["']
    for remaining in range(all_ids, 0, -1):
        ids = [i for i in range(1, size + 1) if remaining >> (i - 1) & 1]
        successors = [remaining & ~(1 << (i - 1)) for i in ids]
        # Every set is reachable: after k ids, any set of size - k may remain.
        alternatives = (
            f'"{i}]"' + (f" x s{successor}" if successor else "") for i, successor in zip(ids, successors, strict=True)
        )
        rules.append(f"s{remaining} ::= {' | '.join(alternatives)}")
    return "\n".join(rules if size > 1 else [rules[0], rules[2]])


def _number_alternatives(size: int) -> list[str]:
    """Return alternatives that together match 1..size, as digit classes, which GBNF and regular expressions share."""
    alternatives = []
    for length in range(1, len(str(size)) + 1):
        largest = str(min(size, 10**length - 1))
        for position, digit in enumerate(
            largest
        ):  # equal to `largest` before this position, less at it (at the end also equal)
            low, high = int(position == 0), int(digit) - int(position < length - 1)
            if low <= high:
                prefix = "".join(f"[{prefix_digit}]" for prefix_digit in largest[:position])
                digit_class = f"[{low}-{high}]" if low < high else f"[{low}]"
                alternatives.append(prefix + digit_class + "[0-9]" * (length - position - 1))
    return alternatives
