"""The summary of a run."""

from __future__ import annotations

from collections import Counter

import pytest

from rank_k.cli.render import rerank_summary
from rank_k.engine import RunStats


def make_stats(windows: int, unranked_windows: int, unranked_answers: int) -> RunStats:
    """Return the counts of a run in which `unranked_answers` samples had no usable ranking."""
    unranked = [(f"q{number}", 0) for number in range(unranked_windows)]
    repairs = Counter(unranked=unranked_answers)
    return RunStats(windows=windows, unranked_windows=unranked_windows, unranked=unranked, repairs=repairs)


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        (RunStats(), False),
        (make_stats(2, 0, 0), False),
        (make_stats(2, 1, 1), False),
        (make_stats(2, 0, 3), False),
        (make_stats(2, 2, 2), True),
        (make_stats(2, 2, 8), True),
    ],
)
def test_is_unranked_counts_windows_and_not_samples(stats: RunStats, expected: bool) -> None:
    assert rerank_summary.is_unranked(stats) == expected
    assert (rerank_summary.ALL_UNRANKED in rerank_summary.lines(stats, 1.0)) == expected


def test_lines_have_singular_and_plural() -> None:
    stats = RunStats(queries=1, rounds=2, calls=1, new_calls=1, windows=1, repairs=Counter(missing=1, repeated=3))
    summary = rerank_summary.lines(stats, 1.0, noun="set")
    assert summary[0] == "1 set, 2 rounds, 1 call (0 from the journal), 1 s"
    assert summary[2].startswith("repairs: 1 passage missing from an answer or without a likelihood: placed at the end")
    assert summary[3] == "repairs: 3 passages listed twice in an answer: the first position counts"
