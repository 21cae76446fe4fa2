"""The grammar of an answer: a ranking of exactly the passages shown, ties included, and nothing else. Pure.

    [3] > [2] = [4] > [1]

One language, written in the two ways that servers take. Where no more than `MAX_EXACT_SIZE` passages are shown,
`gbnf` also sees to it that each id stands there once; that takes a rule for every set of ids still to come, 2^n
of them, so a larger window, and `regex` always, asks for as many ids as there are passages, each of 1..size, and
leaves "each id once" to the parser, which counts what is missing and what is repeated.

Before the first bracket there may be one blank, one newline or two: models are trained to end their reasoning
with "\\n\\n", in many tokenizers a token of its own, and forbidding it would move them off what they know. More
than that there may not be, and nothing may follow the last bracket: a model held to the grammar has to end there.

GBNF is the notation of llama.cpp, and by the documentation of XGrammar, the default of vLLM and SGLang, its EBNF
as well, so there is no third way to write it. LLGuidance, the other choice of both servers, documents Lark
instead; a regular expression is what all of them read, hence `regex` for those two.
"""

from __future__ import annotations

import re
from functools import lru_cache

from rank_k.errors import InputError

MAX_EXACT_SIZE = 8
"""Passages up to which `gbnf` admits permutations only: 2^8 rules are 15 kB of grammar; each further passage
more than doubles that, and it travels with every request."""

_LEADING_WHITESPACE = r'(" " | "\n" "\n"?)?'


@lru_cache(maxsize=64)
def ranking_gbnf(size: int) -> str:
    """The grammar for a window of `size` passages, in GBNF; its first rule is `root`.

    Raises `InputError` if `size` is less than 1.
    """
    _check_size(size)
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
    """The same for servers that take a regular expression (without anchors: they match the whole reply).

    Each of `size` ids is one of 1..size; that none is repeated is not asked, which no short expression could.
    Raises `InputError` if `size` is less than 1.
    """
    _check_size(size)
    numeral = f"(?:{'|'.join(_number_alternatives(size))})"
    other_ids = rf"(?: [>=] \[{numeral}\]){{{size - 1}}}" if size > 1 else ""
    return rf"(?: |\n\n?)?\[{numeral}\]{other_ids}"


def matches_grammar(text: str, size: int, *, each_once: bool = False) -> bool:
    """Whether an answer, without its reasoning, is one that the grammar admits.

    For telling that a server has held its model to what was asked, rather than ignored it. `each_once` asks for
    a permutation too, which only `gbnf` of `MAX_EXACT_SIZE` passages or fewer promises.
    """
    if re.fullmatch(ranking_regex(size), text) is None:
        return False
    return not each_once or len(set(re.findall(r"\d+", text))) == size


def _check_size(size: int) -> None:
    if size < 1:
        raise InputError(f"a ranking of {size} passages has no grammar", "give 1 or more")


def _permutation_rules(size: int) -> str:
    """A rule for every set of ids still to come, named by the set as a bit mask.

    The opening bracket is written before a set's rule, so that all of its alternatives begin with a digit.
    """
    all_ids = (1 << size) - 1
    rules = [f'root ::= {_LEADING_WHITESPACE} "[" s{all_ids}', 'x ::= " > [" | " = ["']
    for remaining in range(all_ids, 0, -1):
        ids = [i for i in range(1, size + 1) if remaining >> (i - 1) & 1]
        successors = [remaining & ~(1 << (i - 1)) for i in ids]
        # every set can come up: what is left after k ids may be any set of size - k
        alternatives = (
            f'"{i}]"' + (f" x s{successor}" if successor else "") for i, successor in zip(ids, successors, strict=True)
        )
        rules.append(f"s{remaining} ::= {' | '.join(alternatives)}")
    return "\n".join(rules if size > 1 else [rules[0], rules[2]])


def _number_alternatives(size: int) -> list[str]:
    """Alternatives that together are 1..size, in digit classes alone, which GBNF and regular expressions share."""
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
