"""Traces of verdicts: read back as written; what is shown may be random, what is learnt and what follows is not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.distill.label_traces import LabelTrace, corrupted, order_line, read_labels
from rank_k.distill.labels_teacher import reasoning_and_ranking
from rank_k.window.parsing import parse_ranking
from tests.support.waiting import cpu_seconds

WORDS = ("no", "partly", "yes")
verdicts = st.lists(st.integers(0, 2), min_size=1, max_size=20).map(tuple)


def trace_of(levels: tuple[int, ...]) -> LabelTrace:
    return LabelTrace(levels, levels, WORDS)


def test_the_form() -> None:
    assert trace_of((0, 2, 0)).text == "<think>\n[1] no\n[2] yes\n[3] no\n</think>\n\n[2] > [1] = [3]"


@given(verdicts)
def test_what_the_labels_teacher_writes_is_read(levels: tuple[int, ...]) -> None:
    thought, order = reasoning_and_ranking(levels)
    found = read_labels(f"<think>\n{thought}\n</think>\n\n{order}", WORDS)
    assert found == trace_of(levels)


@given(verdicts)
def test_the_order_is_the_verdicts_order(levels: tuple[int, ...]) -> None:
    answer = parse_ranking(trace_of(levels).text, len(levels))
    assert answer.is_valid
    assert not answer.repairs
    assert [[levels[number - 1] for number in tier] for tier in answer.tiers] == [
        [level] * levels.count(level) for level in sorted(set(levels), reverse=True)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[1] > [2]",
        "<think>\n[1] no\n[2] maybe\n</think>\n\n[1] = [2]",
        "<think>\n[2] no\n[1] yes\n</think>\n\n[1] > [2]",
        "<think>\n[1] no\n[2] yes\n</think>\n\n[1] > [2]",
        "<think>\n[1] no\n[2] yes\n</think>\n[2] > [1]",
        "<think>\nlet me see\n[1] no\n</think>\n\n[1]",
    ],
)
def test_anything_else_is_no_trace_of_verdicts(text: str) -> None:
    assert read_labels(text, WORDS) is None


def test_a_trace_that_looks_like_one_of_verdicts_takes_linear_time() -> None:
    """Notes of a teacher of another kind, and one line end too few; with quadratic time the ratio would be 64."""

    def reading(lines: int) -> Callable[[], None]:
        notes = "".join(f"[{i}] is about [{i}] and [{i + 1}]\n" for i in range(1, lines))

        def read() -> None:
            for _ in range(50):
                assert read_labels(f"<think>\n{notes}</think>\n[1] > [2]", WORDS) is None

        return read

    short, long = cpu_seconds(reading(1000), reading(8000))
    assert long < 24 * short


@given(verdicts, st.floats(0, 1), st.integers())
def test_what_is_shown_changes_and_what_is_learnt_does_not(levels: tuple[int, ...], chance: float, seed: int) -> None:
    found = corrupted(trace_of(levels), chance, Random(seed))
    assert found.right == levels
    assert order_line(found.shown) in found.text
    assert read_labels(found.text, WORDS) == trace_of(found.shown)


def test_how_much_is_changed() -> None:
    levels = (0,) * 3000
    shown = corrupted(trace_of(levels), 0.5, Random(0)).shown
    assert set(shown) == {0, 1, 2}
    assert 0.3 < sum(map(bool, shown)) / 3000 < 0.37  # half are drawn, two thirds of these are another
    assert corrupted(trace_of(levels), 0.0, Random(0)).shown == levels
