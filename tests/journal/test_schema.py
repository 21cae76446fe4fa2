"""The journal's file: creating, opening, checking and migrating it."""

from __future__ import annotations

import os
import random
import re
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rank_k.errors import JournalError
from rank_k.journal import Journal, schema
from rank_k.types import Ranking, Response, Usage
from tests.journal.records import make_response
from tests.paths import ROOT

# --- the size of temporary journals ---


def test_temporary_journal_drops_its_oldest_calls() -> None:
    """Half of the content is dropped at a time; rankings that have not been read are never dropped."""
    max_bytes, call_bytes = 2_000_000, 10_000
    journal = Journal(max_bytes=max_bytes)
    ranking = Ranking(("a", "b"), (False, False))
    journal.store_ranking("r", 0, "q", ranking)
    for number in range(1000):  # five times `max_bytes`
        incompressible = random.Random(number).randbytes(call_bytes // 2).hex()
        response = Response(incompressible, None, "stop", Usage(1), 0.0)
        journal.store_call(str(number), "m", "ask", {"n": number}, response)
        assert journal.size_in_bytes <= 1.05 * max_bytes
    numbers = [number for number in range(1000) if journal.find_response(str(number)) is not None]
    assert numbers == list(range(numbers[0], 1000)), "only the oldest calls are dropped"
    assert 0.4 * max_bytes < len(numbers) * call_bytes <= max_bytes
    assert journal.find_call("999") is not None
    assert journal.find_ranking("r", 0) == ranking
    assert journal.find_ranking("r", 0) is None
    journal.close()


def test_journal_file_drops_nothing(path: Path) -> None:
    journal = Journal(path, max_bytes=100_000)
    for number in range(100):
        journal.store_call(str(number), "m", "ask", {"n": number}, Response("x" * 10_000, None, "stop", Usage(1), 0.0))
    journal.store_ranking("r", 0, "q", Ranking(("a",), (False,)))
    assert all(journal.find_response(str(number)) for number in range(100))
    assert journal.find_ranking("r", 0) == journal.find_ranking("r", 0) is not None
    journal.close()


# --- the file ---


def test_journal_file_is_readable_by_its_owner_only(path: Path) -> None:
    umask = os.umask(0)
    try:
        journal = Journal(path)
    finally:
        os.umask(umask)
    journal.store_call("k", "m", "ask", {}, make_response())
    files = list(path.parent.iterdir())
    assert len(files) > 1  # the write-ahead log, too
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    journal.close()


def test_empty_file_becomes_a_journal_readable_by_its_owner_only(path: Path) -> None:
    path.touch(0o644)
    Journal(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_journal_file_uses_a_write_ahead_log(path: Path) -> None:
    journal = Journal(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    journal.close()


def test_read_only_journal_sees_new_calls_and_cannot_write(path: Path) -> None:
    writer = Journal(path)
    reader = Journal(path, read_only=True)
    writer.store_call("k", "m", "ask", {}, make_response())
    assert reader.find_response("k") == make_response()
    with pytest.raises(JournalError, match="readonly"):
        reader.store_call("l", "m", "ask", {}, make_response())
    reader.close()
    writer.close()


@pytest.mark.parametrize("name", ["with blank?mode=rw#x%20.sqlite", "é中.sqlite"])
def test_journal_opens_files_with_special_characters_in_their_names(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path / name)
    journal.store_call("k", "m", "ask", {}, make_response())
    journal.close()
    reader = Journal(tmp_path / name, read_only=True)
    assert reader.find_response("k") == make_response()
    reader.close()


def test_temporary_journal_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    journal = Journal()
    for number in range(300):  # more than the page cache: the calls are on disk and not in memory
        journal.store_call(str(number), "m", "ask", {}, Response(os.urandom(10_000).hex()))
    journal.close()
    assert list(tmp_path.iterdir()) == []


# --- reading ---


def files_beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_reader_leaves_no_file_beside_the_journal(path: Path) -> None:
    with closing(Journal(path)) as journal:
        journal.store_call("k", "m", "ask", {}, make_response())
    before = path.read_bytes()
    with closing(Journal(path, read_only=True)) as reader:
        assert reader.find_response("k") == make_response()
    assert files_beside(path) == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("first_to_close", ["reader", "writer"])
def test_reader_and_writer_at_once_leave_no_file(path: Path, first_to_close: str) -> None:
    journals = {"writer": Journal(path), "reader": Journal(path, read_only=True)}
    journals["writer"].store_call("k", "m", "ask", {}, make_response())
    assert journals["reader"].find_response("k") == make_response()
    journals.pop(first_to_close).close()
    [journal] = journals.values()
    assert journal.find_response("k") == make_response()
    journal.close()
    assert files_beside(path) == [path.name]


READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from rank_k.journal import Journal
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
journal = Journal(Path(sys.argv[1]), read_only=True)
print(journal.find_response("k").text)
journal.close()
"""


@pytest.mark.parametrize("was_killed", [False, True])
def test_journal_in_a_read_only_folder_can_be_read(was_killed: bool) -> None:
    with TemporaryDirectory(prefix="rank-k-journal-") as name:
        folder, path = Path(name), Path(name, "j.sqlite")
        journal = Journal(path)
        journal.store_call("k", "m", "ask", {}, Response("stored"))
        if was_killed:
            for file in list(folder.iterdir()):
                (folder / f"copy.{file.name}").write_bytes(file.read_bytes())
            path = folder / "copy.j.sqlite"
        journal.close()
        before = files_beside(path)
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        try:
            command = [sys.executable, "-c", READ_AS_NOBODY, str(path)]
            result = subprocess.run(command, capture_output=True, text=True)
        finally:
            folder.chmod(0o755)
        assert (result.stdout, result.stderr) == ("stored\n", "")
        assert files_beside(path) == before


# --- files that cannot be used ---

REMEDIES = {
    False: "give another file with --journal",
    True: "give a file that rank-k rerank --journal wrote",
}
"""What to do about a file that is not a journal, by whether it should only be read."""


def create_database(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("version", [0, 1, 99])
def test_another_database_is_rejected_and_not_changed(path: Path, version: int, read_only: bool) -> None:
    accounts = ("CREATE TABLE accounts (name TEXT)", "INSERT INTO accounts VALUES ('mine')")
    create_database(path, *accounts, f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(JournalError, match="is a database but not a journal") as raised:
        Journal(path, read_only=read_only)
    assert raised.value.remedy == REMEDIES[read_only]
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("version", range(1, 6))
def test_journal_of_a_development_version_is_rejected_and_not_changed(
    path: Path, version: int, read_only: bool
) -> None:
    create_database(path, "CREATE TABLE calls (key TEXT PRIMARY KEY)", f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(JournalError) as raised:
        Journal(path, read_only=read_only)
    problem = f"journal {path} was written by a development version of Rank-K and cannot be read"
    assert str(raised.value) == f"{problem}; {REMEDIES[read_only]}"
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_text_file_is_rejected_and_not_changed(path: Path, read_only: bool) -> None:
    path.write_text("q1 Q0 d1 1 0.5 run\n" * 100)
    before = path.read_bytes()
    with pytest.raises(JournalError) as raised:
        Journal(path, read_only=read_only)
    assert str(raised.value) == f"{path} is not a journal; {REMEDIES[read_only]}"
    assert path.read_bytes() == before


def test_run_read_as_a_journal_suggests_the_journal_beside_it(tmp_path: Path) -> None:
    run_file = tmp_path / "reranked.trec"
    run_file.write_text("q1 Q0 d1 1 0.5 run\n" * 100)
    Journal(tmp_path / "reranked.trec.journal.sqlite").close()
    with pytest.raises(JournalError) as raised:
        Journal(run_file, read_only=True)
    assert str(raised.value) == f"{run_file} is not a journal; did you mean {run_file}.journal.sqlite?"


def test_journal_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="Is a directory"):
        Journal(tmp_path)
    with pytest.raises(JournalError, match="No such file"):
        Journal(tmp_path / "missing" / "j.sqlite")
    with pytest.raises(JournalError, match="unable to open"):
        Journal(tmp_path / "missing.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_call_that_cannot_be_stored_is_an_error(path: Path) -> None:
    for journal, name in ((Journal(path), str(path)), (Journal(), "the temporary journal")):
        with closing(journal):
            journal._db.execute("PRAGMA max_page_count = 1")  # as if the disk were full
            with pytest.raises(JournalError, match=f"{name} cannot be used: .* full; give another file"):
                journal.store_call("k", "m", "ask", {}, make_response("long " * 10_000))
            assert journal.find_response("k") is None, "the journal is still usable"


# --- migrations ---


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("name", ["later", "another"])
def test_journal_of_a_newer_version_is_rejected(path: Path, read_only: bool, name: str) -> None:
    Journal(path).close()
    statements = [f"INSERT INTO migrations VALUES ('{name}', 0)"]
    if name == "another":
        statements.insert(0, "DELETE FROM migrations")
    create_database(path, *statements)
    with pytest.raises(JournalError, match="newer") as raised:
        Journal(path, read_only=read_only)
    assert "pip install -U rank-k" in raised.value.remedy


def test_new_journal_has_every_migration(path: Path) -> None:
    Journal(path).close()
    with closing(sqlite3.connect(path)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM migrations ORDER BY rowid")]
        assert names == [name for name, _ in schema.MIGRATIONS]
        assert database.execute("PRAGMA user_version").fetchone() == (len(names),)
    assert schema.MIGRATIONS[0][0] == "initial"


def test_migration_updates_an_older_journal_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Journal(path)) as journal:
        journal.store_call("k", "m", "ask", {}, make_response())
    later = ("later", "CREATE TABLE extra (a TEXT); ALTER TABLE runs ADD COLUMN extra TEXT;")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, later))
    with pytest.raises(JournalError, match="older"):
        Journal(path, read_only=True)
    for _ in range(2):
        with closing(Journal(path)) as journal:
            assert journal.find_response("k") == make_response()
            applied = journal._db.execute("SELECT name FROM migrations ORDER BY rowid").fetchall()
            assert applied == [(name,) for name, _ in schema.MIGRATIONS]
            run = journal.begin_run({})
            assert journal.last_run() == run
    Journal(path, read_only=True).close()


def test_failed_migration_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(path).close()
    before = path.read_bytes()
    broken = ("broken", "CREATE TABLE extra (a TEXT); CREATE TABLE calls (a TEXT);")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(JournalError, match="already exists"):
            Journal(path)
    assert path.read_bytes() == before
    Journal(path).close()


# --- its documentation ---


def documented_columns() -> dict[str, list[tuple[str, str]]]:
    """Return the (column, type) pairs of each table in docs/reference/journal-schema.md."""
    page = (ROOT / "docs" / "reference" / "journal-schema.md").read_text(encoding="utf-8")
    sections = re.split(r"^## `(\w+)`: .+$", page, flags=re.MULTILINE)[1:]
    row = re.compile(r"^\| `(\w+)` \| ([A-Z ]+?) \| [^|]*\| [^|]+ \|$", re.MULTILINE)
    return {table: row.findall(text) for table, text in zip(sections[::2], sections[1::2], strict=True)}


def test_schema_documentation_lists_every_table_and_column(path: Path) -> None:
    Journal(path).close()
    with closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {
            table: [
                (name, kind + ("" if is_required or is_key else " NULL"))
                for _, name, kind, is_required, _, is_key in database.execute(f"PRAGMA table_info({table})")
            ]
            for table in tables
        }
    assert documented_columns() == columns
