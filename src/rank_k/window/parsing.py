"""What a model said -> what it ranked. Pure, total, linear in the length of the text.

Two steps. First the trace is taken off, wherever the server put it; what a cut thought holds is never
read as a ranking. Then the answer is read as *chains*: ids with separators between them, as in
`[3] > [2] = [1]`, `3, 2, 1`, a numbered list or a JSON list. One chain is chosen, by the rules at `_choose`.
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
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """One reply, read.

    `tiers`: 1-based ids, best first, ids of one tier tied; always a partition of 1..size.
    `placed`: the ids the model itself ranked. `ranked`: False if there was no usable answer; `tiers` is
    then the input order. `trace`: the reasoning before the answer, "" if none.
    `repairs`: how often something had to be mended: "missing" (ids appended at the end in input order),
    "repeated" (later mentions dropped), "out_of_range" (dropped), "cut" (thought or answer ended by
    the token limit), "unranked" (no usable answer), "stray_tag" (an end of thought where none belongs).
    """

    tiers: tuple[tuple[int, ...], ...]
    ranked_numbers: frozenset[int]
    repairs: Mapping[str, int]
    is_valid: bool
    trace: str = ""

    @property
    def reasoning_truncated(self) -> bool:
        """Whether the model never came to its answer, so that asking for it can help."""
        return not self.is_valid and "truncated" in self.repairs


def parse_ranking(
    text: str | None,
    size: int,
    *,
    reasoning: str | None = None,
    finish_reason: str | None = None,
    reasoning_closed: bool = False,
) -> ParsedAnswer:
    """Read a reply about a window of `size` passages.

    `reasoning` is the reply's separate reasoning field, where the server has one. `reasoning_closed` says
    that the caller had ended the thought, so that whatever came back is answer, in whichever field it is.
    Never raises, whatever the text.
    """
    parts = _split(text or "", reasoning or "", finish_reason, reasoning_closed)
    repairs: Counter[str] = Counter()
    if parts.stray_tags:
        repairs["unmatched_think_tag"] = parts.stray_tags
    if parts.cut_thought:
        repairs["truncated"] = 1
        return _unranked(size, repairs, parts.trace)
    cut = finish_reason == "length"
    chain = _choose(_chains(parts.answer, size, cut), size, ends_cut=cut)
    if chain is None and reasoning_closed and parts.alternative:
        chain = _choose(_chains(parts.alternative, size, cut), size, ends_cut=cut)
    if cut:
        repairs["truncated"] = 1
    if chain is None:
        return _unranked(size, repairs, parts.trace)
    return _repaired(chain, size, repairs, parts.trace)


def _unranked(size: int, repairs: Counter[str], trace: str) -> ParsedAnswer:
    repairs["unranked"] = 1
    tiers = tuple((i,) for i in range(1, size + 1))
    return ParsedAnswer(tiers, frozenset(), MappingProxyType(dict(repairs)), False, trace)


def _repaired(chain: _Chain, size: int, repairs: Counter[str], trace: str) -> ParsedAnswer:
    tiers: list[tuple[int, ...]] = []
    placed: set[int] = set()
    for tier in chain.tiers:
        kept = []
        for i in tier:
            if not 1 <= i <= size:
                repairs["out_of_range"] += 1
            elif i in placed:
                repairs["repeated"] += 1
            else:
                placed.add(i)
                kept.append(i)
        if kept:
            tiers.append(tuple(kept))
    missing = [i for i in range(1, size + 1) if i not in placed]
    if missing:
        repairs["missing"] = len(missing)
    tiers.extend((i,) for i in missing)
    return ParsedAnswer(tuple(tiers), frozenset(placed), MappingProxyType(dict(repairs)), True, trace)


# --- The trace -----------------------------------------------------------------------------------

_TAG_NAMES = r"(?:seed:)?think(?:ing)?|thought|reasoning|analysis"
_OPEN = re.compile(rf"<(?:{_TAG_NAMES})>|\[THINK\]", re.IGNORECASE)
_CLOSE = re.compile(rf"</(?:{_TAG_NAMES})>|\[/THINK\]", re.IGNORECASE)


class _Parts(NamedTuple):
    trace: str
    answer: str
    alternative: str = ""
    cut_thought: bool = False
    stray_tags: int = 0


def _split(text: str, reasoning: str, finish_reason: str | None, reasoning_closed: bool) -> _Parts:
    """Trace and answer of a reply, wherever they stand."""
    closes = list(_CLOSE.finditer(text))
    if closes:
        inline = _OPEN.sub("", text[: closes[-1].start()])
        inline = _CLOSE.sub("", inline).strip()
        trace = "\n".join(filter(None, (reasoning.strip(), inline)))
        stray = len(closes) - (0 if reasoning or reasoning_closed else 1)
        answer = text[closes[-1].end() :]
        if len(closes) > 1 and not answer.strip() and finish_reason != "length":
            answer = text[closes[-2].end() : closes[-1].start()]  # the end was said once more behind the answer
        return _after_thought(trace, answer, finish_reason, stray)
    if opened := _OPEN.search(text):
        trace = "\n".join(filter(None, (reasoning.strip(), text[opened.end() :].strip())))
        return _Parts(trace, "", cut_thought=True)
    if reasoning_closed:
        return _closed_by_caller(text, reasoning)
    if reasoning.strip() and not text.strip():
        closes = list(_CLOSE.finditer(reasoning))
        if closes:  # some servers put the whole of it, answer included, into the reasoning field
            trace = _OPEN.sub("", reasoning[: closes[-1].start()]).strip()
            return _after_thought(trace, reasoning[closes[-1].end() :], finish_reason, 1)
        return _Parts(reasoning.strip(), "", cut_thought=True)
    if finish_reason == "length" and not reasoning.strip() and not _is_bare_ranking(text):
        # No tag at all: a template that opens the thought in the prompt, and a thought without an end.
        return _Parts(text.strip(), "", cut_thought=True)
    return _Parts(reasoning.strip(), text)


def _after_thought(trace: str, answer: str, finish_reason: str | None, stray: int) -> _Parts:
    if opened := _OPEN.search(answer):  # thinks again after it has thought
        if answer[: opened.start()].strip():
            return _Parts(trace, answer[: opened.start()], stray_tags=stray + 1)
        return _Parts(trace + "\n" + answer[opened.end() :].strip(), "", cut_thought=True, stray_tags=stray)
    cut = finish_reason == "length" and not answer.strip()
    return _Parts(trace, answer, cut_thought=cut, stray_tags=stray)


def _closed_by_caller(text: str, reasoning: str) -> _Parts:
    closes = list(_CLOSE.finditer(reasoning))
    inside, after = ("", reasoning)
    if closes:
        inside, after = reasoning[: closes[-1].start()], reasoning[closes[-1].end() :]
    if text.strip():
        return _Parts(reasoning.strip(), text, alternative=after)
    return _Parts(_OPEN.sub("", inside).strip(), after)


def _is_bare_ranking(text: str) -> bool:
    """Whether a reply begins as a ranking and holds nothing else, so that no thought can be in it."""
    return re.fullmatch(r"[\s\d\[\]>=,→＞＝]*", text) is not None


# --- The ranking ---------------------------------------------------------------------------------


def _circled_digits() -> dict[int, str]:
    blocks = ((0x2460, 0x249B), (0x24EA, 0x24FF), (0x2776, 0x2793), (0x3251, 0x325F), (0x32B1, 0x32BF))
    table = {}
    for first, last in blocks:
        for code in range(first, last + 1):
            value = unicodedata.numeric(chr(code), None)
            if value is not None:
                table[code] = f"[{int(value)}]"
    return table


_SYMBOLS = {
    **_circled_digits(),
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
_ASIDE = re.compile(r"\((?=[^()\n]{0,80}(?:[^\W\d_]|\d[.%]))[^()\[\]>=\n]{1,80}\)")  # [3] (0.95) > [1] (partly)
_LABEL = re.compile(
    r"(?:\b(?:passage|document|doc|text|item|id)|段落|文档|文章|篇章|متن|سند|отрывок|документ|текст)"
    r"\s{0,3}\#?\s{0,3}(?=\[?\d)|\#(?=\d)|(?<=,)\s{0,3}and\b",
    re.IGNORECASE,
)


def _plain(text: str) -> str:
    """`text` with the many ways to write a digit, a bracket or a separator brought to one."""
    text = _LATEX.sub(lambda m: ">" if m[1] else "=", text)
    text = _ENTITY.sub(lambda m: {"gt": ">", "rarr": ">", "equals": "="}.get(m[1], " "), text)
    text = _OTHER_TAG.sub(" ", _BREAK_TAG.sub("\n", text))
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS)
    return _LABEL.sub(" ", _ASIDE.sub(" ", text))


_TOKEN = re.compile(
    r"""
    (?P<group>\[\s{0,9}\d{1,9}(?:\s{0,9}[,=]\s{0,9}\d{1,9}){1,999}\s{0,9},?\s{0,9}\])  # [3, 1]
    | (?P<id>\[\s{0,9}\#?-?\d+\s{0,9}\])                                               # [3]
    | (?P<bare>(?:(?<![\w.\-+\[/:%])|(?<=\[)(?=\d+\s{0,9},))\d+(?![\w\-/%°]|[.:]\d))                             # 3
    | (?P<sep>(?:-{1,3}|=)?>+|={1,2}|,)
    | (?P<newline>\r?\n|\r)
    | (?P<blank>[^\S\r\n]+)
    | (?P<closing>[.!:)\]](?=\s|$))                                                     # ends a chain softly
    | (?P<other>\[|\d+|[^\W\d]+|.)
    """,
    re.VERBOSE,
)
_DIGITS = re.compile(r"-?\d+")
_MOST_DIGITS = 9  # of a number that can be an id; int() refuses thousands of them


def _number(digits: str) -> int:
    """The id written as `digits`; 0, which no passage has, if it cannot be one."""
    return int(digits) if digits.isdecimal() and len(digits) <= _MOST_DIGITS else 0


@dataclass(slots=True)
class _Chain:
    """Consecutive ids with separators between them, and how they were written."""

    tiers: list[list[int]] = field(default_factory=list)
    bracketed: bool = True
    graded: bool = False  # has a > or =
    spaced: bool = False  # somewhere only a blank separates
    alone: bool = True  # nothing else on its line(s)
    listed: bool = False  # a numbered list
    at_end: bool = False  # its last id is the last thing in the text
    groups: int = 0
    opened: bool = False  # begins behind the bracket of a JSON list

    @property
    def ids(self) -> list[int]:
        return [i for tier in self.tiers for i in tier]

    def add(self, ids: list[int], separator: str, bracketed: bool, group: bool) -> None:
        self.bracketed &= bracketed
        self.graded |= separator in (">", "=")
        self.spaced |= separator == " "
        self.groups += group
        if separator == "=" and self.tiers:
            self.tiers[-1].extend(ids)
        else:
            self.tiers.append(ids)


_READ = 5_000
"""Characters read at each end of a long answer: a paragraph about each of 20 passages, at both ends together."""
_READ_PER_PASSAGE = 10
"""And so many more for each passage of the window: `[1000] > ` takes nine."""


def _chains(text: str, size: int, cut: bool = False) -> list[_Chain]:
    """All chains of `text`, in the order in which they stand. `cut`: its end is not where it was to end."""
    read = _READ + _READ_PER_PASSAGE * size
    if len(text) > 2 * read:
        text = f"{text[:read]}\n...\n{text[-read:].partition(' ')[2]}"
    if cut:
        text = re.sub(r"[^\W\d]+\s*$", "", text)  # half a word: "Passage 3 > Pass"
    if _is_error(text):
        return []
    plain = _plain(text)
    numbered = list(_numbered_lists(plain, cut))
    if numbered:
        plain = _NUMBER_OF_ITEM.sub("", plain)
    lines = [chain for chain in _scanned(plain) if chain.tiers]
    chains: list[_Chain] = []
    said: set[int] = set()  # ids of the last chain
    for chain in lines:
        if chains and _continues(chains[-1], chain, said):
            last = chains[-1]
            said.update(chain.ids)
            last.tiers.extend(chain.tiers)
            last.bracketed &= chain.bracketed
            last.graded |= chain.graded
            last.groups += chain.groups
            last.at_end = chain.at_end
        else:
            chains.append(chain)
            said = set(chain.ids)
    for chain in chains:
        if chain.groups == 1 and len(chain.tiers) == 1 and not chain.graded:
            chain.tiers = [[i] for i in chain.tiers[0]]  # a JSON list, not one big tie
    return chains + numbered


def _is_error(text: str) -> bool:
    """Whether a JSON error stands where the answer should: no number in it is an id."""
    if not re.match(r"\s*\{", text):
        return False
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "error" in found


def _continues(first: _Chain, second: _Chain, said: set[int]) -> bool:
    """Whether a chain that fills its line(s) goes on in the next line, rather than being said again."""
    return (
        first.alone
        and second.alone
        and not first.listed
        and first.bracketed == second.bracketed
        and said.isdisjoint(second.ids)
        and (first.graded == second.graded or len(second.tiers) == 1 or len(first.tiers) == 1)
    )


def _scanned(text: str) -> Iterator[_Chain]:
    """Chains line by line; a line that ends or begins with a separator is joined to its neighbor."""
    chain = _Chain()
    separator = ""  # what stands between the last id and here; "" at the start of a chain
    clean_line = True  # nothing but chains on this line so far
    broken = False  # words have stood since the last id
    opened = False  # a bracket stands before the next one
    for token in _TOKEN.finditer(text):
        kind, value = token.lastgroup, token.group()
        if kind in ("id", "bare", "group"):
            ids = [_number(digits) for digits in _DIGITS.findall(value)]
            joined = bool(chain.tiers) and not broken and separator not in ("", "\n")
            if joined and separator == " " and not (kind != "bare" and chain.bracketed):
                joined = chain.alone and kind == "bare"  # 3 1 2: only where nothing else is on the line
            if not joined:
                chain.at_end = False
                yield chain
                chain = _Chain(alone=clean_line, opened=opened)
            chain.add(ids, separator if joined else "", kind != "bare", kind == "group")
            chain.at_end = True
            separator, broken, opened = " ", False, False
        elif kind == "sep":
            chain.at_end = False
            written = ">" if ">" in value else "=" if "=" in value else ","
            separator = _stronger(separator, written)
        elif kind == "newline":
            if separator == " ":
                separator = "\n"
            clean_line = True
        elif kind == "blank":
            continue
        elif kind == "closing":
            if value == "]":
                continue
            broken, chain.at_end = True, False
        elif value in "-•·+#|[(" and clean_line and (separator == "\n" or not chain.tiers or broken):
            continue  # a bullet, a table's bar, the bracket of a JSON list
        elif value in "[(":
            chain.at_end = False
            opened = value == "["
        else:
            if separator not in ("\n",):
                chain.alone = False
            clean_line, broken, chain.at_end = False, True, False
    yield chain


def _stronger(old: str, new: str) -> str:
    rank = {"": 0, "\n": 1, " ": 1, ",": 2, "=": 3, ">": 4}
    return new if rank[new] >= rank[old] else old


_NUMBER_OF_ITEM = re.compile(r"^[ \t|\-•#(]{0,9}\d{1,6}[ \t]{0,3}[.):|][ \t]{1,3}(?=\[?\d)", re.MULTILINE)
_ITEM = re.compile(
    r"^[\s|\-•#(]{0,9}(?:rank\s{0,3})?(?P<rank>\d{1,6})\s{0,3}[.):|\-]\s{0,3}"
    r"(?:\[\s{0,3}(?P<bracketed>\d{1,9})\s{0,3}\]|(?P<bare>\d{1,9})(?=\s*(?:$|[|,.:;(=\-–—])))"
    r"(?P<ties>(?:\s{0,9}=\s{0,9}\[?\s{0,3}\d{1,9}\s{0,3}\]?){0,999})(?P<rest>.*)$",
    re.IGNORECASE,
)


_NUMBER_ALONE = re.compile(r"[\s|\-•#(]{0,9}(\d{1,6})\s{0,3}[.):|\-]?\s*")
"""The beginning of an item that never came."""


def _numbered_lists(text: str, cut: bool) -> Iterator[_Chain]:
    """Lists of the shape `1. [3]`, `2. [1] because ...`, counted from 1. `cut`: the last one may have been going on."""
    chain = _Chain(listed=True)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.strip() or re.fullmatch(r"[\s|:\-]+", line):
            continue
        item = _ITEM.match(line)
        rank = 0 if item is None or re.search(r"[>=]\s*\[?\d", item["rest"]) else int(item["rank"])
        if rank != len(chain.tiers) + 1:
            begun = _NUMBER_ALONE.fullmatch(line) if cut and number == len(lines) - 1 else None
            # One item is no list, but for the number of a second one.
            if len(chain.tiers) > 1 or (begun is not None and chain.tiers and int(begun[1]) == len(chain.tiers) + 1):
                yield chain
            chain = _Chain(listed=True)
        if item is not None and rank == len(chain.tiers) + 1:
            chain.at_end = number == len(lines) - 1 and not item["rest"].strip()
            tied = [_number(digits) for digits in re.findall(r"\d+", item["ties"])]
            chain.add([_number(item["bracketed"] or item["bare"]), *tied], "", item["bracketed"] is not None, False)
    if len(chain.tiers) > 1:
        yield chain


def _choose(chains: list[_Chain], size: int, ends_cut: bool) -> _Chain | None:
    """The chain that is the answer.

    The last one that places every id; else the one that places most, graded chains (with > or =) before
    lists, later before earlier. A few bare numbers in the middle of a sentence are not a ranking, nor is a
    single id unless it is all there is.
    """
    for chain in chains:
        if ends_cut and chain.at_end and not chain.bracketed:
            chain.tiers[-1].pop()  # the last number may be the first digit of a longer one
            chain.tiers = [tier for tier in chain.tiers if tier]
    best: _Chain | None = None
    best_key: tuple[bool, int, int] | None = None
    only = len(chains) == 1
    any_graded = any(chain.graded and len(_placed(chain, size)) > 1 for chain in chains)
    for chain in chains:
        placed = _placed(chain, size)
        if not placed or not _is_ranking(chain, len(placed), size, only):
            continue
        complete = len(placed) == size
        if complete and any_graded and not chain.graded and _ascends(chain.ids):
            complete = False  # "[1], [2] and [3] were compared", or explained, beside a graded chain
        key = (complete, 0, 0) if complete else (False, int(chain.graded or chain.listed), len(placed))
        if best_key is None or key >= best_key:
            best, best_key = chain, key
    return best


def _placed(chain: _Chain, size: int) -> set[int]:
    return {i for i in chain.ids if 1 <= i <= size}


def _ascends(ids: list[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(ids))


def _is_ranking(chain: _Chain, placed: int, size: int, only: bool) -> bool:
    if chain.listed:
        return True
    if len(chain.ids) == 1:
        return only and chain.alone and (chain.bracketed or size == 1)
    if chain.bracketed or chain.alone or chain.opened:
        return True
    return placed >= max(3, (size + 1) // 2) or placed == size
