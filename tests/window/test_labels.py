"""Verdicts as an answer: the order that follows, whatever the text."""

from __future__ import annotations

import asyncio
from math import log

from hypothesis import given
from hypothesis import strategies as st

from rank_k.journal import Journal
from rank_k.models.base import Capabilities
from rank_k.models.mock import ScriptedModel
from rank_k.types import Passage, Query, Request, Response, Usage, Window
from rank_k.window.labels import parse_labels
from rank_k.window.listwise import ListwiseRanker, ListwiseSettings

WORDS = ("no", "partly", "yes")
SAID = "[1] no\n[2] yes\n[3] partly\n[4] yes\n[5] no\n"


def tokens(said: str, chances: dict[str, float], before: str = "") -> list[tuple[str, float]]:
    """As a server tells them: each line's beginning, its word with the probability of that line, its end."""
    found = [(before, 0.0)] if before else []
    for line in said.splitlines():
        number, _, word = line.partition(" ")
        found += [(number, -0.01), (f" {word}", log(chances[number])), ("\n", 0.0)]
    return found


def test_better_verdicts_come_first_and_equal_ones_are_tied() -> None:
    answer = parse_labels(SAID, 5, WORDS)
    assert answer.tiers == ((2, 4), (3,), (1, 5))
    assert answer.ranked_numbers == {1, 2, 3, 4, 5}
    assert (answer.is_valid, dict(answer.repairs), answer.trace) == (True, {}, SAID)


def test_of_one_verdict_the_surer_yes_and_the_less_sure_no_come_first() -> None:
    chances = {"[1]": 0.9, "[2]": 0.6, "[3]": 0.5, "[4]": 0.8, "[5]": 0.4}
    assert parse_labels(SAID, 5, WORDS, tokens(SAID, chances)).tiers == ((4,), (2,), (3,), (5,), (1,))
    begun = parse_labels(SAID.strip(), 5, WORDS, tokens(SAID, chances, before="\n"))
    assert begun.tiers == ((4,), (2,), (3,), (5,), (1,)), "where the tokens begin before the text"
    other = parse_labels(SAID, 5, WORDS, tokens("[1] yes\n", {"[1]": 0.5}))
    assert other.tiers == ((2, 4), (3,), (1, 5)), "tokens of another text say nothing"


def test_what_is_not_as_it_should_be_is_counted() -> None:
    said = "[2] yes\n[2] no\n[9] yes\n[1] maybe\nand so on [3] yes\n"
    answer = parse_labels(said, 3, WORDS)
    assert answer.tiers == ((2,), (1,), (3,))
    assert answer.ranked_numbers == {2}
    assert dict(answer.repairs) == {"repeated": 1, "out_of_range": 1, "missing": 2}
    nothing = parse_labels("[1] > [2]", 2, WORDS)
    assert (nothing.is_valid, nothing.tiers, dict(nothing.repairs)) == (False, ((1,), (2,)), {"unranked": 1})


@given(
    st.text(st.sampled_from("[]0123 noyespartly\n>=x")) | st.text(),
    st.integers(1, 12),
    st.none() | st.lists(st.tuples(st.text(max_size=5), st.floats(-9999, 0))),
)
def test_whatever_is_said_the_answer_is_a_partition(said: str, size: int, told: list[tuple[str, float]] | None) -> None:
    answer = parse_labels(said, size, WORDS, told)
    assert sorted(number for tier in answer.tiers for number in tier) == list(range(1, size + 1))
    assert answer.is_valid == bool(answer.ranked_numbers)


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.floats(0.01, 1)), min_size=1, max_size=12))
def test_no_doubt_puts_a_verdict_beyond_the_next(given_: list[tuple[str, float]]) -> None:
    said = "".join(f"[{number}] {word}\n" for number, (word, _) in enumerate(given_, 1))
    chances = {f"[{number}]": chance for number, (_, chance) in enumerate(given_, 1)}
    answer = parse_labels(said, len(given_), WORDS, tokens(said, chances))
    levels = [WORDS.index(given_[number - 1][0]) for tier in answer.tiers for number in tier]
    assert levels == sorted(levels, reverse=True)


ABLE = Capabilities(prefill=True, grammar=True, logprobs=True, reasons=False)


def asked(said: str, finish: str = "stop") -> tuple[tuple[tuple[str, ...], ...], dict[str, int], list[Request]]:
    def reply(request: Request) -> Response:
        if "</think>" in request.prefill or not request.prefill:
            return Response("[3] > [2] > [1]", None, "stop", Usage(1, 1))
        told = tuple(tokens(said, {"[1]": 0.9, "[2]": 0.9, "[3]": 0.6})) if request.logprobs and said else None
        return Response(said, None, finish, Usage(1, 1), tokens=told)

    async def run() -> tuple[tuple[tuple[str, ...], ...], dict[str, int], list[Request]]:
        journal, model = Journal(), ScriptedModel(reply, abilities=ABLE)
        asker = ListwiseRanker(model, journal, ListwiseSettings(label_words=WORDS))
        await asker.prepare()
        window = Window(("a", "b", "c"), (1, 3))
        texts = await asker.prepare_query(Query("q", "why"), {d: Passage(d, f"text {d}") for d in window.doc_ids})
        found = await asker.rank(texts, window)
        journal.close()
        return found.result.rankings[0].tiers, dict(found.repairs), list(model.history)

    return asyncio.run(run())


def test_a_student_s_verdicts_are_its_answer_and_nothing_more_is_asked() -> None:
    tiers, repairs, history = asked("[1] no\n[2] yes\n[3] no\n")
    assert tiers == (("b",), ("c",), ("a",))
    assert repairs == {}
    [request] = history
    assert request.logprobs


def test_a_student_without_a_verdict_is_asked_for_its_order() -> None:
    tiers, _, history = asked("")
    assert tiers == (("c",), ("b",), ("a",))
    assert len(history) == 2


def test_a_cut_thought_s_verdicts_still_count() -> None:
    tiers, repairs, history = asked("[1] no\n[2] yes\n", "length")
    assert tiers == (("b",), ("a",), ("c",))
    assert repairs == {"forced_answers": 1, "truncated": 1, "missing": 1}
    assert len(history) == 1
