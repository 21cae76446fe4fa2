"""The journal: what was kept is found again, exactly, by any process, and nobody else's file is touched."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k import journal as journal_module
from rank_k.errors import JournalError
from rank_k.journal import Journal, WindowRecord, call_key
from rank_k.types import Ranking, Response, Usage, Window, WindowRanking
from tests.support.waiting import PATIENCE, cpu_seconds

HARD = "line\nbreak\0nul \ud800 lone \udcff undecodable \\udcff literal \N{GRINNING FACE} é"
texts = st.text(st.characters(exclude_categories=[]))  # lone surrogates too


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "j.sqlite"


@pytest.fixture
def kept() -> Iterator[Journal]:
    journal = Journal()
    yield journal
    journal.close()


def a_reply(text: str = "[1] > [2]") -> Response:
    return Response(text, "thought", "stop", Usage(100, 20, 10, 50), 1.5, (("[", -0.25), ("1", -3.5)))


def a_window(query_id: str = "q", number: int = 0, position: int = 0, calls: tuple[str, ...] = ("k",)) -> WindowRecord:
    order = WindowRanking((("b",), ("a", "c"), ("d",)), frozenset({"b", "a", "c"}), True)
    window = Window(("a", "b", "c", "d"), (1, 4))
    return WindowRecord(
        query_id, number, position, window, calls, (order, WindowRanking.unranked(window)), {"missing": 1}
    )


def in_child(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# --- what is kept is found again -------------------------------------------------------------------


def test_a_call_is_found_again(path: Path) -> None:
    reply = a_reply()
    journal = Journal(path)
    assert journal.find_response("k") is None
    assert journal.store_call("k", "m", "ask", {"messages": ["é"]}, reply) == reply
    assert journal.find_response("k") == reply
    journal.close()
    again = Journal(path)  # by another opening of the file
    assert again.find_response("k") == reply
    assert again.request("k") == {"messages": ["é"]}
    with pytest.raises(KeyError):
        again.request("other")
    again.close()


def test_a_temporary_journal_forgets_what_is_oldest_and_never_takes_more_than_its_room() -> None:
    """Half of the room is dropped at a time; rankings that wait for their turn are kept all the while."""
    room, each = 2_000_000, 10_000
    journal = Journal(room=room)
    waiting = Ranking(("a", "b"), (False, False))
    journal.store_ranking("r", 0, "q", waiting)
    for number in range(1000):  # five times the room
        incompressible = random.Random(number).randbytes(each // 2).hex()
        journal.store_call(
            str(number), "m", "ask", {"n": number}, Response(incompressible, None, "stop", Usage(1), 0.0)
        )
        assert journal.bytes <= 1.05 * room
    found = [number for number in range(1000) if journal.find_response(str(number)) is not None]
    assert found == list(range(found[0], 1000)), "the latest are all there"
    assert 0.4 * room < len(found) * each <= room
    assert journal.call("999") is not None
    assert journal.ranking("r", 0) == waiting
    assert journal.ranking("r", 0) is None
    journal.close()


def test_a_file_forgets_nothing(path: Path) -> None:
    journal = Journal(path, room=100_000)
    for number in range(100):
        journal.store_call(str(number), "m", "ask", {"n": number}, Response("x" * 10_000, None, "stop", Usage(1), 0.0))
    journal.store_ranking("r", 0, "q", Ranking(("a",), (False,)))
    assert all(journal.find_response(str(number)) for number in range(100))
    assert journal.ranking("r", 0) == journal.ranking("r", 0) is not None
    journal.close()


@given(texts, st.none() | texts, st.none() | texts, texts)
def test_every_text_survives_exactly(text: str, reasoning: str | None, finish_reason: str | None, model: str) -> None:
    journal = Journal()
    reply = Response(text, reasoning, finish_reason, Usage(1, 2, 3, 4, True), 0.0, ((text, -1.0),))
    journal.store_call("k", model, "ask", {"content": text}, reply)
    assert journal.find_response("k") == reply
    assert journal.request("k") == {"content": text}
    assert journal.totals() == [(model, "ask", 1, Usage(1, 2, 3, 4, True), 0.0)]
    journal.close()


@given(st.lists(texts, min_size=1, max_size=5, unique=True), texts, st.data())
def test_every_id_survives_exactly(doc_ids: list[str], query_id: str, data: st.DataObject) -> None:
    journal = Journal()
    tied = (False, *(data.draw(st.booleans()) for _ in doc_ids[1:]))
    ranking = Ranking(tuple(doc_ids), tied, data.draw(st.none() | st.just({doc_ids[0]: 0.75})))
    journal.store_ranking("r", 0, query_id, ranking)
    assert journal.ranking("r", 0) == ranking
    run = journal.begin_run({"a": 1})
    window = Window(tuple(doc_ids), (1, 5), data.draw(st.sampled_from(["listwise", "likelihood"])))
    order = WindowRanking((tuple(doc_ids),), frozenset(doc_ids[:1]), True)
    record = WindowRecord(query_id, 0, 0, window, ("k",), (order,), {"missing": 1})
    journal.store_window(run, record)
    assert list(journal.windows()) == [record]
    assert list(journal.windows(query_id=query_id)) == [record]
    journal.close()


def test_ids_that_only_look_alike_when_escaped_are_told_apart(kept: Journal) -> None:
    run = kept.begin_run({})
    for query_id in ("\udcff", "\\udcff"):
        kept.store_window(run, a_window(query_id))
    assert {record.query_id for record in kept.windows()} == {"\udcff", "\\udcff"}
    assert [record.query_id for record in kept.windows(query_id="\udcff")] == ["\udcff"]


def test_the_first_reply_kept_is_the_one_that_counts(kept: Journal) -> None:
    first, second = a_reply("first"), a_reply("second")
    assert kept.store_call("k", "m", "ask", {}, first) == first
    assert kept.store_call("k", "m", "ask", {}, second) == first
    assert kept.find_response("k") == first
    assert kept.totals() == [("m", "ask", 1, first.usage, first.seconds)]


def test_totals_add_up_by_model_and_purpose(kept: Journal) -> None:
    for key, model, purpose, usage in (
        ("a", "m", "ask", Usage(1, 2, 3, 4)),
        ("b", "m", "ask", Usage(10, 20, 30, 40, True)),
        ("c", "m", "close", Usage(5, 5, 5, 5)),
        ("d", "l", "ask", Usage(7, 7, 7, 7)),
    ):
        kept.store_call(key, model, purpose, {}, Response("", usage=usage, seconds=0.5))
    assert kept.totals() == [
        ("l", "ask", 1, Usage(7, 7, 7, 7), 0.5),
        ("m", "ask", 2, Usage(11, 22, 33, 44, True), 1.0),
        ("m", "close", 1, Usage(5, 5, 5, 5), 0.5),
    ]


# --- runs, windows, rankings -----------------------------------------------------------------------


def test_a_run_is_named_by_its_settings_and_goes_on_under_that_name(kept: Journal) -> None:
    assert kept.last_run() == ""
    first = kept.begin_run({"a": 1, "b": Path("x")})
    second = kept.begin_run({"a": 2, "b": Path("x")})
    assert first != second
    assert kept.last_run() == second
    assert kept.begin_run({"b": Path("x"), "a": 1}) == first
    assert kept.last_run() == first


def test_runs_are_told_with_their_settings_the_last_one_first(kept: Journal) -> None:
    assert kept.runs() == []
    first, second = kept.begin_run({"a": 1, "output": Path("x")}), kept.begin_run({"a": 2})
    assert [(record.run, record.settings) for record in kept.runs()] == [
        (second, {"a": 2}),
        (first, {"a": 1, "output": "x"}),
    ]
    kept.begin_run({"a": 1, "output": Path("x")})
    assert [record.run for record in kept.runs()] == [first, second]
    assert kept.runs()[0].started_at >= kept.runs()[1].started_at


def test_a_run_knows_its_model(kept: Journal) -> None:
    run = kept.begin_run({})
    assert kept.model(run) == ""
    kept.store_window(run, a_window("a", calls=("lost",)))
    kept.store_window(run, a_window("b", calls=("k",)))
    assert kept.model(run) == ""
    kept.store_call("k", "Rank-K", "ask", {}, Response("[1]"))
    assert kept.model(run) == "Rank-K"


def test_windows_come_in_the_order_asked(kept: Journal) -> None:
    assert list(kept.windows()) == []
    run, other = kept.begin_run({"n": 1}), kept.begin_run({"n": 2})
    records = [
        a_window(query_id, number, position) for query_id in "ab" for number in (0, 1, 10) for position in (0, 1)
    ]
    for record in reversed(records):
        kept.store_window(run, record)
    kept.store_window(other, a_window("c"))
    assert list(kept.windows(run)) == records
    assert list(kept.windows(run, "b")) == records[6:]
    assert [record.query_id for record in kept.windows()] == ["c"]  # of the last run
    assert list(kept.windows(run, "nobody")) == []


def test_a_window_asked_again_replaces_itself(kept: Journal) -> None:
    run = kept.begin_run({})
    kept.store_window(run, a_window(calls=("k",)))
    kept.store_window(run, a_window(calls=("k", "l")))
    assert [record.call_keys for record in kept.windows()] == [("k", "l")]


def test_rankings_belong_to_a_run_and_a_place(kept: Journal) -> None:
    ranking = Ranking(("b", "a", "c"), (False, False, True), {"b": 0.9})
    assert kept.ranking("r", 0) is None
    kept.store_ranking("r", 0, "q", Ranking.of("ab"))
    kept.store_ranking("r", 0, "q", ranking)
    assert kept.ranking("r", 0) == ranking
    assert kept.ranking("r", 1) is None
    assert kept.ranking("s", 0) is None


# --- keys ------------------------------------------------------------------------------------------


def test_a_key_tells_requests_models_and_samples_apart_and_nothing_else() -> None:
    key = call_key("model", {"a": 1, "b": ["é"]}, 0)
    assert key == call_key("model", {"b": ["é"], "a": 1}, 0)
    assert len(key) == 64
    others = {
        call_key("model", {"a": 1, "b": ["e"]}, 0),
        call_key("other", {"a": 1, "b": ["é"]}, 0),
        call_key("model", {"a": 1, "b": ["é"]}, 1),
    }
    assert len(others | {key}) == 4
    assert call_key("m", {"text": HARD}, 0) != call_key("m", {"text": HARD + "x"}, 0)


def test_a_key_stays_the_same_between_versions() -> None:
    """A journal of last year must still be found: the key's definition is never changed."""
    assert call_key("m", {"b": 1, "a": [1, "é"]}, 2) == hashlib.sha256(rb'["m",{"a":[1,"\u00e9"],"b":1},2]').hexdigest()


# --- the file --------------------------------------------------------------------------------------


def test_only_its_owner_may_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        journal = Journal(path)
    finally:
        os.umask(before)
    journal.store_call("k", "m", "ask", {}, a_reply())
    files = list(path.parent.iterdir())
    assert len(files) > 1  # the write-ahead log is there too
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    journal.close()


def test_an_empty_file_becomes_a_journal_that_only_its_owner_may_read(path: Path) -> None:
    path.touch(0o644)
    Journal(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_writes_ahead(path: Path) -> None:
    journal = Journal(path)
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    journal.close()


def test_readers_see_what_a_writer_keeps_and_cannot_write(path: Path) -> None:
    writer = Journal(path)
    reader = Journal(path, read_only=True)
    writer.store_call("k", "m", "ask", {}, a_reply())
    assert reader.find_response("k") == a_reply()
    with pytest.raises(JournalError, match="readonly"):
        reader.store_call("l", "m", "ask", {}, a_reply())
    reader.close()
    writer.close()


def test_odd_names_of_files(tmp_path: Path) -> None:
    for name in ("with blank?mode=rw#x%20.sqlite", "é中.sqlite"):
        journal = Journal(tmp_path / name)
        journal.store_call("k", "m", "ask", {}, a_reply())
        journal.close()
        reader = Journal(tmp_path / name, read_only=True)
        assert reader.find_response("k") == a_reply()
        reader.close()


def test_a_temporary_journal_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    journal = Journal()
    for number in range(300):  # more than the page cache holds: it is on disk, not in memory
        journal.store_call(str(number), "m", "ask", {}, Response(os.urandom(10_000).hex()))
    journal.close()
    assert list(tmp_path.iterdir()) == []


# --- what is no journal ----------------------------------------------------------------------------


def foreign_database(path: Path, version: int) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE accounts (name TEXT)")
    database.execute("INSERT INTO accounts VALUES ('mine')")
    database.execute(f"PRAGMA user_version = {version}")
    database.commit()
    database.close()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("version", [0, 1, len(journal_module._MIGRATIONS), 99])
def test_another_database_is_refused_and_left_as_it_is(path: Path, version: int, read_only: bool) -> None:
    foreign_database(path, version)
    before = path.read_bytes()
    with pytest.raises(JournalError, match="no journal") as raised:
        Journal(path, read_only=read_only)
    assert "--journal" in raised.value.remedy
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_text_file_is_refused_and_left_as_it_is(path: Path, read_only: bool) -> None:
    path.write_text("q1 Q0 d1 1 0.5 run\n" * 100)
    before = path.read_bytes()
    with pytest.raises(JournalError, match="not a database"):
        Journal(path, read_only=read_only)
    assert path.read_bytes() == before


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="Is a directory"):
        Journal(tmp_path)
    with pytest.raises(JournalError, match="No such file"):
        Journal(tmp_path / "nowhere" / "j.sqlite")
    with pytest.raises(JournalError, match="unable to open"):
        Journal(tmp_path / "missing.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_kept_is_told(path: Path) -> None:
    for journal, name in ((Journal(path), str(path)), (Journal(), "the temporary journal")):
        with closing(journal):
            journal._db.execute("PRAGMA max_page_count = 1")  # it is full as it is
            with pytest.raises(JournalError, match=f"{name} cannot be used: .* full; give another file"):
                journal.store_call("k", "m", "ask", {}, a_reply("long " * 10_000))
            assert journal.find_response("k") is None, "and it goes on"


# --- migrations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_journal_is_refused(path: Path, read_only: bool) -> None:
    Journal(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {len(journal_module._MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(JournalError, match="newer") as raised:
        Journal(path, read_only=read_only)
    assert "pip install -U rank-k" in raised.value.remedy


@pytest.mark.parametrize("version", range(1, len(journal_module._MIGRATIONS)))
def test_an_older_journal_is_brought_up_to_date_once(path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = journal_module._MIGRATIONS
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_MIGRATIONS", everything[:version])
        Journal(path).close()
    database = sqlite3.connect(path)
    database.execute(
        "INSERT INTO calls (key, model, purpose, request, text, prompt_tokens, completion_tokens, reasoning_tokens,"
        " cached_tokens, estimated, seconds, finished_at) VALUES ('k', 'm', 'ask', x'', 'old', 1, 2, 3, 4, 0, 5.0, 6.0)"
    )
    database.execute(
        "INSERT INTO windows (run, query_id, round, position, doc_ids, calls, orders, repairs)"
        """ VALUES ('r', 'q', 0, 0, '[["a", "b"], [1, 2]]', '["k"]', '[]', '{}')"""
    )
    database.commit()
    database.close()
    with pytest.raises(JournalError, match="older"):
        Journal(path, read_only=True)
    for _ in range(2):
        journal = Journal(path)
        assert journal.find_response("k") == Response("old", None, None, Usage(1, 2, 3, 4), 5.0)
        assert journal._version() == len(everything)
        assert [record.window for record in journal.windows("r")] == [Window(("a", "b"), (1, 2), "listwise")]
        journal.close()
    Journal(path, read_only=True).close()


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(path).close()
    before = path.read_bytes()
    broken = "CREATE TABLE extra (a TEXT); CREATE TABLE calls (a TEXT);"
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_MIGRATIONS", (*journal_module._MIGRATIONS, broken))
        with pytest.raises(JournalError, match="already exists"):
            Journal(path)
    assert path.read_bytes() == before
    Journal(path).close()


# --- several processes, and killed ones ------------------------------------------------------------

WRITER = """
    import sys
    from rank_k.journal import Journal
    from rank_k.models.base import Reply
    print("ready", flush=True)
    sys.stdin.readline()
    journal = Journal(sys.argv[1])
    for number in range(200):
        journal.keep(str(number), "m", "ask", {"from": sys.argv[2]}, Reply(f"from {sys.argv[2]}"))
        print(journal.reply(str(number)).text)
"""


def test_processes_that_keep_the_same_calls_agree_on_what_is_kept(path: Path) -> None:
    """They open a file that is not there yet at the same moment, and write the same keys."""
    children = [in_child(WRITER, path, name) for name in "abcd"]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=PATIENCE)[0].split("\n") for child in children]
    assert [child.returncode for child in children] == [0] * 4
    assert said[0] == said[1] == said[2] == said[3]
    assert len(said[0]) == 201
    journal = Journal(path, read_only=True)
    assert sum(calls for _, _, calls, _, _ in journal.totals()) == 200
    for number in range(200):
        assert f"from {journal.request(str(number))['from']}" == said[0][number]
    journal.close()


ENDLESS = """
    import itertools, sys
    from rank_k.journal import Journal
    from rank_k.models.base import Reply
    from rank_k.types import Ranking
    journal = Journal(sys.argv[1])
    for number in itertools.count():
        journal.keep(str(number), "m", "ask", {"n": number}, Reply("text " * 200, "thought " * 200))
        journal.keep_ranking("r", number, "q", Ranking.of("abc"))
        print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 40, 400])
def test_a_process_killed_while_writing_loses_nothing_it_had_kept(path: Path, after: int) -> None:
    child = in_child(ENDLESS, path)
    assert child.stdout is not None
    with child:
        for line in child.stdout:
            if int(line) >= after:
                break
        os.kill(child.pid, signal.SIGKILL)
        told = [int(line) for line in child.stdout if line.endswith("\n")]
    last = max(told, default=after)
    journal = Journal(path)
    for number in range(last + 1):
        reply = journal.find_response(str(number))
        assert reply is not None
        assert reply.reasoning == "thought " * 200
        assert journal.request(str(number)) == {"n": number}
        assert journal.ranking("r", number) == Ranking.of("abc")
    journal.store_call("more", "m", "ask", {}, a_reply())
    journal.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_keeping_and_finding_a_call_is_quick_and_stays_so_as_the_journal_grows(path: Path) -> None:
    """Measured: 0.7 times as long as compressing the texts of the call, however many calls are in the journal."""
    journal = Journal(path)
    body = {"messages": [{"role": "user", "content": "a passage of some words " * 500}]}
    reply = Response("[1] > [2]", "a thought " * 2000, "stop", Usage(1, 2, 3, 4), 1.0)
    text = json.dumps([body, reply.text, reply.reasoning]).encode()
    numbers = itertools.count()

    def keep_and_find() -> None:
        key = str(next(numbers))
        journal.store_call(key, "m", "ask", body, reply)
        assert journal.find_response(key) == reply

    early, _ = cpu_seconds(keep_and_find, partial(zlib.compress, text), rounds=100)
    while next(numbers) < 5000:
        keep_and_find()
    late, compressing = cpu_seconds(keep_and_find, partial(zlib.compress, text), rounds=100)
    assert late < 3 * early
    assert late < 10 * compressing
    journal.close()


def test_what_is_kept_is_json_that_other_programs_can_read(path: Path) -> None:
    journal = Journal(path)
    run = journal.begin_run({"window": 20})
    journal.store_window(run, a_window())
    journal.close()
    database = sqlite3.connect(path)
    shown, calls, orders, repairs = database.execute("SELECT doc_ids, calls, orders, repairs FROM windows").fetchone()
    assert json.loads(shown) == [["a", "b", "c", "d"], [1, 4]]
    assert json.loads(calls) == ["k"]
    assert json.loads(orders)[0] == [[["b"], ["a", "c"], ["d"]], ["b", "a", "c"], True]
    assert json.loads(repairs) == {"missing": 1}
    assert database.execute("SELECT settings FROM runs").fetchone() == ('{"window": 20}',)
    database.close()


# --- queries and rounds ----------------------------------------------------------------------------


def test_queries_come_back_in_the_order_of_the_input(kept: Journal) -> None:
    for position, query_id in ((1, "b"), (0, "a"), (2, HARD)):
        kept.store_query("r", position, query_id, f"text of {query_id}")
    kept.store_query("other", 0, "a", "elsewhere")
    kept.store_ranking("r", 1, "b", Ranking.of("xy"))
    total, found = kept.opened("r")
    assert (total, [record.query_id for record in found]) == (3, ["a", "b", HARD])
    assert [record.finished for record in found] == [False, True, False]
    assert found[2].text == f"text of {HARD}"
    assert kept.opened("r", offset=1, limit=1) == (3, [found[1]])
    assert kept.query("r", 2) == found[2]
    assert kept.query("r", 3) is None
    assert kept.opened()[0] == 4


@pytest.mark.parametrize(
    ("find", "ids"), [("TEXT", ["a", "b_%"]), ("b_", ["b_%"]), ("%", ["b_%"]), ("!", []), ("", ["a", "b_%"])]
)
def test_queries_are_found_by_what_they_hold_and_not_by_patterns(kept: Journal, find: str, ids: list[str]) -> None:
    kept.store_query("r", 0, "a", "a text")
    kept.store_query("r", 1, "b_%", "the text")
    assert [record.query_id for record in kept.opened("r", find=find)[1]] == ids


def test_a_query_that_is_begun_again_has_no_rounds_yet(kept: Journal) -> None:
    kept.store_query("r", 0, "a", "text")
    rankings = [Ranking.of("xyz"), Ranking(("y", "x", "z"), (False, True, False))]
    for number, ranking in enumerate(rankings):
        kept.store_round("r", 0, number, ranking)
    assert kept.rounds("r", 0) == rankings
    assert kept.rounds("r", 1) == []
    kept.store_query("r", 0, "a", "text")
    assert kept.rounds("r", 0) == []
