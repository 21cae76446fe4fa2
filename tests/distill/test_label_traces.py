"""Traces of verdicts: read back as written; what is shown may be random, what is learnt and what follows is not."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.distill.label_traces import LabelTrace, corrupt_labels, parse_label_trace
from rank_k.window.parsing import parse_ranking
from tests.support.waiting import cpu_seconds

WORDS = ("no", "partly", "yes")
label_lists = st.lists(st.integers(0, 2), min_size=1, max_size=20).map(tuple)


def make_trace(labels: tuple[int, ...]) -> LabelTrace:
    return LabelTrace(labels, labels, WORDS)


def test_label_trace_text_has_the_documented_form() -> None:
    assert make_trace((0, 2, 1)).reasoning == "[1] no\n[2] yes\n[3] partly"
    assert [make_trace(labels).ranking for labels in ((0, 2, 1), (0, 0, 2, 2), (0, 0))] == [
        "[2] > [3] > [1]",
        "[3] = [4] > [1] = [2]",
        "[1] = [2]",
    ]
    assert make_trace((0, 2, 0)).text == "<think>\n[1] no\n[2] yes\n[3] no\n</think>\n\n[2] > [1] = [3]"


@given(label_lists)
def test_parse_label_trace_reads_its_own_text(labels: tuple[int, ...]) -> None:
    assert parse_label_trace(make_trace(labels).text, WORDS) == make_trace(labels)


@given(label_lists)
def test_label_trace_ranking_follows_the_labels(labels: tuple[int, ...]) -> None:
    answer = parse_ranking(make_trace(labels).text, len(labels))
    assert answer.is_valid
    assert not answer.repairs
    assert [[labels[number - 1] for number in tier] for tier in answer.tiers] == [
        [label] * labels.count(label) for label in sorted(set(labels), reverse=True)
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
def test_parse_label_trace_rejects_other_forms(text: str) -> None:
    assert parse_label_trace(text, WORDS) is None


def test_parse_label_trace_takes_linear_time() -> None:
    """Notes of a teacher of another kind, and one line end too few; with quadratic time the ratio would be 64."""

    def make_reader(lines: int) -> Callable[[], None]:
        notes = "".join(f"[{i}] is about [{i}] and [{i + 1}]\n" for i in range(1, lines))

        def read() -> None:
            for _ in range(50):
                assert parse_label_trace(f"<think>\n{notes}</think>\n[1] > [2]", WORDS) is None

        return read

    short_seconds, long_seconds = cpu_seconds(make_reader(1000), make_reader(8000))
    assert long_seconds < 24 * short_seconds


@given(label_lists, st.floats(0, 1), st.integers())
def test_corrupt_labels_changes_shown_labels_only(labels: tuple[int, ...], chance: float, seed: int) -> None:
    corrupted = corrupt_labels(make_trace(labels), chance, Random(seed))
    assert corrupted.target_labels == labels
    assert corrupted.ranking == make_trace(corrupted.shown_labels).ranking
    assert parse_label_trace(corrupted.text, WORDS) == make_trace(corrupted.shown_labels)


def test_corrupt_labels_changes_the_given_share() -> None:
    labels = (0,) * 3000
    shown_labels = corrupt_labels(make_trace(labels), 0.5, Random(0)).shown_labels
    assert set(shown_labels) == {0, 1, 2}
    assert 0.3 < sum(map(bool, shown_labels)) / 3000 < 0.37  # half are drawn, two thirds of these are another
    assert corrupt_labels(make_trace(labels), 0.0, Random(0)).shown_labels == labels
