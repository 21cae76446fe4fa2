"""When a thought pays, and how sure a direct answer was: in any tokenization, of any quality."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import InputError
from rank_k.types import Window, WindowRanking
from rank_k.window.reasoning import AutoReasoningPolicy, ReasoningMode, agreement, confidence, should_reason

RULE = AutoReasoningPolicy()


def answer(ids: Sequence[int], separators: str = ">") -> str:
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


WAYS = (by_characters, by_marks, by_joined_brackets, by_whole_ids)


def with_chances(text: str, way: Callable[[str], list[str]], chance_of: dict[int, float]) -> list[tuple[str, float]]:
    """`text` in tokens such that each id has the chance it is given; the chance lies on its closing bracket's token."""
    closes = {match.end() - 1: int(match[1]) for match in re.finditer(r"\[(\d+)\]", text)}
    tokens, at = [], 0
    for piece in way(text):
        chance = math.prod(chance_of[closes[i]] for i in range(at, at + len(piece)) if i in closes)
        tokens.append((piece, math.log(chance)))
        at += len(piece)
    assert at == len(text)
    return tokens


# --- confidence ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [2, 9, 10, 20, 100])
@pytest.mark.parametrize("separators", [">", ">=", "=>,"])
def test_confidence_is_the_same_in_any_tokenization(
    way: Callable[[str], list[str]], size: int, separators: str
) -> None:
    random = Random(size)
    ids = random.sample(range(1, size + 1), size)
    chance_of = {i: random.uniform(0.05, 1) for i in ids}
    found = confidence(with_chances(answer(ids, separators), way, chance_of), size)
    assert found == pytest.approx(math.prod(chance_of[i] for i in ids[:10]) ** (1 / min(size, 10)))


@pytest.mark.parametrize(("size", "doubt"), [(9, 0.0), (10, 0.5), (20, 0.5)])
def test_one_and_ten_begin_alike(size: int, doubt: float) -> None:
    """After `[1` the model is in two minds whether a 0 or a bracket follows: only the bracket tells."""
    tokens = [("[", 0.0), ("1", 0.0), ("]", math.log(1 - doubt)), (" > [", 0.0), ("2", 0.0), ("]", 0.0)]
    assert confidence(tokens, size) == pytest.approx(math.sqrt(1 - doubt))
    if size >= 10:
        tokens = [("[", 0.0), ("1", 0.0), ("0", math.log(doubt)), ("]", 0.0), (" > [2]", 0.0)]
        assert confidence(tokens, size) == pytest.approx(math.sqrt(doubt))


def test_digits_in_the_middle_of_an_id_count() -> None:
    tokens = [(" [1", -0.5), ("0]", -1.0), (" =", -9.0), (" [", -0.25), ("2", -0.25), ("]", 0.0)]
    assert confidence(tokens, 10) == pytest.approx(math.exp(-(1.5 + 0.5) / 2))


def test_a_token_that_touches_two_ids_counts_for_both() -> None:
    tokens = [("[3", 0.0), ("] > [", -1.0), ("1", 0.0), ("]", -0.5)]
    assert confidence(tokens, 3) == pytest.approx(math.exp(-(1.0 + 1.5) / 2))


def test_only_the_first_ids_count() -> None:
    ids = list(range(1, 21))
    sure_head = with_chances(answer(ids), by_marks, {i: 1.0 if i <= 10 else 0.01 for i in ids})
    assert confidence(sure_head, 20) == pytest.approx(1.0)
    assert confidence(sure_head, 20, top_k=20) == pytest.approx(0.1)
    assert confidence(sure_head, 20, top_k=11) == pytest.approx(0.01 ** (1 / 11))


def test_the_answer_is_found_among_prose() -> None:
    """Ids mentioned before, in an empty thought or in notes, are not the answer, however unsure."""
    tokens = [
        *(("<think>\n\n</think>\n\n", 0.0), ("Passage [2]", -9.0), (" and [3] look good. So: ", -9.0)),
        *with_chances(answer([3, 2, 1]), by_marks, {1: 1.0, 2: 0.5, 3: 0.5}),
        *((" since [3]", -9.0), (" says so", -9.0)),
    ]
    assert confidence(tokens, 3) == pytest.approx(0.25 ** (1 / 3))


def test_of_two_full_answers_the_last_counts() -> None:
    tokens = [("[1] > [2]", -9.0), (". No: ", 0.0), ("[2] > [1]", -0.5)]
    assert confidence(tokens, 2) == pytest.approx(math.exp(-0.5))


def test_strange_and_repeated_ids_are_passed_over() -> None:
    tokens = [("[2]", -1.0), (" > [77]", -9.0), (" > [2]", -9.0), (" > [0]", -9.0), (" > [1]", -2.0)]
    assert confidence(tokens, 3) == pytest.approx(math.exp(-1.5))


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
def test_none_where_nothing_is_spelt_or_no_number_is_given(tokens: list[tuple[str, float]]) -> None:
    assert confidence(tokens, 20) is None


@given(
    st.lists(st.tuples(st.text("[]0123456789 >=,x\n١", max_size=6), st.floats()), max_size=40),
    st.integers(0, 120),
    st.integers(-1, 30),
)
def test_confidence_never_raises(tokens: list[tuple[str, float]], size: int, cut: int) -> None:
    found = confidence(tokens, size, cut)
    assert found is None or 0 <= found <= 1


@given(st.permutations(range(1, 21)), st.data())
def test_odd_pieces_never_raise_confidence(ids: list[int], data: st.DataObject) -> None:
    """A piece over two ids lowers both, so that the finer tokenization is at least as sure."""
    chance_of = {i: data.draw(st.floats(0.01, 1)) for i in ids}
    text = answer(ids)
    fine = confidence(with_chances(text, by_characters, chance_of), 20)
    coarse = confidence(with_chances(text, by_odd_pieces, chance_of), 20)
    assert fine is not None
    assert coarse is not None
    assert coarse <= fine + 1e-9


# --- agreement ---


def order(*tiers: str, forgot: str = "") -> WindowRanking:
    given_tiers = [tuple(tier) for tier in tiers]
    return WindowRanking((*given_tiers, *((i,) for i in forgot)), frozenset("".join(tiers)), True)


ALL = "abcdefghijklmnopqrst"


def test_agreement_at_its_ends() -> None:
    same, turned = order(*ALL), order(*ALL[::-1])
    assert agreement(same, same) == 1
    assert agreement(same, turned) == 0
    assert agreement(same, WindowRanking.unranked(Window(tuple(ALL), (1, 20)))) == 0
    assert agreement(order(ALL), order(ALL)) == 0, "nothing was told apart"
    assert agreement(order(*ALL[:10], ALL[10:]), order(*ALL[:10], ALL[10:])) == 1


def test_agreement_by_hand() -> None:
    assert agreement(order("a", "b", "c"), order("b", "a", "c")) == pytest.approx((2 - 1) / 3)
    assert agreement(order("a", "b", "c"), order("ab", "c")) == pytest.approx(2 / 3)
    assert agreement(order("a", "b", forgot="c"), order("a", "c", "b")) == 1, "c was forgotten"


def test_only_the_head_matters() -> None:
    assert agreement(order(*ALL), order(*ALL[:10], *ALL[:9:-1])) == 1
    assert agreement(order(*ALL), order(*ALL[9::-1], *ALL[10:])) < 0.5
    near, far = list(ALL), list(ALL)
    near[0], near[19] = near[19], near[0]
    far[9], far[10] = far[10], far[9]
    assert agreement(order(*ALL), order(*near)) < agreement(order(*ALL), order(*far)) < 1


@given(st.permutations(ALL), st.permutations(ALL), st.integers(1, 20))
def test_agreement_has_no_favorite(one: list[str], other: list[str], cut: int) -> None:
    found = agreement(order(*one), order(*other), cut)
    assert 0 <= found <= 1
    assert found == agreement(order(*other), order(*one), cut)


def test_orders_drawn_at_random_agree_little() -> None:
    random = Random(1)
    found = [agreement(order(*ALL), order(*random.sample(ALL, 20))) for _ in range(300)]
    assert sum(found) / len(found) < 0.1


# --- the rule ---


def window(best: int, worst: int, size: int = 20) -> Window:
    return Window(tuple(map(str, range(size))), (best, worst))


@pytest.mark.parametrize("sure", [None, 0.0, 0.5, RULE.min_confidence - 1e-9])
def test_thinks_only_where_the_top_can_be_touched_near_the_head(sure: float | None) -> None:
    assert should_reason(window(1, 20), sure, RULE)
    assert should_reason(window(10, 50), sure, RULE)
    assert not should_reason(window(11, 50), sure, RULE)
    assert not should_reason(window(1, 51), sure, RULE)
    assert should_reason(window(1, 100), sure, AutoReasoningPolicy(max_rank=100))


def test_who_is_sure_need_not_think() -> None:
    assert not should_reason(window(1, 20), RULE.min_confidence, RULE)
    assert not should_reason(window(1, 20), 1.0, RULE)


@pytest.mark.parametrize(("best", "size", "places"), [(1, 20, 10), (1, 4, 4), (6, 20, 5), (10, 20, 1), (11, 20, 0)])
def test_places_that_can_still_reach_the_top(best: int, size: int, places: int) -> None:
    assert RULE.places(window(best, 100, size)) == places


def test_less_than_half_of_a_sliding_pass_is_thought_about() -> None:
    """Whatever scale a model's confidence has: four windows of nine."""
    from rank_k.strategies import make
    from rank_k.types import Candidate, WindowResult

    steps = make("sliding")([Candidate(str(i), -float(i)) for i in range(100)], 0)
    asked = next(steps)
    windows: list[Window] = []
    try:
        while True:
            windows.extend(asked.windows)
            asked = steps.send([WindowResult(each, (WindowRanking.unranked(each),)) for each in asked.windows])
    except StopIteration:
        assert [should_reason(each, None, RULE) for each in windows] == [False] * 5 + [True] * 4


# --- what the user writes ---


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
def test_think_is_read(text: str, reasoning: ReasoningMode) -> None:
    assert ReasoningMode.parse(text) == reasoning
    assert ReasoningMode.parse(str(reasoning)) == reasoning


@pytest.mark.parametrize("text", ["", "0", "0k", "-5", "1.5k", "yes", "2kk", "k", "1e3", "9" * 400])
def test_what_is_no_budget_is_one_clear_line(text: str) -> None:
    with pytest.raises(InputError, match=r"write full, off, auto") as raised:
        ReasoningMode.parse(text)
    assert "\n" not in str(raised.value)
