"""Several processes that use one journal, and processes that are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from rank_k.journal import Journal
from rank_k.types import Ranking
from tests.journal.records import make_response
from tests.support.waiting import PATIENCE

WRITER = """
    import sys
    from rank_k.journal import Journal
    from rank_k.types import Response
    print("ready", flush=True)
    sys.stdin.readline()
    journal = Journal(sys.argv[1])
    for number in range(200):
        journal.store_call(str(number), "m", "ask", {"from": sys.argv[2]}, Response(f"from {sys.argv[2]}"))
        print(journal.find_response(str(number)).text)
"""

ENDLESS_WRITER = """
    import itertools, sys
    from rank_k.journal import Journal
    from rank_k.types import Ranking, Response
    journal = Journal(sys.argv[1])
    for number in itertools.count():
        journal.store_call(str(number), "m", "ask", {"n": number}, Response("text " * 200, "reasoning " * 200))
        journal.store_ranking("r", number, "q", Ranking.untied("abc"))
        print(number, flush=True)
"""


def start_python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_journal_written_by_several_processes_has_one_response_per_call(path: Path) -> None:
    """They create the file at the same moment and write the same keys."""
    children = [start_python(WRITER, path, name) for name in "abcd"]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=PATIENCE)[0].split("\n") for child in children]
    assert [child.returncode for child in children] == [0] * 4
    assert outputs[0] == outputs[1] == outputs[2] == outputs[3]
    assert len(outputs[0]) == 201
    journal = Journal(path, read_only=True)
    assert sum(calls for _, _, calls, _, _ in journal.usage_totals()) == 200
    for number in range(200):
        call = journal.find_call(str(number))
        assert call is not None
        assert f"from {call.request['from']}" == outputs[0][number]
    journal.close()


@pytest.mark.parametrize("min_calls", [1, 40, 400])
def test_journal_of_a_killed_process_has_every_stored_call(path: Path, min_calls: int) -> None:
    child = start_python(ENDLESS_WRITER, path)
    assert child.stdout is not None
    with child:
        for line in child.stdout:
            if int(line) >= min_calls:
                break
        os.kill(child.pid, signal.SIGKILL)
        numbers = [int(line) for line in child.stdout if line.endswith("\n")]
    last = max(numbers, default=min_calls)
    journal = Journal(path)
    for number in range(last + 1):
        response = journal.find_response(str(number))
        assert response is not None
        assert response.reasoning == "reasoning " * 200
        call = journal.find_call(str(number))
        assert call is not None
        assert call.request == {"n": number}
        assert journal.find_ranking("r", number) == Ranking.untied("abc")
    journal.store_call("more", "m", "ask", {}, make_response())
    journal.close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
