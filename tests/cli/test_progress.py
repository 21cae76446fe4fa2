"""Progress in a terminal, and its absence elsewhere."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest

from rank_k.cli.progress import ProgressState, progress_bar
from rank_k.cli.render.words import count_noun, format_count, format_seconds
from tests.cli.helpers import Terminal
from tests.support.waiting import wait_until


def poll() -> ProgressState:
    """Return the state of work that is half done."""
    return ProgressState(3, 6, "3/6 queries", "each takes 2 s")


@pytest.fixture
def in_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("in_terminal")
def test_polled_progress_is_shown_and_erased_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", output)
        with pytest.raises(KeyboardInterrupt), progress_bar("cell [1]: ", poll=poll):
            raise KeyboardInterrupt
    for part in ("cell [1]:", "50%", "3/6 queries", "each takes 2 s"):
        assert part in output.getvalue()
    assert output.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K"), (
        "the cursor is shown, both lines erased"
    )


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


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "window", "1 window"), (1200, "window", "1,200 windows"), (0, "query", "0 queries"), (1, "query", "1 query")],
)
def test_count_noun(count: int, noun: str, text: str) -> None:
    assert count_noun(count, noun) == text


def test_polled_progress_is_logged_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("rank_k.cli.progress.LOG_SECONDS", 0.01)
    with progress_bar("cell 1: ", poll=poll):
        wait_until(lambda: stream.getvalue().count("\n") >= 3, "no line was printed")
    notice, *lines = stream.getvalue().splitlines()
    assert notice == "each takes 2 s"
    assert set(lines) == {"cell 1: 3/6 queries"}
    stopped = stream.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == stopped
