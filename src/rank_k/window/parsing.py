"""Parse a model's response into a ranking. Parsing never fails, does no I/O, and takes linear time.

Parsing has two steps. First, the reasoning trace is removed, wherever the server put it; digits in truncated reasoning
are never parsed as a ranking. Then, the answer is parsed as *chains*: ids with separators between them, as in
`[3] > [2] = [1]`, `3, 2, 1`, a numbered list or a JSON list. `_choose_chain` describes which chain is the answer.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from rank_k.models.reasoning_trace import split_response


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The answer in a response.

    `tiers`: the numbers of the passages in the window, from 1, best first; the passages of one tier are tied. Each
    number from 1 to the size of the window appears exactly once. `ranked_numbers`: the numbers that the model itself
    ranked. `is_valid`: False if there was no usable answer; `tiers` is then the input order. `trace`: the reasoning
    before the answer, "" if none.
    `repairs`: the number of repairs of each kind: "missing" (ids appended at the end in input order), "repeated"
    (later mentions dropped), "out_of_range" (dropped), "truncated" (reasoning or answer ended by the token limit),
    "unranked" (no usable answer), "unmatched_think_tag" (a closing tag without an opening one).
    """

    tiers: tuple[tuple[int, ...], ...]
    ranked_numbers: frozenset[int]
    repairs: Mapping[str, int]
    is_valid: bool
    trace: str = ""

    @property
    def reasoning_truncated(self) -> bool:
        """Whether the response was truncated before the answer. A forced answer can then help."""
        return not self.is_valid and "truncated" in self.repairs


def parse_ranking(
    text: str | None,
    size: int,
    *,
    reasoning: str | None = None,
    finish_reason: str | None = None,
    reasoning_closed: bool = False,
) -> ParsedAnswer:
    """Parse a response about a window of `size` passages. Never raises, whatever the text.

    `reasoning`: the response's separate reasoning field, if the server has one. `reasoning_closed`: whether the request
    already closed the reasoning. The response then contains only the answer, which may be in either field.
    """
    parts = split_response(text or "", reasoning or "", finish_reason, reasoning_closed)
    repairs: Counter[str] = Counter()
    if parts.unmatched_markers:
        repairs["unmatched_think_tag"] = parts.unmatched_markers
    truncated = parts.reasoning_truncated or finish_reason == "length"
    if truncated:
        repairs["truncated"] = 1
    chain = None
    for answer in () if parts.reasoning_truncated else (parts.answer, parts.alternative):
        chain = chain or _choose_chain(_find_chains(answer, size, truncated), size, truncated)
    tiers: list[tuple[int, ...]] = []
    ranked_ids: set[int] = set()
    for tier in chain.tiers if chain else ():
        tier_ids = []
        for i in tier:
            if not 1 <= i <= size:
                repairs["out_of_range"] += 1
            elif i in ranked_ids:
                repairs["repeated"] += 1
            else:
                ranked_ids.add(i)
                tier_ids.append(i)
        if tier_ids:
            tiers.append(tuple(tier_ids))
    missing = [i for i in range(1, size + 1) if i not in ranked_ids]
    if chain is None:
        repairs["unranked"] = 1
    elif missing:
        repairs["missing"] = len(missing)
    tiers.extend((i,) for i in missing)
    return ParsedAnswer(
        tuple(tiers), frozenset(ranked_ids), MappingProxyType(dict(repairs)), chain is not None, parts.trace
    )


# --- The ranking ---------------------------------------------------------------------------------


_CIRCLED_NUMBERS = (
    *range(0x2460, 0x249C),
    *range(0x24EA, 0x2500),
    *range(0x2776, 0x2794),
    *range(0x3251, 0x3260),
    *range(0x32B1, 0x32C0),
)
_SYMBOLS = {
    **{code: f"[{unicodedata.numeric(chr(code), 0):.0f}]" for code in _CIRCLED_NUMBERS},
    **dict.fromkeys(map(ord, "→➔➜⇒⟶➝≻›»⟩"), ">"),
    **dict.fromkeys(map(ord, "≈≃∼~≡"), "="),
    **dict.fromkeys(map(ord, "、，；،؛;"), ","),
    **dict.fromkeys(map(ord, "【〔「『〈《"), "["),
    **dict.fromkeys(map(ord, "】〕」』〉》"), "]"),
    **dict.fromkeys(map(ord, "*_`$\\{}\"'“”‘’\u200b\u200e\u200f\u2066\u2067\u2068\u2069\ufeff"), " "),
}
_LATEX = re.compile(r"\\(?:(succ|gt|to|rightarrow|Rightarrow)|(sim|approx|simeq))(?![a-z])")
_ENTITY = re.compile(r"&(gt|rarr|equals|nbsp);")
_BREAK_TAG = re.compile(r"<(?:br|/?p|/?li|/?[ou]l|/?tr|/?div)\s*/?>", re.IGNORECASE)
_OTHER_TAG = re.compile(r"</?[a-zA-Z][\w-]{0,20}(?:\s[^<>\n]{0,80})?/?>")
_PARENTHESIS = re.compile(r"\((?=[^()\n]{0,80}(?:[^\W\d_]|\d[.%]))[^()\[\]>=\n]{1,80}\)")  # [3] (0.95) > [1] (partly)
_PASSAGE_LABEL = re.compile(
    r"(?:\b(?:passage|document|doc|text|item|id)|段落|文档|文章|篇章|متن|سند|отрывок|документ|текст)"
    r"\s{0,3}\#?\s{0,3}(?=\[?\d)|\#(?=\d)|(?<=,)\s{0,3}and\b",
    re.IGNORECASE,
)


def _normalize(text: str) -> str:
    """Return `text` with all variants of digits, brackets and separators replaced by a single form."""
    text = _LATEX.sub(lambda m: ">" if m[1] else "=", text)
    text = _ENTITY.sub(lambda m: {"gt": ">", "rarr": ">", "equals": "="}.get(m[1], " "), text)
    text = _OTHER_TAG.sub(" ", _BREAK_TAG.sub("\n", text))
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS)
    return _PASSAGE_LABEL.sub(" ", _PARENTHESIS.sub(" ", text))


_TOKEN = re.compile(
    r"""
    (?P<group>\[\s{0,9}\d{1,9}(?:\s{0,9}[,=]\s{0,9}\d{1,9}){1,999}\s{0,9},?\s{0,9}\])  # [3, 1]
    | (?P<id>\[\s{0,9}\#?-?\d+\s{0,9}\])                                               # [3]
    | (?P<bare>(?:(?<![\w.\-+\[/:%])|(?<=\[)(?=\d+\s{0,9},))\d+(?![\w\-/%°]|[.:]\d))                             # 3
    | (?P<sep>(?:-{1,3}|=)?>+|={1,2}|,)
    | (?P<newline>\r?\n|\r)
    | (?P<blank>[^\S\r\n]+)
    | (?P<closing>[.!:)\]](?=\s|$))                                                     # may end a chain
    | (?P<other>\[|\d+|[^\W\d]+|.)
    """,
    re.VERBOSE,
)
_DIGITS = re.compile(r"-?\d+")
_MAX_ID_DIGITS = 9  # longer numbers are not ids, and int() rejects numbers with thousands of digits


def _parse_id(digits: str) -> int:
    """Return the id written as `digits`, or 0 if it is not valid. No passage has the id 0."""
    return int(digits) if digits.isdecimal() and len(digits) <= _MAX_ID_DIGITS else 0


@dataclass(slots=True)
class _Chain:
    """Consecutive ids with separators between them, and how they were written."""

    tiers: list[list[int]] = field(default_factory=list)
    bracketed: bool = True
    has_comparisons: bool = False  # has a > or =
    has_blank_separators: bool = False  # some ids are separated only by spaces
    fills_lines: bool = True  # nothing else on its line(s)
    is_numbered_list: bool = False  # a numbered list
    at_end: bool = False  # its last id is the last thing in the text
    group_count: int = 0
    in_json_list: bool = False  # begins right after the opening bracket of a JSON list

    @property
    def ids(self) -> list[int]:
        return [i for tier in self.tiers for i in tier]

    def add(self, ids: list[int], separator: str, bracketed: bool, group: bool) -> None:
        self.bracketed &= bracketed
        self.has_comparisons |= separator in (">", "=")
        self.has_blank_separators |= separator == " "
        self.group_count += group
        if separator == "=" and self.tiers:
            self.tiers[-1].extend(ids)
        else:
            self.tiers.append(ids)


_SCANNED_CHARACTERS = 5_000
"""Characters read at each end of a long answer. Both ends together can hold a paragraph about each of 20 passages."""
_SCANNED_CHARACTERS_PER_PASSAGE = 10
"""Further characters per passage of the window: `[1000] > ` takes nine."""


def _find_chains(text: str, size: int, truncated: bool = False) -> list[_Chain]:
    """Return all chains of `text` in their order. `truncated`: the response was cut off by the token limit."""
    scan_length = _SCANNED_CHARACTERS + _SCANNED_CHARACTERS_PER_PASSAGE * size
    if len(text) > 2 * scan_length:
        text = f"{text[:scan_length]}\n...\n{text[-scan_length:].partition(' ')[2]}"
    if truncated:
        text = re.sub(r"[^\W\d]+\s*$", "", text)  # half a word: "Passage 3 > Pass"
    if _is_error(text):
        return []
    normalized_text = _normalize(text)
    numbered_lists = list(_find_numbered_lists(normalized_text, truncated))
    if numbered_lists:
        normalized_text = _ITEM_NUMBER.sub("", normalized_text)
    line_chains = [chain for chain in _scan_chains(normalized_text) if chain.tiers]
    chains: list[_Chain] = []
    seen_ids: set[int] = set()  # ids of the last chain
    for chain in line_chains:
        if chains and _is_continuation(chains[-1], chain, seen_ids):
            previous = chains[-1]
            seen_ids.update(chain.ids)
            previous.tiers.extend(chain.tiers)
            previous.bracketed &= chain.bracketed
            previous.has_comparisons |= chain.has_comparisons
            previous.group_count += chain.group_count
            previous.at_end = chain.at_end
        else:
            chains.append(chain)
            seen_ids = set(chain.ids)
    for chain in chains:
        if chain.group_count == 1 and len(chain.tiers) == 1 and not chain.has_comparisons:
            chain.tiers = [[i] for i in chain.tiers[0]]  # a JSON list, not one big tie
    return chains + numbered_lists


def _is_error(text: str) -> bool:
    """Return whether `text` is a JSON error instead of an answer. The numbers in an error are not ids."""
    if not re.match(r"\s*\{", text):
        return False
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(payload, dict) and "error" in payload


def _is_continuation(first: _Chain, second: _Chain, seen_ids: set[int]) -> bool:
    """Return whether `second`, which is on a later line, continues `first` instead of starting a new ranking."""
    return (
        first.fills_lines
        and second.fills_lines
        and not first.is_numbered_list
        and first.bracketed == second.bracketed
        and seen_ids.isdisjoint(second.ids)
        and (first.has_comparisons == second.has_comparisons or len(second.tiers) == 1 or len(first.tiers) == 1)
    )


_SEPARATORS = ("", "\n", " ", ",", "=", ">")
"""Separators of ids, the weakest first. If several separate two ids, the strongest one counts."""


def _scan_chains(text: str) -> Iterator[_Chain]:
    """Yield the chains of each line. A line that ends or begins with a separator is joined to its neighbor."""
    chain = _Chain()
    separator = ""  # the strongest separator since the last id; "" at the start of a chain
    clean_line = True  # this line has only chains so far
    interrupted = False  # there are words after the last id
    after_bracket = False  # there is a bracket before the next id
    for token in _TOKEN.finditer(text):
        kind, value = token.lastgroup, token.group()
        if kind in ("id", "bare", "group"):
            ids = [_parse_id(digits) for digits in _DIGITS.findall(value)]
            joined = bool(chain.tiers) and not interrupted and separator not in ("", "\n")
            if joined and separator == " " and not (kind != "bare" and chain.bracketed):
                joined = chain.fills_lines and kind == "bare"  # 3 1 2, if nothing else is on the line
            if not joined:
                chain.at_end = False
                yield chain
                chain = _Chain(fills_lines=clean_line, in_json_list=after_bracket)
            chain.add(ids, separator if joined else "", kind != "bare", kind == "group")
            chain.at_end = True
            separator, interrupted, after_bracket = " ", False, False
        elif kind == "sep":
            chain.at_end = False
            new_separator = ">" if ">" in value else "=" if "=" in value else ","
            separator = max(separator, new_separator, key=_SEPARATORS.index)
        elif kind == "newline":
            if separator == " ":
                separator = "\n"
            clean_line = True
        elif kind == "blank":
            continue
        elif kind == "closing":
            if value == "]":
                continue
            interrupted, chain.at_end = True, False
        elif value in "-•·+#|[(" and clean_line and (separator == "\n" or not chain.tiers or interrupted):
            continue  # a bullet, a table's bar, the bracket of a JSON list
        elif value in "[(":
            chain.at_end = False
            after_bracket = value == "["
        else:
            if separator not in ("\n",):
                chain.fills_lines = False
            clean_line, interrupted, chain.at_end = False, True, False
    yield chain


_ITEM_NUMBER = re.compile(r"^[ \t|\-•#(]{0,9}\d{1,6}[ \t]{0,3}[.):|][ \t]{1,3}(?=\[?\d)", re.MULTILINE)
_ITEM = re.compile(
    r"^[\s|\-•#(]{0,9}(?:rank\s{0,3})?(?P<rank>\d{1,6})\s{0,3}[.):|\-]\s{0,3}"
    r"(?:\[\s{0,3}(?P<bracketed>\d{1,9})\s{0,3}\]|(?P<bare>\d{1,9})(?=\s*(?:$|[|,.:;(=\-–—])))"
    r"(?P<ties>(?:\s{0,9}=\s{0,9}\[?\s{0,3}\d{1,9}\s{0,3}\]?){0,999})(?P<rest>.*)$",
    re.IGNORECASE,
)


_BARE_ITEM_NUMBER = re.compile(r"[\s|\-•#(]{0,9}(\d{1,6})\s{0,3}[.):|\-]?\s*")
"""The number of an item whose content was cut off."""


def _find_numbered_lists(text: str, truncated: bool) -> Iterator[_Chain]:
    """Yield the lists of the shape `1. [3]`, `2. [1] because ...`, counted from 1.

    `truncated`: the last list may be incomplete.
    """
    chain = _Chain(is_numbered_list=True)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.strip() or re.fullmatch(r"[\s|:\-]+", line):
            continue
        item = _ITEM.match(line)
        rank = 0 if item is None or re.search(r"[>=]\s*\[?\d", item["rest"]) else int(item["rank"])
        if rank != len(chain.tiers) + 1:
            unfinished_item = _BARE_ITEM_NUMBER.fullmatch(line) if truncated and number == len(lines) - 1 else None
            # A single item is not a list, unless it is followed by the number of a second item.
            if len(chain.tiers) > 1 or (
                unfinished_item is not None and chain.tiers and int(unfinished_item[1]) == len(chain.tiers) + 1
            ):
                yield chain
            chain = _Chain(is_numbered_list=True)
        if item is not None and rank == len(chain.tiers) + 1:
            chain.at_end = number == len(lines) - 1 and not item["rest"].strip()
            tied_ids = [_parse_id(digits) for digits in re.findall(r"\d+", item["ties"])]
            chain.add(
                [_parse_id(item["bracketed"] or item["bare"]), *tied_ids], "", item["bracketed"] is not None, False
            )
    if len(chain.tiers) > 1:
        yield chain


def _choose_chain(chains: list[_Chain], size: int, truncated: bool) -> _Chain | None:
    """Return the chain that is the answer, or None.

    The answer is the last chain that ranks every id. If there is none, chains with > or = and numbered lists are
    preferred to other chains, then chains with more ids, then later chains. A few bare numbers within a sentence are
    not a ranking. A single id counts as a ranking only if the text contains nothing else.
    """
    for chain in chains:
        if truncated and chain.at_end and not chain.bracketed:
            chain.tiers[-1].pop()  # the last number may be the first digit of a longer one
            chain.tiers = [tier for tier in chain.tiers if tier]
    any_comparisons = any(chain.has_comparisons and len(_ranked_numbers(chain, size)) > 1 for chain in chains)
    best, best_key = None, (False, 0, 0)
    for chain in chains:
        ranked_count = len(_ranked_numbers(chain, size))
        if not ranked_count or not _is_ranking(chain, ranked_count, size, is_only_chain=len(chains) == 1):
            continue
        # "[1], [2] and [3] were compared" next to a chain with > or =
        is_plain_list = (
            any_comparisons
            and not chain.has_comparisons
            and all(first < second for first, second in itertools.pairwise(chain.ids))
        )
        if ranked_count == size and not is_plain_list:
            key = (True, 0, 0)
        else:
            key = (False, int(chain.has_comparisons or chain.is_numbered_list), ranked_count)
        if key >= best_key:
            best, best_key = chain, key
    return best


def _ranked_numbers(chain: _Chain, size: int) -> set[int]:
    return {i for i in chain.ids if 1 <= i <= size}


def _is_ranking(chain: _Chain, ranked_count: int, size: int, is_only_chain: bool) -> bool:
    if chain.is_numbered_list:
        return True
    if len(chain.ids) == 1:
        return is_only_chain and chain.fills_lines and (chain.bracketed or size == 1)
    if chain.bracketed or chain.fills_lines or chain.in_json_list:
        return True
    return ranked_count >= max(3, (size + 1) // 2) or ranked_count == size
