"""The command interrupted, by SIGKILL and by Ctrl-C, and given again: the same output, no finished call repeated."""

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
from tests.fakes.loopback import Loopback, Seen, make_queries, shown_marks, window_key
from tests.support.signals import hear_ctrl_c
from tests.support.waiting import PATIENCE, STUCK_SECONDS, until

pytestmark = pytest.mark.integration

SLOTS = 4
DATA = make_queries(24, 40, strict=True)  # window 10, stride 5: 7 windows a query
ASKING = ("--model", "oracle", "--window", "10", "--stride", "5", "--concurrency", str(SLOTS))
SLOW: dict[str, Any] = {"first_token": 0.04, "per_token": 0.0001, "flush": 0.02, "cut": 0.2}  # some 0.1 s a call

Call = tuple[str, int]
"""A question: what its window holds, and how many turns it has (more than one closes a cut thought)."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_dataset(DATA, tmp_path_factory.mktemp("data"))


def command(files: list[str], server: Loopback, output: Path) -> list[str]:
    options = [*files[: files.index("--output")], "--output", str(output), "--server", server.url, *ASKING]
    return [sys.executable, "-m", "rank_k.cli", "rerank", "--quiet", *options]


@pytest.fixture
def undisturbed(files: list[str], loopback: StartLoopback, tmp_path: Path) -> bytes:
    output = tmp_path / "undisturbed.trec"
    subprocess.run(command(files, loopback(cut=SLOW["cut"]), output), check=True)
    return output.read_bytes()


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)


def calls_of(seen: Iterable[Seen]) -> set[Call]:
    """Those about a window: what a server can do is asked anew by every process."""
    return {(call.window, call.n_messages) for call in seen if call.window}


def kept(output: Path) -> set[Call]:
    """The calls in the journal, read while nobody has it open."""
    path = output.with_name(output.name + ".journal.sqlite")
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path)) as journal:
        if not journal.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchone():
            return set()
        requests = journal.execute("SELECT request FROM calls").fetchall()
    sent = [json.loads(zlib.decompress(row[0]))["messages"] for row in requests]
    return {(window_key(shown_marks(messages)), len(messages)) for messages in sent}


def wait_for_calls(server: Loopback, number: int, child: subprocess.Popen[str]) -> None:
    """Until the server has been asked `number` questions, or the client has ended."""
    until(lambda: len(server.calls) >= number or child.poll() is not None, "the client asks nothing")


@pytest.mark.slow
def test_killed_at_30_random_moments_it_repeats_no_finished_call(
    files: list[str], loopback: StartLoopback, tmp_path: Path, undisturbed: bytes
) -> None:
    server, output, rng = loopback(**SLOW), tmp_path / "out.trec", random.Random(7)
    output.write_bytes(b"the run of yesterday\n")
    in_flight = 0  # kills that met calls on their way
    for kill in range(30):
        before, finished = server.calls, kept(output)
        with start(command(files, server, output)) as child:
            if kill % 5 == 4:  # any moment, start-up included
                time.sleep(rng.uniform(0, 0.6))
            else:  # a moment in the midst of the work
                wait_for_calls(server, len(before) + 1, child)
                time.sleep(rng.uniform(0, 0.2))
            child.kill()
        now = server.calls[len(before) :]
        assert not calls_of(now) & finished, "a call that was in the journal was asked again"
        lost = calls_of(server.calls) - kept(output)
        assert len(lost) <= SLOTS, "more was lost than was on its way"
        in_flight += bool(lost)
        if output.read_bytes() != b"the run of yesterday\n":
            assert output.read_bytes() == undisturbed, "the old output is replaced by the whole new one only"
    assert in_flight >= 20, "the moments were not in the midst of the work: this shows nothing"

    before, finished = server.calls, kept(output)
    assert 0 < len(finished) < len(DATA.queries) * 7, "there was nothing left to do"
    with closing(Journal(tmp_path / "out.trec.journal.sqlite", read_only=True)) as journal:
        assert sum(calls for _, _, calls, _, _ in journal.totals()) == len(finished)  # as it lies after a kill
    subprocess.run(command(files, server, output), check=True)
    assert output.read_bytes() == undisturbed
    assert not calls_of(server.calls[len(before) :]) & finished
    assert kept(output) == calls_of(server.calls)

    before = server.calls
    subprocess.run(command(files, server, output), check=True)
    assert output.read_bytes() == undisturbed
    assert not calls_of(server.calls[len(before) :]), "a finished run asks nothing"


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(
    files: list[str], loopback: StartLoopback, tmp_path: Path, undisturbed: bytes
) -> None:
    server, output, rng = loopback(**SLOW), tmp_path / "out.trec", random.Random(8)
    output.write_bytes(b"the run of yesterday\n")
    for _ in range(6):
        before, finished = server.calls, kept(output)
        with start(command(files, server, output)) as child:
            wait_for_calls(server, len(before) + SLOTS + 1, child)
            time.sleep(rng.uniform(0, 0.1))
            child.send_signal(signal.SIGINT)
            _, told = child.communicate(timeout=PATIENCE)
        [line] = told.strip().splitlines()
        assert "out.trec.journal.sqlite" in line
        assert "goes on" in line
        assert child.returncode == 130
        assert output.read_bytes() == b"the run of yesterday\n"
        assert not calls_of(server.calls[len(before) :]) & finished
    subprocess.run(command(files, server, output), check=True)
    assert output.read_bytes() == undisturbed
    assert kept(output) == calls_of(server.calls)


def test_ctrl_c_before_anything_was_asked(files: list[str], loopback: StartLoopback, tmp_path: Path) -> None:
    server = loopback(first_token=STUCK_SECONDS)
    with start(command(files, server, tmp_path / "out.trec")) as child:
        wait_for_calls(server, 1, child)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=PATIENCE)
    assert (child.returncode, len(told.strip().splitlines())) == (130, 1)
    assert not (tmp_path / "out.trec").exists()
    until(lambda: all(call.cancelled for call in server.calls), "the server still works for a client that is gone")


def test_several_at_once_may_share_a_new_journal(
    files: list[str], loopback: StartLoopback, tmp_path: Path, undisturbed: bytes
) -> None:
    server = loopback()
    outputs = [tmp_path / f"out{i}.trec" for i in range(3)]
    shared = ("--journal", str(tmp_path / "shared.sqlite"))
    children = [start([*command(files, server, output), *shared]) for output in outputs]
    assert [child.communicate(timeout=PATIENCE)[1] for child in children] == [""] * 3
    assert [child.returncode for child in children] == [0] * 3
    assert [output.read_bytes() for output in outputs] == [undisturbed] * 3
