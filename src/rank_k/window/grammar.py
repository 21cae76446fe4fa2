"""The grammar of an answer: a ranking of exactly the passages shown, ties included, and nothing else. Pure.

    [3] > [2] = [4] > [1]

One language, written in the two ways that servers take. Where no more than `EXACT_UP_TO` passages are shown,
`gbnf` also sees to it that each id stands there once; that takes a rule for every set of ids still to come, 2^n
of them, so a larger window, and `regex` always, asks for as many ids as there are passages, each of 1..size, and
leaves "each id once" to the parser, which counts what is missing and what is repeated.

Before the first bracket there may be one blank, one newline or two: models are trained to leave the thought
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

EXACT_UP_TO = 8
"""Passages up to which `gbnf` admits permutations only: 2^8 rules are 15 kB of grammar; each further passage
more than doubles that, and it travels with every request."""

_LEAD = r'(" " | "\n" "\n"?)?'


@lru_cache(maxsize=64)
def gbnf(size: int) -> str:
    """The grammar for a window of `size` passages, in GBNF; its first rule is `root`.

    Raises `InputError` if `size` is less than 1.
    """
    _check(size)
    if size <= EXACT_UP_TO:
        return _permutations(size)
    return "\n".join(
        (
            f'root ::= {_LEAD} "[" id "]" (" " [>=] " [" id "]"){{{size - 1}}}',
            f"id ::= {' | '.join(_numerals(size))}",
        )
    )


@lru_cache(maxsize=64)
def regex(size: int) -> str:
    """The same for servers that take a regular expression (without anchors: they match the whole reply).

    Each of `size` ids is one of 1..size; that none is repeated is not asked, which no short expression could.
    Raises `InputError` if `size` is less than 1.
    """
    _check(size)
    numeral = f"(?:{'|'.join(_numerals(size))})"
    more = rf"(?: [>=] \[{numeral}\]){{{size - 1}}}" if size > 1 else ""
    return rf"(?: |\n\n?)?\[{numeral}\]{more}"


def follows(text: str, size: int, *, each_once: bool = False) -> bool:
    """Whether an answer, the thought taken off, is one that the grammar admits.

    For telling that a server has held its model to what was asked, rather than ignored it. `each_once` asks for
    a permutation too, which only `gbnf` of `EXACT_UP_TO` passages or fewer promises.
    """
    if re.fullmatch(regex(size), text) is None:
        return False
    return not each_once or len(set(re.findall(r"\d+", text))) == size


def _check(size: int) -> None:
    if size < 1:
        raise InputError(f"a ranking of {size} passages has no grammar", "give 1 or more")


def _permutations(size: int) -> str:
    """A rule for every set of ids still to come, named by the set as a bit mask.

    The opening bracket is written before a set's rule, so that all of its alternatives begin with a digit.
    """
    everything = (1 << size) - 1
    rules = [f'root ::= {_LEAD} "[" s{everything}', 'x ::= " > [" | " = ["']
    for left in range(everything, 0, -1):
        ids = [i for i in range(1, size + 1) if left >> (i - 1) & 1]
        rest = [left & ~(1 << (i - 1)) for i in ids]
        # every set can come up: what is left after k ids may be any set of size - k
        alternatives = (f'"{i}]"' + (f" x s{after}" if after else "") for i, after in zip(ids, rest, strict=True))
        rules.append(f"s{left} ::= {' | '.join(alternatives)}")
    return "\n".join(rules if size > 1 else [rules[0], rules[2]])


def _numerals(size: int) -> list[str]:
    """Alternatives that together are 1..size, in digit classes alone, which GBNF and regular expressions share."""
    alternatives = []
    for length in range(1, len(str(size)) + 1):
        last = str(min(size, 10**length - 1))
        for place, digit in enumerate(last):  # as `last` before this place, less at it (at the end also equal)
            low, high = int(place == 0), int(digit) - int(place < length - 1)
            if low <= high:
                before = "".join(f"[{same}]" for same in last[:place])
                here = f"[{low}-{high}]" if low < high else f"[{low}]"
                alternatives.append(before + here + "[0-9]" * (length - place - 1))
    return alternatives
