"""`rank-k rerank` interrupted by SIGKILL or Ctrl-C and resumed: the same output, and no finished call repeated."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from benchmarks.overhead import write_dataset

from rank_k.journal import Journal
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset, passage_marks, window_key
from tests.fakes.model_server.request_log import RecordedRequest
from tests.fakes.model_server.running import FakeModelServer
from tests.support.signals import enable_sigint
from tests.support.waiting import PATIENCE, STUCK_SECONDS, wait_until

pytestmark = pytest.mark.integration

CONCURRENCY = 4
DATA = make_dataset(24, 40, strict=True)  # window 10, stride 5: 7 windows a query
OPTIONS = ("--model", "oracle", "--window", "10", "--stride", "5", "--concurrency", str(CONCURRENCY))
SLOW: dict[str, Any] = {"first_token": 0.04, "per_token": 0.0001, "flush": 0.02, "cut": 0.2}  # some 0.1 s a call

Call = tuple[str, int]
"""A call: the key of its window, and its number of messages (more than one in a forced answer)."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_dataset(DATA, tmp_path_factory.mktemp("data"))


def rerank_command(files: list[str], server: FakeModelServer, output: Path) -> list[str]:
    options = [*files[: files.index("--output")], "--output", str(output), "--server", server.url, *OPTIONS]
    return [sys.executable, "-m", "rank_k.cli", "rerank", "--quiet", *options]


@pytest.fixture
def uninterrupted_output(files: list[str], loopback: StartLoopback, tmp_path: Path) -> bytes:
    output = tmp_path / "uninterrupted.trec"
    subprocess.run(rerank_command(files, loopback(cut=SLOW["cut"]), output), check=True)
    return output.read_bytes()


def start_command(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=enable_sigint)


def window_calls(seen: Iterable[RecordedRequest]) -> set[Call]:
    """Return the calls about a window. Every process repeats the probes of the server."""
    return {(call.window, call.n_messages) for call in seen if call.window}


def journal_calls(output: Path) -> set[Call]:
    """Return the calls in the journal, which no process has open."""
    path = output.with_name(output.name + ".journal.sqlite")
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path)) as journal:
        if not journal.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchone():
            return set()
        requests = journal.execute("SELECT request FROM calls").fetchall()
    prompts = [json.loads(zlib.decompress(row[0]))["messages"] for row in requests]
    return {(window_key(passage_marks(messages)), len(messages)) for messages in prompts}


def wait_for_calls(server: FakeModelServer, number: int, child: subprocess.Popen[str]) -> None:
    """Wait until the server has received `number` calls or the client has ended."""
    wait_until(lambda: len(server.calls) >= number or child.poll() is not None, "the client makes no calls")


@pytest.mark.slow
def test_rerank_killed_at_30_random_times_repeats_no_finished_call(
    files: list[str], loopback: StartLoopback, tmp_path: Path, uninterrupted_output: bytes
) -> None:
    server, output, rng = loopback(**SLOW), tmp_path / "out.trec", random.Random(7)
    output.write_bytes(b"an older run\n")
    in_flight = 0  # kills while calls were in flight
    for kill in range(30):
        before, finished = server.calls, journal_calls(output)
        with start_command(rerank_command(files, server, output)) as child:
            if kill % 5 == 4:  # at any time, also during startup
                time.sleep(rng.uniform(0, 0.6))
            else:  # while calls are in flight
                wait_for_calls(server, len(before) + 1, child)
                time.sleep(rng.uniform(0, 0.2))
            child.kill()
        now = server.calls[len(before) :]
        assert not window_calls(now) & finished, "a call in the journal was repeated"
        lost = window_calls(server.calls) - journal_calls(output)
        assert len(lost) <= CONCURRENCY, "more calls were lost than were in flight"
        in_flight += bool(lost)
        if output.read_bytes() != b"an older run\n":
            assert output.read_bytes() == uninterrupted_output, (
                "the old output is only replaced by the complete new one"
            )
    assert in_flight >= 20, "too few kills while calls were in flight: this test shows nothing"

    before, finished = server.calls, journal_calls(output)
    assert 0 < len(finished) < len(DATA.queries) * 7, "no calls were left"
    with closing(Journal(tmp_path / "out.trec.journal.sqlite", read_only=True)) as journal:
        assert sum(calls for _, _, calls, _, _ in journal.usage_totals()) == len(
            finished
        )  # without a checkpoint after the kill
    subprocess.run(rerank_command(files, server, output), check=True)
    assert output.read_bytes() == uninterrupted_output
    assert not window_calls(server.calls[len(before) :]) & finished
    assert journal_calls(output) == window_calls(server.calls)

    before = server.calls
    subprocess.run(rerank_command(files, server, output), check=True)
    assert output.read_bytes() == uninterrupted_output
    assert not window_calls(server.calls[len(before) :]), "a finished run makes no calls"


def test_rerank_prints_one_line_after_a_signal_and_resumes(
    files: list[str], loopback: StartLoopback, tmp_path: Path, uninterrupted_output: bytes
) -> None:
    server, output, rng = loopback(**SLOW), tmp_path / "out.trec", random.Random(8)
    output.write_bytes(b"an older run\n")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) * 2:  # job schedulers send the last two
        before, finished = server.calls, journal_calls(output)
        with start_command(rerank_command(files, server, output)) as child:
            wait_for_calls(server, len(before) + CONCURRENCY + 1, child)
            time.sleep(rng.uniform(0, 0.1))
            child.send_signal(number)
            _, stderr = child.communicate(timeout=PATIENCE)
        [line] = stderr.strip().splitlines()
        assert "out.trec.journal.sqlite" in line
        assert "run the same command again to resume" in line
        assert child.returncode == 130
        assert output.read_bytes() == b"an older run\n"
        assert not window_calls(server.calls[len(before) :]) & finished
    subprocess.run(rerank_command(files, server, output), check=True)
    assert output.read_bytes() == uninterrupted_output
    assert journal_calls(output) == window_calls(server.calls)


def test_rerank_prints_one_line_after_ctrl_c_before_the_first_response(
    files: list[str], loopback: StartLoopback, tmp_path: Path
) -> None:
    server = loopback(first_token=STUCK_SECONDS)
    with start_command(rerank_command(files, server, tmp_path / "out.trec")) as child:
        wait_for_calls(server, 1, child)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=PATIENCE)
    assert (child.returncode, len(stderr.strip().splitlines())) == (130, 1)
    assert not (tmp_path / "out.trec").exists()
    wait_until(
        lambda: all(call.cancelled for call in server.calls), "the server still has calls of a client that is gone"
    )


def test_rerank_processes_can_share_a_new_journal(
    files: list[str], loopback: StartLoopback, tmp_path: Path, uninterrupted_output: bytes
) -> None:
    server = loopback()
    outputs = [tmp_path / f"out{i}.trec" for i in range(3)]
    journal_option = ("--journal", str(tmp_path / "shared.sqlite"))
    children = [start_command([*rerank_command(files, server, output), *journal_option]) for output in outputs]
    assert [child.communicate(timeout=PATIENCE)[1] for child in children] == [""] * 3
    assert [child.returncode for child in children] == [0] * 3
    assert [output.read_bytes() for output in outputs] == [uninterrupted_output] * 3
