"""The grammar of an answer: a ranking of the passages of a window, with possible ties, and nothing else.

    [3] > [2] = [4] > [1]

`ranking_gbnf` and `ranking_regex` return the grammar in the two notations that servers accept.

For windows of at most `MAX_EXACT_SIZE` passages, `ranking_gbnf` accepts only answers that contain each id exactly once.
This needs one rule for every set of remaining ids (2^n rules for n passages). For larger windows, and always in
`ranking_regex`, the grammar only requires n ids between 1 and n. The parser then counts missing and repeated ids.

A space, a newline or two newlines may come before the first bracket. Models are trained to end their reasoning with
"\\n\\n", which is one token in many tokenizers, and an answer without it would be unusual for them. Nothing may follow
the last bracket, so constrained decoding ends there.

GBNF is the notation of llama.cpp. vLLM and SGLang use XGrammar by default, which documents the notation EBNF, or
LLGuidance, which documents the notation Lark. All of them accept regular expressions, so `ranking_regex` is used for
vLLM and SGLang.

This module does no I/O.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_EXACT_SIZE = 8
"""The largest window for which `ranking_gbnf` accepts only permutations. Its 2^8 rules take 15 kB. Each further passage
more than doubles this size, and every request contains the grammar."""

_LEADING_WHITESPACE = r'(" " | "\n" "\n"?)?'


@lru_cache(maxsize=64)
def ranking_gbnf(size: int) -> str:
    """Return the grammar for a window of `size` passages in GBNF. The first rule is `root`."""
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

    It matches `size` ids between 1 and `size`. Ids may be repeated, because no short expression excludes that.
    """
    numeral = f"(?:{'|'.join(_number_alternatives(size))})"
    other_ids = rf"(?: [>=] \[{numeral}\]){{{size - 1}}}" if size > 1 else ""
    return rf"(?: |\n\n?)?\[{numeral}\]{other_ids}"


def matches_grammar(text: str, size: int, *, each_once: bool = False) -> bool:
    """Return whether the grammar accepts an answer. If it does not, the server has not applied the grammar.

    Args:
        text: The answer, without the reasoning.
        size: The number of passages in the window.
        each_once: Also require that each id appears once, as `ranking_gbnf` does for up to `MAX_EXACT_SIZE` passages.
    """
    if re.fullmatch(ranking_regex(size), text) is None:
        return False
    return not each_once or len(set(re.findall(r"\d+", text))) == size


def _permutation_rules(size: int) -> str:
    """Return a grammar with one rule for every set of remaining ids. The name of a rule contains its set as a bit mask.

    The opening bracket before an id belongs to the preceding rule, so all alternatives of a rule begin with a digit.
    """
    all_ids = (1 << size) - 1
    rules = [f'root ::= {_LEADING_WHITESPACE} "[" s{all_ids}', 'x ::= " > [" | " = ["']
    for remaining in range(all_ids, 0, -1):
        ids = [i for i in range(1, size + 1) if remaining >> (i - 1) & 1]
        successors = [remaining & ~(1 << (i - 1)) for i in ids]
        # Every rule is used: after k ids, any set of size - k ids may remain.
        alternatives = (
            f'"{i}]"' + (f" x s{successor}" if successor else "") for i, successor in zip(ids, successors, strict=True)
        )
        rules.append(f"s{remaining} ::= {' | '.join(alternatives)}")
    return "\n".join(rules if size > 1 else [rules[0], rules[2]])


def _number_alternatives(size: int) -> list[str]:
    """Return alternatives that together match 1 to `size`, as digit classes that are valid in GBNF and in regexes."""
    alternatives = []
    for length in range(1, len(str(size)) + 1):
        largest = str(min(size, 10**length - 1))
        # The numbers of an alternative equal `largest` before `position` and are less at `position`. At the last
        # position, they may also equal it.
        for position, digit in enumerate(largest):
            low, high = int(position == 0), int(digit) - int(position < length - 1)
            if low <= high:
                prefix = "".join(f"[{prefix_digit}]" for prefix_digit in largest[:position])
                digit_class = f"[{low}-{high}]" if low < high else f"[{low}]"
                alternatives.append(prefix + digit_class + "[0-9]" * (length - position - 1))
    return alternatives
