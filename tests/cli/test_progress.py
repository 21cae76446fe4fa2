"""Progress in a terminal, and its absence elsewhere."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections import Counter

import pytest

from rank_k.cli.progress import format_count, format_seconds, progress_bar, show_progress
from rank_k.engine import RunStats
from rank_k.types import Usage
from tests.cli.helpers import Terminal
from tests.support.waiting import wait_until

STATS = RunStats(
    queries=3, windows=7, new_calls=5, usage=Usage(completion_tokens=1_500), repairs=Counter(unranked=2, truncated=1)
)


@pytest.fixture
def in_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("in_terminal")
def test_show_progress_shows_counts_and_cleans_the_terminal_after_an_interruption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", output)
        with pytest.raises(KeyboardInterrupt), show_progress(False, "cell [1]:")(lambda: STATS, 30):
            raise KeyboardInterrupt
    for part in ("cell [1]:", "10%", "3/30 queries, 7 windows", "calls/s, 1.5k tokens out, 2 windows unranked"):
        assert part in output.getvalue()
    assert output.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "the cursor is shown and the line erased"


@pytest.mark.usefixtures("in_terminal")
def test_progress_bar_shows_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", output)
        with progress_bar("indexing the documents") as update:
            update(1, 4, "1 of 4 MB")
            sys.stderr.write("a warning\n")
    assert "a warning\n" in output.getvalue()
    for part in ("indexing the documents", "25%", "1 of 4 MB"):
        assert part in output.getvalue()


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO(), False), (Terminal(), True)])
def test_progress_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, quiet: bool) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with progress_bar("work", 2, quiet=quiet) as update:
            update(1)
            assert threading.active_count() == threads
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7_800, "2 h 10 min"), (3_599.6, "1 h 00 min")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (1_500, "1.5k"), (1_234_567, "1.2M"), (2 * 10**9, "2.0G")])
def test_format_count(number: int, text: str) -> None:
    assert format_count(number) == text


def test_progress_prints_lines_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("rank_k.cli.progress.LOG_SECONDS", 0.01)
    with show_progress(False, "cell 1: ")(lambda: STATS, 30):
        wait_until(lambda: stream.getvalue().count("\n") >= 2, "no line was printed")
    line = stream.getvalue().splitlines()[0]
    assert line.startswith(f"cell 1: {STATS.queries}/30 queries")
    assert line.endswith(" left")
    stopped = stream.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == stopped
