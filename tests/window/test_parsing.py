"""Answers of any shape are parsed as intended; nothing else is parsed as an answer.

`answers.jsonl` holds the concrete cases, one object a line: `name`, `text`, `size` and `kwargs` go in;
`tiers`, `is_valid`, `ranked_numbers` and, where given, `trace` must come out. `repairs` gives counts by name: null
means any count. Of the names in `REPAIRS`, a ranked answer has those that are listed and no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import rank_k
from rank_k.window.parsing import ParsedAnswer, parse_ranking
from tests.support.waiting import cpu_seconds

REPAIRS = ("missing", "repeated", "out_of_range", "truncated", "unranked")
CASES: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_bytes().splitlines()
]

Tiers = tuple[tuple[int, ...], ...]


def flatten(tiers: Tiers) -> list[int]:
    return list(chain.from_iterable(tiers))


def assert_consistent(answer: ParsedAnswer, size: int) -> None:
    """What holds for every answer."""
    assert isinstance(answer.tiers, tuple)
    assert all(isinstance(tier, tuple) and tier for tier in answer.tiers)
    ids = flatten(answer.tiers)
    assert sorted(ids) == list(range(1, size + 1))
    assert isinstance(answer.ranked_numbers, frozenset)
    assert answer.ranked_numbers <= set(ids)
    assert isinstance(answer.trace, str)
    assert all(isinstance(name, str) and count > 0 for name, count in answer.repairs.items())

    appended = tuple((i,) for i in range(1, size + 1) if i not in answer.ranked_numbers)
    assert answer.tiers[len(answer.tiers) - len(appended) :] == appended, "filled in last, in input order"
    if answer.is_valid:
        assert answer.ranked_numbers
        assert answer.repairs.get("missing", 0) == len(appended)
        assert "unranked" not in answer.repairs
    else:
        assert not answer.ranked_numbers
        assert {"truncated", "unranked"} & answer.repairs.keys(), "no silent failure"


# --- Recorded answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_parse_ranking_of_recorded_answers(case: dict[str, Any]) -> None:
    answer = parse_ranking(case["text"], case["size"], **case.get("kwargs", {}))
    assert_consistent(answer, case["size"])
    assert answer.tiers == tuple(map(tuple, case["tiers"]))
    assert answer.is_valid is case["is_valid"]
    assert answer.ranked_numbers == set(case["ranked_numbers"])
    expected = {name: count for name, count in case["repairs"].items() if count is not None}
    compared_names = [
        name for name in REPAIRS if name in expected or (case["is_valid"] and name not in case["repairs"])
    ]
    assert {name: answer.repairs[name] for name in compared_names if name in answer.repairs} == expected
    if "trace" in case:
        assert answer.trace.strip() == case["trace"]


def test_package_exports_parse_ranking() -> None:
    assert rank_k.parse_ranking is parse_ranking


def test_parse_ranking_finds_a_ranking_beside_a_long_remark() -> None:
    remark = "\n\nThe evidence of 2024 is mixed." * 3_000
    for text in (f"[3] > [1] > [2]{remark}", f"{remark}\n\n[3] > [1] > [2]"):
        assert parse_ranking(text, 3).tiers == ((3,), (1,), (2,))


def test_parse_ranking_counts_overlong_ids_as_out_of_range() -> None:
    answer = parse_ranking(f"[{'9' * 5000}] > [2] > [1]", 2)  # Python refuses int() of more than 4,300 digits
    assert (answer.tiers, answer.repairs.get("out_of_range")) == (((2,), (1,)), 1)


# --- Arbitrary text -------------------------------------------------------------------------------

PIECES = [
    *("[", "]", "(", ")", "{", "}", "<", ">", "=", ",", "→", "-", ".", ":", "|", "*", "`", '"', "\\", "\n", " "),
    *("0", "1", "2", "3", "10", "[1]", "[2]", "[3]", "[0]", "[21]", " > ", " = ", ", ", "\n1. ", "1)", "- "),
    *("<think>", "</think>", "<answer>", "```json", '{"ranking": [', '"error"', "null", "1e999", "NaN"),
    *("-1", "3.5", "1,000", "9" * 5000, "［３］", "＞", "＝", "，", "③", "⑳", "㊿", "²", "٣", "۳", "Ⅷ", "½"),
    *("Passage ", "the 3 best", "Sorry", "对不起", "متن", "\u200f", "\u2028", "\x00", "\ud800", "\ufeff", "🥇"),
]
noisy_text = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=200)
sizes = st.integers(0, 25)
finish_reasons = st.sampled_from([None, "stop", "length", "stopped", "content_filter", ""])


@given(
    text=st.none() | noisy_text,
    size=sizes,
    reasoning=st.none() | noisy_text,
    finish_reason=finish_reasons,
    reasoning_closed=st.booleans(),
)
def test_parse_ranking_returns_a_partition_for_any_text(
    text: str | None, size: int, reasoning: str | None, finish_reason: str | None, reasoning_closed: bool
) -> None:
    answer = parse_ranking(
        text, size, reasoning=reasoning, finish_reason=finish_reason, reasoning_closed=reasoning_closed
    )
    assert_consistent(answer, size)
    if size:
        reparsed = parse_ranking(canonical(answer.tiers), size)
        assert (reparsed.tiers, reparsed.is_valid, dict(reparsed.repairs)) == (answer.tiers, True, {})
        assert reparsed.ranked_numbers == set(range(1, size + 1))


def canonical(tiers: Tiers) -> str:
    return " > ".join(" = ".join(f"[{i}]" for i in tier) for tier in tiers)


# --- Round trips ----------------------------------------------------------------


@given(
    size=st.integers(1, 22),
    chain_of_ids=st.lists(
        st.tuples(st.booleans(), st.integers(0, 25) | st.sampled_from([-1, 10**9, 10**12, 10**30])),
        min_size=2,
        max_size=40,
    ),
    spaced=st.booleans(),
)
@example(size=3, chain_of_ids=[(False, 3), (False, 9), (True, 1), (True, 3), (False, 0), (True, 2)], spaced=True)
def test_parse_ranking_preserves_the_written_order(
    size: int, chain_of_ids: list[tuple[bool, int]], spaced: bool
) -> None:
    """One chain with ids repeated, unknown and missing: the first mention counts, in its own tier."""
    seen_ids: set[int] = set()
    tiers: list[list[int]] = []
    repeated = out_of_range = 0
    text = ""
    for position, (tied, i) in enumerate(chain_of_ids):
        if position:
            text += (" = " if tied else " > ") if spaced else ("=" if tied else ">")
        if not (tied and position):
            tiers.append([])
        text += f"[{i}]"
        if not 1 <= i <= size:
            out_of_range += 1
        elif i in seen_ids:
            repeated += 1
        else:
            seen_ids.add(i)
            tiers[-1].append(i)
    assume(seen_ids)
    missing = [i for i in range(1, size + 1) if i not in seen_ids]

    answer = parse_ranking(text, size)
    assert_consistent(answer, size)
    assert answer.tiers == (*(tuple(t) for t in tiers if t), *((i,) for i in missing))
    assert answer.ranked_numbers == seen_ids
    expected = {"repeated": repeated, "out_of_range": out_of_range, "missing": len(missing)}
    assert {name: answer.repairs.get(name, 0) for name in expected} == expected


def separated(better: str, equal: str, wrap: Callable[[int], str]) -> Callable[[Tiers], str]:
    return lambda tiers: better.join(equal.join(wrap(i) for i in tier) for tier in tiers)


def one_per_line(line: str, joint: str = "\n") -> Callable[[Tiers], str]:
    """For styles that know no ties: `n` is the place, `i` the id."""
    return lambda tiers: joint.join(line.format(n=n, i=i) for n, i in enumerate(flatten(tiers), 1))


def bracketed(i: int) -> str:
    return f"[{i}]"


def full_width(i: int) -> str:
    return f"［{i}］".translate({ord(d): ord(d) - ord("0") + ord("０") for d in "0123456789"})


def circled(i: int) -> str:
    return chr(ord("①") + i - 1)


WITH_TIES = {
    "canonical": separated(" > ", " = ", bracketed),
    "tight": separated(">", "=", bracketed),
    "bare": separated(" > ", " = ", str),
    "bare and tight": separated(">", "=", str),
    "wrapped": separated(" >\n", " = ", bracketed),
    "arrows": separated(" → ", " = ", bracketed),
    "full-width": separated(" ＞ ", " ＝ ", full_width),
    "circled": separated(" > ", " = ", circled),
    "labeled": separated(" > ", " = ", "Passage {}".format),
    "bold": separated(" > ", " = ", "**[{}]**".format),
}
WITHOUT_TIES = {
    "commas": one_per_line("[{i}]", ", "),
    "bare commas": one_per_line("{i}", ", "),
    "bare arrows": one_per_line("{i}", "→"),
    "a line each": one_per_line("[{i}]"),
    "a bare line each": one_per_line("{i}"),
    "numbered": one_per_line("{n}. [{i}]"),
    "numbered bare": one_per_line("{n}. {i}"),
    "numbered, parentheses": one_per_line("{n}) [{i}]"),
    "bullets": one_per_line("- [{i}]"),
    "table": one_per_line("| {n} | [{i}] |"),
    "JSON": lambda tiers: json.dumps(flatten(tiers)),
    "JSON object": lambda tiers: json.dumps({"ranking": flatten(tiers)}, indent=2),
}
REMARKS_BEFORE = [
    "",
    "Of the 20 passages, the 3 best answer the question:\n",
    "Here is my ranking, made in 2024:\n\n",
    "排序如下（共20段）：\n",
    "Вот мой рейтинг из 20 отрывков:\n\n",
]
REMARKS_AFTER = ["", ".", "\n\nI hope this helps; 2 of them date from 1998.", "\n以上共20段。", "\nمتن‌ها ۲۰ تا بودند."]

TRACES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "inline": lambda trace, text: {"text": f"<think>{trace}</think>\n\n{text}"},
    "no opening tag": lambda trace, text: {"text": f"{trace}</think>\n{text}"},
    "two closing tags": lambda trace, text: {"text": f"<think>{trace}</think>\n</think>\n{text}"},
    "field": lambda trace, text: {"text": text, "reasoning": trace},
    "closed, all in the field": lambda _, text: {"text": "", "reasoning": text, "reasoning_closed": True},
    "none": lambda _, text: {"text": text},
}


@given(
    style=st.sampled_from([*WITH_TIES, *WITHOUT_TIES]),
    size=st.integers(2, 20),
    seed=st.integers(0, 2**32),
    before=st.sampled_from(REMARKS_BEFORE),
    after=st.sampled_from(REMARKS_AFTER),
    shape=st.sampled_from(list(TRACES)),
    trace=noisy_text,
    finish_reason=st.sampled_from([None, "stop"]),
)
def test_parse_ranking_round_trips_every_answer_style(
    style: str, size: int, seed: int, before: str, after: str, shape: str, trace: str, finish_reason: str | None
) -> None:
    tiers = random_tiers(size, Random(seed), ties=style in WITH_TIES)
    text = before + (WITH_TIES | WITHOUT_TIES)[style](tiers) + after
    response_fields = TRACES[shape](without_tags(trace), text)
    answer = parse_ranking(response_fields.pop("text"), size, finish_reason=finish_reason, **response_fields)
    assert_consistent(answer, size)
    assert (answer.tiers, answer.is_valid) == (tiers, True)
    assert answer.ranked_numbers == set(range(1, size + 1))
    assert not answer.repairs.keys() & set(REPAIRS)


@example("numbered bare", 5, 0, 0.25)  # 1. 4, and the 2 of a second item
@given(
    style=st.sampled_from([*WITH_TIES, *WITHOUT_TIES]),
    size=st.integers(2, 20),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
)
def test_parse_ranking_keeps_the_ids_of_a_truncated_answer(style: str, size: int, seed: int, share: float) -> None:
    """Half an id, or the number of an item that never came, is not taken for an id."""
    tiers = random_tiers(size, Random(seed), ties=style in WITH_TIES)
    write_answer = (WITH_TIES | WITHOUT_TIES)[style]
    text = write_answer(tiers)
    text = text[: int(share * len(text))]
    answer = parse_ranking(text, size, reasoning="Let me see.", finish_reason="length")
    assert_consistent(answer, size)
    if len(text) < len(write_answer(tiers)):
        assert answer.repairs.get("truncated") == 1
    ids = flatten(tiers)
    ranked_ids = [i for i in flatten(answer.tiers) if i in answer.ranked_numbers]
    assert ranked_ids == ids[: len(ranked_ids)]
    started_ids = sum(
        text.startswith(write_answer(first_ids(tiers, k)).rstrip("]}\n |*］")) for k in range(1, size + 1)
    )
    if started_ids >= 3:  # of one or two ids it may be doubted that they are a ranking
        assert len(ranked_ids) >= started_ids - 1


def first_ids(tiers: Tiers, k: int) -> Tiers:
    """The first `k` ids of `tiers`."""
    kept_ids = set(flatten(tiers)[:k])
    return tuple(tuple(i for i in tier if i in kept_ids) for tier in tiers if kept_ids & set(tier))


def random_tiers(size: int, rng: Random, *, ties: bool) -> Tiers:
    tiers: list[tuple[int, ...]] = []
    for i in rng.sample(range(1, size + 1), size):
        if tiers and ties and rng.random() < 0.3:
            tiers[-1] += (i,)
        else:
            tiers.append((i,))
    return tuple(tiers)


# --- Reasoning traces ------------------------------------------------------------------------


def without_tags(text: str) -> str:
    """`text` as something that can stand inside a trace: no think tag ends or begins in it."""
    return text.replace("think>", "")


@given(
    text=noisy_text.map(without_tags).filter(str.strip),
    traces=st.tuples(noisy_text, noisy_text).map(lambda pair: [without_tags(t) + " ." for t in pair]),
    shape=st.sampled_from(["inline", "no opening tag", "two closing tags", "field"]),
    size=sizes,
    finish_reason=finish_reasons,
)
@example("[3] > [1]", ["[2] > [1] > [3]", "x"], "field", 3, "length")
def test_parse_ranking_ignores_the_reasoning_trace(
    text: str, traces: Sequence[str], shape: str, size: int, finish_reason: str | None
) -> None:
    results = []
    for trace in traces:
        response_fields = TRACES[shape](trace, text)
        answer = parse_ranking(response_fields.pop("text"), size, finish_reason=finish_reason, **response_fields)
        assert answer.trace.strip().startswith(trace.strip())
        results.append((answer.tiers, answer.ranked_numbers, answer.is_valid, dict(answer.repairs)))
    assert results[0] == results[1]


@given(trace=noisy_text.map(without_tags), size=sizes, finish_reason=finish_reasons, opening=st.booleans())
def test_parse_ranking_rejects_truncated_reasoning(
    trace: str, size: int, finish_reason: str | None, opening: bool
) -> None:
    answers = [parse_ranking(f"<think>{trace}", size, finish_reason=finish_reason)]
    answers += [parse_ranking(t, size, reasoning=trace + " .", finish_reason=finish_reason) for t in (None, "", " ")]
    for answer in answers:
        assert_consistent(answer, size)
        assert not answer.is_valid
        assert answer.repairs.get("truncated") == 1


# --- Time -----------------------------------------------------------------------------------------

LONG_TEXT = 100_000
REPEATED_PIECES = [
    *("[", "]", "{", "(", "<", ">", "=", ",", "→", "1", "9", "a", " ", "\n", "-", "*", "|", '"', "\\", ".", "`"),
    *("[1] > ", "[1]", "1,", "1 ", "1, ", "1\n", "1.", "1. ", "1. [1]\n", "[[1", "[1,", "[1]\n", "1>", "1=", "> "),
    *("<think>", "</think>", "<think></think>", "<", "&gt;", "**[1]**", "| 1 ", "- ", "- 1\n", "Passage 1 ", "(1) "),
    *("[1] > [2] > [3]\n", "[1] > [2] > [3]. ", "[3, 1, 2]\n", '{"ranking": [3, 1, 2]}', '{"ranking": ', '{"a":['),
    *("③", "［１］", "③ > ", "\u200f", "1\u00a0", "$\\boxed{", "```", "```\n", "1 a ", "1: ", "[ ", "[1 ", " 1", "，"),
    *("a 1, ", "1st ", "1-", "1/", "-1 ", "1.1 ", "1,000 ", "Ab 1 > ", "[1] a > ", "2 > 1 because ", "<br>", "<a", "0"),
]
MIXTURES = [
    "[" * (LONG_TEXT // 2) + "]" * (LONG_TEXT // 2),
    " " * (LONG_TEXT - 7) + "[1] > [2",
    "1" * (LONG_TEXT - 3) + " > 2",
    "[1] > [2] > [3]" + " " * LONG_TEXT + "x",
    "[3] > [1] > [2]" + "\n" * LONG_TEXT,
    " > ".join(f"[{i}]" for i in range(1, 11_000)),
    ", ".join(str(i) for i in range(1, 18_000)),
    "\n".join(f"{i}. [{i}]" for i in range(1, 7_000)),
    "\n".join(f"[{i}]" for i in range(1, 13_000)),
    "\n".join(f"- {i}" for i in range(1, 13_000)),
    json.dumps({"ranking": list(range(1, 14_000))}),
    *("".join(Random(seed).choices(PIECES, k=10_000)) for seed in range(5)),
]


def scan_characters() -> int:
    """Read a text of `LONG_TEXT` characters with a regular expression, in time that is linear in its length."""
    return sum(1 for _ in re.finditer(".", "x" * LONG_TEXT))


@pytest.mark.parametrize(
    "text", [p * (LONG_TEXT // len(p.encode())) for p in REPEATED_PIECES] + MIXTURES, ids=lambda t: repr(t[:16])
)
def test_parse_ranking_takes_linear_time_in_the_text_length(text: str) -> None:
    """Compared with a scan of as many characters by a regular expression, one at a time.

    The slowest of these texts takes 1.4 times as long as the scan; quadratic time would be thousands of times as long.
    """
    text = text[:LONG_TEXT]
    for response_fields in (
        {"text": text},
        {"text": f"<think>{text}</think>[3] > [1] > [2]"},
        {"text": "", "reasoning": text, "reasoning_closed": True},
        {"text": text, "finish_reason": "length"},
    ):
        assert_consistent(parse_ranking(size=20, **response_fields), 20)
        parsing, scan = cpu_seconds(partial(parse_ranking, size=20, **response_fields), scan_characters, rounds=2)
        if parsing > 5 * scan:  # measure again before failing: the machine may be busy
            parsing, scan = cpu_seconds(partial(parse_ranking, size=20, **response_fields), scan_characters, rounds=10)
        assert parsing < 5 * scan


@pytest.mark.parametrize("prose", ["{answer}\n{words}", "{words}\n{answer}"], ids=["before", "behind"])
@pytest.mark.parametrize("size", [20, 1_000])
def test_parse_ranking_reads_complete_rankings_beside_a_long_text(size: int, prose: str) -> None:
    order = " > ".join(f"[{i}]" for i in range(size, 0, -1))
    answer = parse_ranking(prose.format(answer=order, words="they were compared " * 10_000), size)
    assert answer.tiers == tuple((i,) for i in range(size, 0, -1))
    assert not answer.repairs
