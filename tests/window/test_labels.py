"""Relevance labels as an answer: the ranking that follows, for any text."""

from __future__ import annotations

import asyncio
from math import log

from hypothesis import given
from hypothesis import strategies as st

from rank_k.journal import Journal
from rank_k.models.base import Capabilities
from rank_k.models.cached import CachedModel
from rank_k.models.mock import ScriptedModel
from rank_k.types import Passage, Query, Request, Response, Usage, Window
from rank_k.window.labels import parse_labels
from rank_k.window.listwise import ListwiseRanker, ListwiseSettings

WORDS = ("no", "partly", "yes")
LABELS = "[1] no\n[2] yes\n[3] partly\n[4] yes\n[5] no\n"


def to_tokens(text: str, probabilities: dict[str, float], before: str = "") -> list[tuple[str, float]]:
    """As a server tells them: each line's beginning, its word with the probability of that line, its end."""
    pieces = [(before, 0.0)] if before else []
    for line in text.splitlines():
        number, _, word = line.partition(" ")
        pieces += [(number, -0.01), (f" {word}", log(probabilities[number])), ("\n", 0.0)]
    return pieces


def test_parse_labels_ranks_better_labels_first_and_ties_equal_ones() -> None:
    answer = parse_labels(LABELS, 5, WORDS)
    assert answer.tiers == ((2, 4), (3,), (1, 5))
    assert answer.ranked_numbers == {1, 2, 3, 4, 5}
    assert (answer.is_valid, dict(answer.repairs), answer.trace) == (True, {}, LABELS)


def test_parse_labels_orders_equal_labels_by_token_probability() -> None:
    probabilities = {"[1]": 0.9, "[2]": 0.6, "[3]": 0.5, "[4]": 0.8, "[5]": 0.4}
    assert parse_labels(LABELS, 5, WORDS, to_tokens(LABELS, probabilities)).tiers == ((4,), (2,), (3,), (5,), (1,))
    shifted_answer = parse_labels(LABELS.strip(), 5, WORDS, to_tokens(LABELS, probabilities, before="\n"))
    assert shifted_answer.tiers == ((4,), (2,), (3,), (5,), (1,)), "where the tokens begin before the text"
    other_answer = parse_labels(LABELS, 5, WORDS, to_tokens("[1] yes\n", {"[1]": 0.5}))
    assert other_answer.tiers == ((2, 4), (3,), (1, 5)), "tokens of another text say nothing"


def test_parse_labels_counts_repairs() -> None:
    text = "[2] yes\n[2] no\n[9] yes\n[1] maybe\nand so on [3] yes\n"
    answer = parse_labels(text, 3, WORDS)
    assert answer.tiers == ((2,), (1,), (3,))
    assert answer.ranked_numbers == {2}
    assert dict(answer.repairs) == {"repeated": 1, "out_of_range": 1, "missing": 2}
    empty_answer = parse_labels("[1] > [2]", 2, WORDS)
    assert (empty_answer.is_valid, empty_answer.tiers, dict(empty_answer.repairs)) == (
        False,
        ((1,), (2,)),
        {"unranked": 1},
    )


@given(
    st.text(st.sampled_from("[]0123 noyespartly\n>=x")) | st.text(),
    st.integers(1, 12),
    st.none() | st.lists(st.tuples(st.text(max_size=5), st.floats(-9999, 0))),
)
def test_parse_labels_returns_a_partition_for_any_text(
    text: str, size: int, token_probabilities: list[tuple[str, float]] | None
) -> None:
    answer = parse_labels(text, size, WORDS, token_probabilities)
    assert sorted(number for tier in answer.tiers for number in tier) == list(range(1, size + 1))
    assert answer.is_valid == bool(answer.ranked_numbers)


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.floats(0.01, 1)), min_size=1, max_size=12))
def test_parse_labels_never_moves_a_passage_past_the_next_label(labels: list[tuple[str, float]]) -> None:
    text = "".join(f"[{number}] {word}\n" for number, (word, _) in enumerate(labels, 1))
    probabilities = {f"[{number}]": probability for number, (_, probability) in enumerate(labels, 1)}
    answer = parse_labels(text, len(labels), WORDS, to_tokens(text, probabilities))
    levels = [WORDS.index(labels[number - 1][0]) for tier in answer.tiers for number in tier]
    assert levels == sorted(levels, reverse=True)


CAPABILITIES = Capabilities(prefill=True, grammar=True, logprobs=True, reasons=False)


def rank_by_labels(
    text: str, finish_reason: str = "stop"
) -> tuple[tuple[tuple[str, ...], ...], dict[str, int], list[Request]]:
    def respond(request: Request) -> Response:
        if "</think>" in request.prefill or not request.prefill:
            return Response("[3] > [2] > [1]", None, "stop", Usage(1, 1))
        token_probabilities = (
            tuple(to_tokens(text, {"[1]": 0.9, "[2]": 0.9, "[3]": 0.6})) if request.logprobs and text else None
        )
        return Response(text, None, finish_reason, Usage(1, 1), tokens=token_probabilities)

    async def run() -> tuple[tuple[tuple[str, ...], ...], dict[str, int], list[Request]]:
        journal, model = Journal(), ScriptedModel(respond, capabilities=CAPABILITIES)
        ranker = ListwiseRanker(CachedModel(model, journal), ListwiseSettings(label_words=WORDS))
        await ranker.prepare()
        window = Window(("a", "b", "c"), (1, 3))
        prepared_query = await ranker.prepare_query(
            Query("q", "why"), {d: Passage(d, f"text {d}") for d in window.doc_ids}
        )
        report = await ranker.rank(prepared_query, window)
        journal.close()
        return report.result.rankings[0].tiers, dict(report.repairs), list(model.history)

    return asyncio.run(run())


def test_listwise_ranker_uses_labels_without_a_second_call() -> None:
    tiers, repairs, history = rank_by_labels("[1] no\n[2] yes\n[3] no\n")
    assert tiers == (("b",), ("c",), ("a",))
    assert repairs == {}
    [request] = history
    assert request.logprobs


def test_listwise_ranker_requests_a_ranking_when_labels_are_missing() -> None:
    tiers, _, history = rank_by_labels("")
    assert tiers == (("c",), ("b",), ("a",))
    assert len(history) == 2


def test_listwise_ranker_uses_labels_of_truncated_reasoning() -> None:
    tiers, repairs, history = rank_by_labels("[1] no\n[2] yes\n", "length")
    assert tiers == (("b",), ("a",), ("c",))
    assert repairs == {"forced_answers": 1, "truncated": 1, "missing": 1}
    assert len(history) == 1
