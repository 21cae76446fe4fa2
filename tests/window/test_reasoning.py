"""Reasoning modes, the confidence of a direct answer in any tokenization, and when to reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.option_values import ReasoningMode
from rank_k.types import Window, WindowRanking
from rank_k.window.reasoning import (
    AutoReasoningPolicy,
    answer_confidence,
    ranking_agreement,
    should_reason,
)

POLICY = AutoReasoningPolicy()


def format_answer(ids: Sequence[int], separators: str = ">") -> str:
    parts = [f"[{ids[0]}]"]
    for n, i in enumerate(ids[1:]):
        parts.append(f" {separators[n % len(separators)]} [{i}]")
    return "".join(parts)


def by_characters(text: str) -> list[str]:
    return list(text)


def by_marks(text: str) -> list[str]:
    """Brackets, digits and separators apart, as vocabularies that split digits do."""
    return re.findall(r"\s?\[|\d|\]|\s?[>=]|.", text, re.DOTALL)


def by_joined_brackets(text: str) -> list[str]:
    """ " [10", "]", " >": whole numbers with their opening bracket."""
    return re.findall(r"\s?\[\d+|\]|\s?[>=]|.", text, re.DOTALL)


def by_whole_ids(text: str) -> list[str]:
    return re.findall(r"\s?\[\d+\]|\s?[>=]|.", text, re.DOTALL)


def by_odd_pieces(text: str) -> list[str]:
    """Pieces that pay no heed to ids: several touch two of them."""
    return [text[i : i + 3] for i in range(0, len(text), 3)]


TOKENIZERS = (by_characters, by_marks, by_joined_brackets, by_whole_ids)


def with_probabilities(
    text: str, tokenize: Callable[[str], list[str]], probability_of: dict[int, float]
) -> list[tuple[str, float]]:
    """`text` in tokens such that each id has the chance it is given; the chance lies on its closing bracket's token."""
    closes = {match.end() - 1: int(match[1]) for match in re.finditer(r"\[(\d+)\]", text)}
    tokens, offset = [], 0
    for piece in tokenize(text):
        probability = math.prod(probability_of[closes[i]] for i in range(offset, offset + len(piece)) if i in closes)
        tokens.append((piece, math.log(probability)))
        offset += len(piece)
    assert offset == len(text)
    return tokens


# --- confidence ---


@pytest.mark.parametrize("tokenize", TOKENIZERS)
@pytest.mark.parametrize("size", [2, 9, 10, 20, 100])
@pytest.mark.parametrize("separators", [">", ">=", "=>,"])
def test_confidence_is_independent_of_the_tokenization(
    tokenize: Callable[[str], list[str]], size: int, separators: str
) -> None:
    random = Random(size)
    ids = random.sample(range(1, size + 1), size)
    probability_of = {i: random.uniform(0.05, 1) for i in ids}
    value = answer_confidence(with_probabilities(format_answer(ids, separators), tokenize, probability_of), size)
    assert value == pytest.approx(math.prod(probability_of[i] for i in ids[:10]) ** (1 / min(size, 10)))


@pytest.mark.parametrize(("size", "probability"), [(9, 0.0), (10, 0.5), (20, 0.5)])
def test_confidence_includes_the_closing_bracket(size: int, probability: float) -> None:
    """After `[1` the model is in two minds whether a 0 or a bracket follows: only the bracket tells."""
    tokens = [("[", 0.0), ("1", 0.0), ("]", math.log(1 - probability)), (" > [", 0.0), ("2", 0.0), ("]", 0.0)]
    assert answer_confidence(tokens, size) == pytest.approx(math.sqrt(1 - probability))
    if size >= 10:
        tokens = [("[", 0.0), ("1", 0.0), ("0", math.log(probability)), ("]", 0.0), (" > [2]", 0.0)]
        assert answer_confidence(tokens, size) == pytest.approx(math.sqrt(probability))


def test_confidence_includes_all_digits_of_an_id() -> None:
    tokens = [(" [1", -0.5), ("0]", -1.0), (" =", -9.0), (" [", -0.25), ("2", -0.25), ("]", 0.0)]
    assert answer_confidence(tokens, 10) == pytest.approx(math.exp(-(1.5 + 0.5) / 2))


def test_confidence_counts_a_shared_token_for_both_ids() -> None:
    tokens = [("[3", 0.0), ("] > [", -1.0), ("1", 0.0), ("]", -0.5)]
    assert answer_confidence(tokens, 3) == pytest.approx(math.exp(-(1.0 + 1.5) / 2))


def test_confidence_uses_only_the_top_ids() -> None:
    ids = list(range(1, 21))
    sure_head = with_probabilities(format_answer(ids), by_marks, {i: 1.0 if i <= 10 else 0.01 for i in ids})
    assert answer_confidence(sure_head, 20) == pytest.approx(1.0)
    assert answer_confidence(sure_head, 20, top_k=20) == pytest.approx(0.1)
    assert answer_confidence(sure_head, 20, top_k=11) == pytest.approx(0.01 ** (1 / 11))


def test_confidence_finds_the_answer_in_prose() -> None:
    """Ids mentioned before, in an empty thought or in notes, are not the answer, however unsure."""
    tokens = [
        *(("<think>\n\n</think>\n\n", 0.0), ("Passage [2]", -9.0), (" and [3] look good. So: ", -9.0)),
        *with_probabilities(format_answer([3, 2, 1]), by_marks, {1: 1.0, 2: 0.5, 3: 0.5}),
        *((" since [3]", -9.0), (" says so", -9.0)),
    ]
    assert answer_confidence(tokens, 3) == pytest.approx(0.25 ** (1 / 3))


def test_confidence_uses_the_last_of_two_answers() -> None:
    tokens = [("[1] > [2]", -9.0), (". No: ", 0.0), ("[2] > [1]", -0.5)]
    assert answer_confidence(tokens, 2) == pytest.approx(math.exp(-0.5))


def test_confidence_skips_unknown_and_repeated_ids() -> None:
    tokens = [("[2]", -1.0), (" > [77]", -9.0), (" > [2]", -9.0), (" > [0]", -9.0), (" > [1]", -2.0)]
    assert answer_confidence(tokens, 3) == pytest.approx(math.exp(-1.5))


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [("", 0.0)],
        [("I cannot rank these.", -1.0)],
        [("[3]", -0.1)],
        [("[30] > [40]", -0.1)],
        [("[1", -0.1), (" > [2", -0.1)],
        [("[1]", math.nan), (" > [2]", -0.1)],
        [("[1] [", math.inf), ("2", -math.inf), ("]", 0.0)],
    ],
)
def test_confidence_is_none_without_ids_or_probabilities(tokens: list[tuple[str, float]]) -> None:
    assert answer_confidence(tokens, 20) is None


@given(
    st.lists(st.tuples(st.text("[]0123456789 >=,x\n١", max_size=6), st.floats()), max_size=40),
    st.integers(0, 120),
    st.integers(-1, 30),
)
def test_confidence_never_raises(tokens: list[tuple[str, float]], size: int, top_k: int) -> None:
    value = answer_confidence(tokens, size, top_k)
    assert value is None or 0 <= value <= 1


@given(st.permutations(range(1, 21)), st.data())
def test_confidence_is_not_higher_for_coarser_tokens(ids: list[int], data: st.DataObject) -> None:
    """A piece over two ids lowers both, so that the finer tokenization is at least as sure."""
    probability_of = {i: data.draw(st.floats(0.01, 1)) for i in ids}
    text = format_answer(ids)
    fine = answer_confidence(with_probabilities(text, by_characters, probability_of), 20)
    coarse = answer_confidence(with_probabilities(text, by_odd_pieces, probability_of), 20)
    assert fine is not None
    assert coarse is not None
    assert coarse <= fine + 1e-9


# --- agreement ---


def make_ranking(*tiers: str, missing: str = "") -> WindowRanking:
    ranked_tiers = [tuple(tier) for tier in tiers]
    return WindowRanking((*ranked_tiers, *((i,) for i in missing)), frozenset("".join(tiers)), True)


DOC_IDS = "abcdefghijklmnopqrst"


def test_agreement_of_identical_and_reversed_rankings() -> None:
    ranking, reversed_ranking = make_ranking(*DOC_IDS), make_ranking(*DOC_IDS[::-1])
    assert ranking_agreement(ranking, ranking) == 1
    assert ranking_agreement(ranking, reversed_ranking) == 0
    assert ranking_agreement(ranking, WindowRanking.unranked(Window(tuple(DOC_IDS), (1, 20)))) == 0
    assert ranking_agreement(make_ranking(DOC_IDS), make_ranking(DOC_IDS)) == 0, "nothing was told apart"
    assert ranking_agreement(make_ranking(*DOC_IDS[:10], DOC_IDS[10:]), make_ranking(*DOC_IDS[:10], DOC_IDS[10:])) == 1


def test_agreement_matches_hand_computed_values() -> None:
    assert ranking_agreement(make_ranking("a", "b", "c"), make_ranking("b", "a", "c")) == pytest.approx((2 - 1) / 3)
    assert ranking_agreement(make_ranking("a", "b", "c"), make_ranking("ab", "c")) == pytest.approx(2 / 3)
    assert ranking_agreement(make_ranking("a", "b", missing="c"), make_ranking("a", "c", "b")) == 1, "c was forgotten"


def test_agreement_counts_only_pairs_with_a_top_passage() -> None:
    assert ranking_agreement(make_ranking(*DOC_IDS), make_ranking(*DOC_IDS[:10], *DOC_IDS[:9:-1])) == 1
    assert ranking_agreement(make_ranking(*DOC_IDS), make_ranking(*DOC_IDS[9::-1], *DOC_IDS[10:])) < 0.5
    near, far = list(DOC_IDS), list(DOC_IDS)
    near[0], near[19] = near[19], near[0]
    far[9], far[10] = far[10], far[9]
    assert (
        ranking_agreement(make_ranking(*DOC_IDS), make_ranking(*near))
        < ranking_agreement(make_ranking(*DOC_IDS), make_ranking(*far))
        < 1
    )


@given(st.permutations(DOC_IDS), st.permutations(DOC_IDS), st.integers(1, 20))
def test_agreement_is_symmetric(first: list[str], second: list[str], top_k: int) -> None:
    value = ranking_agreement(make_ranking(*first), make_ranking(*second), top_k)
    assert 0 <= value <= 1
    assert value == ranking_agreement(make_ranking(*second), make_ranking(*first), top_k)


def test_agreement_of_random_rankings_is_low() -> None:
    random = Random(1)
    values = [ranking_agreement(make_ranking(*DOC_IDS), make_ranking(*random.sample(DOC_IDS, 20))) for _ in range(300)]
    assert sum(values) / len(values) < 0.1


# --- should_reason ---


def make_window(best_rank: int, worst_rank: int, size: int = 20) -> Window:
    return Window(tuple(map(str, range(size))), (best_rank, worst_rank))


@pytest.mark.parametrize("direct_confidence", [None, 0.0, 0.5, POLICY.min_confidence - 1e-9])
def test_should_reason_only_where_top_ranks_can_change(direct_confidence: float | None) -> None:
    assert should_reason(make_window(1, 20), direct_confidence, POLICY)
    assert should_reason(make_window(10, 50), direct_confidence, POLICY)
    assert not should_reason(make_window(11, 50), direct_confidence, POLICY)
    assert not should_reason(make_window(1, 51), direct_confidence, POLICY)
    assert should_reason(make_window(1, 100), direct_confidence, AutoReasoningPolicy(max_rank=100))


def test_should_reason_is_false_for_confident_rankings() -> None:
    assert not should_reason(make_window(1, 20), POLICY.min_confidence, POLICY)
    assert not should_reason(make_window(1, 20), 1.0, POLICY)


@pytest.mark.parametrize(
    ("best_rank", "size", "positions"), [(1, 20, 10), (1, 4, 4), (6, 20, 5), (10, 20, 1), (11, 20, 0)]
)
def test_positions_in_top_k_counts_positions_of_the_window(best_rank: int, size: int, positions: int) -> None:
    assert POLICY.positions_in_top_k(make_window(best_rank, 100, size)) == positions


def test_should_reason_covers_four_of_nine_sliding_windows() -> None:
    """Whatever scale a model's confidence has: four windows of nine."""
    from rank_k.strategies import make_strategy
    from rank_k.types import Candidate, WindowResult

    generator = make_strategy("sliding")([Candidate(str(i), -float(i)) for i in range(100)], 0)
    step = next(generator)
    windows: list[Window] = []
    try:
        while True:
            windows.extend(step.windows)
            step = generator.send(
                [WindowResult(make_window, (WindowRanking.unranked(make_window),)) for make_window in step.windows]
            )
    except StopIteration:
        assert [should_reason(make_window, None, POLICY) for make_window in windows] == [False] * 5 + [True] * 4


# --- ReasoningMode.parse ---


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("full", ReasoningMode("full")),
        ("off", ReasoningMode("off")),
        (" Auto ", ReasoningMode("auto")),
        ("500", ReasoningMode("budget", 500)),
        ("2k", ReasoningMode("budget", 2000)),
        ("2K", ReasoningMode("budget", 2000)),
    ],
)
def test_reasoning_mode_parses_valid_values(text: str, reasoning: ReasoningMode) -> None:
    assert ReasoningMode.parse(text) == reasoning
    assert ReasoningMode.parse(str(reasoning)) == reasoning


@pytest.mark.parametrize("text", ["", "0", "0k", "-5", "1.5k", "yes", "2kk", "k", "1e3", "9" * 400])
def test_reasoning_mode_rejects_invalid_values_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"write full, off, auto") as raised:
        ReasoningMode.parse(text)
    assert "\n" not in str(raised.value)
