"""The tables and migrations of the journal. This module also opens and checks journal files.

`docs/reference/journal-schema.md` describes every table and column. A test compares that page with the tables below.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from rank_k.errors import JournalError

_INITIAL = """
    CREATE TABLE migrations (
        name TEXT PRIMARY KEY,
        applied_at REAL NOT NULL
    );
    CREATE TABLE calls (
        key TEXT PRIMARY KEY,
        model TEXT NOT NULL,
        purpose TEXT NOT NULL,
        doc_ids TEXT NOT NULL,
        request BLOB NOT NULL,
        response_text TEXT NOT NULL,
        reasoning TEXT,
        finish_reason TEXT,
        log_probabilities BLOB,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        usage_estimated INTEGER NOT NULL,
        seconds REAL NOT NULL,
        finished_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE runs (
        run TEXT PRIMARY KEY,
        started_at REAL NOT NULL,
        settings TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE queries (
        run TEXT NOT NULL,
        position INTEGER NOT NULL,
        query_id TEXT NOT NULL,
        text TEXT NOT NULL,
        started_at REAL NOT NULL,
        PRIMARY KEY (run, position)
    ) WITHOUT ROWID;
    CREATE TABLE windows (
        run TEXT NOT NULL,
        query_id TEXT NOT NULL,
        round INTEGER NOT NULL,
        window INTEGER NOT NULL,
        doc_ids TEXT NOT NULL,
        rank_range TEXT NOT NULL,
        method TEXT NOT NULL,
        call_keys TEXT NOT NULL,
        rankings TEXT NOT NULL,
        repairs TEXT NOT NULL,
        PRIMARY KEY (run, query_id, round, window)
    ) WITHOUT ROWID;
    CREATE TABLE rounds (
        run TEXT NOT NULL,
        position INTEGER NOT NULL,
        round INTEGER NOT NULL,
        ranking BLOB NOT NULL,
        PRIMARY KEY (run, position, round)
    ) WITHOUT ROWID;
    CREATE TABLE rankings (
        run TEXT NOT NULL,
        position INTEGER NOT NULL,
        query_id TEXT NOT NULL,
        ranking BLOB NOT NULL,
        PRIMARY KEY (run, position)
    ) WITHOUT ROWID;
    CREATE TABLE sets (
        number INTEGER PRIMARY KEY,
        set_id TEXT NOT NULL UNIQUE,
        metadata TEXT NOT NULL
    );
"""

_SHARDS = """
    CREATE TABLE shards (
        run TEXT PRIMARY KEY,
        number INTEGER NOT NULL,
        count INTEGER NOT NULL,
        query_ids BLOB NOT NULL
    ) WITHOUT ROWID;
"""

_BATCHES = """
    CREATE TABLE pending_calls (
        key TEXT PRIMARY KEY,
        model TEXT NOT NULL,
        purpose TEXT NOT NULL,
        doc_ids TEXT NOT NULL,
        request BLOB NOT NULL,
        file TEXT NOT NULL,
        failures INTEGER NOT NULL,
        error TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE batches (
        file TEXT PRIMARY KEY,
        server TEXT NOT NULL,
        input_file_id TEXT NOT NULL,
        batch_id TEXT NOT NULL,
        status TEXT NOT NULL,
        updated_at REAL NOT NULL
    ) WITHOUT ROWID;
"""

MIGRATIONS: tuple[tuple[str, str], ...] = (("initial", _INITIAL), ("shards", _SHARDS), ("batches", _BATCHES))
"""Pairs of name and SQL, in the order in which they are applied. In a journal, the table `migrations` lists the applied
migrations, and `PRAGMA user_version` is their number. Never edit a migration: add a new one for each change."""


class _Connection(sqlite3.Connection):
    """A connection that raises `JournalError` if SQLite fails, for example because the disk is full.

    Attributes:
        path: The file of the journal; None for a temporary journal.
        remedy: What the user can do after an error.
    """

    path: Path | None = None
    remedy = "give another file with --journal"

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        try:
            return super().execute(sql, parameters)
        except sqlite3.Error as error:
            raise _journal_error(self.path, error, self.remedy) from error


def open_database(path: Path | None, *, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to a journal.

    Args:
        path: The file, which is created if it does not exist (None: a temporary file on disk, which is deleted when
            the process ends).
        read_only: Reject all changes, and leave no other files next to the journal. Other processes may write to the
            journal at the same time (default: False).

    Raises:
        JournalError: If the file cannot be opened, is not a journal, or has a different format version.
    """
    if path is not None and not read_only:
        _create_private_file(path)
    remedy = _remedy_for_reading(path) if read_only else _Connection.remedy
    database = "" if path is None else f"{path.resolve().as_uri()}?{_open_mode(path.resolve(), read_only)}"
    try:
        db = sqlite3.connect(
            database, uri=True, timeout=30, isolation_level=None, check_same_thread=False, factory=_Connection
        )
    except sqlite3.Error as error:
        raise _journal_error(path, error, remedy) from error
    db.path = path
    db.remedy = remedy
    try:
        if read_only:
            db.execute("PRAGMA query_only = TRUE")
        _migrate(db, read_only)
        if not read_only:
            db.execute("PRAGMA journal_mode = WAL")
            # With NORMAL, no call is lost if the process is killed, but a power failure may lose the last calls.
            db.execute("PRAGMA synchronous = NORMAL")
    except JournalError:
        db.close()
        raise
    return db


def _open_mode(path: Path, read_only: bool) -> str:
    """Return the parameters of the URI that opens a journal.

    SQLite needs the files `-wal` and `-shm` next to a journal that is in use, and creates them for readers, too. When
    the last connection closes, it deletes these files only if it was opened for writing. Read-only journals are
    therefore opened for writing if possible (`PRAGMA query_only` rejects changes). If the file or its directory is not
    writable, the journal is opened as immutable, unless a `-wal` or `-shm` file shows that a process is using it.
    """
    if not read_only or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return "mode=rw"
    in_use = any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-shm"))
    return "mode=ro" if in_use else "mode=ro&immutable=1"


def _remedy_for_reading(path: Path | None) -> str:
    """Return what to do if a file to read is not a journal. Often, users give the run instead of its journal."""
    journal_of_run = Path(f"{path}.journal.sqlite")
    if journal_of_run.is_file():
        return f"did you mean {journal_of_run}?"
    return "give a file that rank-k rerank --journal wrote"


def _create_private_file(path: Path) -> None:
    """Create the file if it does not exist. If it is new or empty, make it readable only for its owner."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        if path.is_file() and path.stat().st_size == 0:
            path.chmod(0o600)  # an existing empty file becomes a journal, too
    except OSError as error:
        problem = f"journal {path} cannot be written: {error.strerror}"
        raise JournalError(problem, _Connection.remedy) from error


def _migrate(db: _Connection, read_only: bool) -> None:
    """Check that the file is a journal, and apply missing migrations."""
    if not _missing_migrations(db):
        return
    if read_only:
        raise JournalError(
            f"journal {db.path} has an older format",
            "any command that writes to it, such as rank-k rerank, upgrades it",
        )
    db.execute("BEGIN IMMEDIATE")  # a different process may create the same file at the same time
    missing = _missing_migrations(db)
    for number, (name, sql) in enumerate(missing, len(MIGRATIONS) - len(missing) + 1):
        for statement in sql.split(";"):
            db.execute(statement)
        db.execute("INSERT INTO migrations VALUES (?, ?)", (name, time.time()))
        db.execute(f"PRAGMA user_version = {number}")
    db.execute("COMMIT")


def _missing_migrations(db: _Connection) -> tuple[tuple[str, str], ...]:
    """Return the migrations that have not been applied to a file.

    Raises:
        JournalError: If the file is not a journal, or if a newer or a development version of Rank-K wrote it.
    """
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return MIGRATIONS
    if "calls" not in tables:
        raise JournalError(f"{db.path} is a database but not a journal", db.remedy)
    if "migrations" not in tables:
        problem = f"journal {db.path} was written by a development version of Rank-K and cannot be read"
        raise JournalError(problem, db.remedy)
    applied = [name for (name,) in db.execute("SELECT name FROM migrations ORDER BY rowid")]
    if applied != [name for name, _ in MIGRATIONS[: len(applied)]]:
        raise JournalError(
            f"journal {db.path} was written by a newer version of Rank-K", "update with pip install -U rank-k"
        )
    return MIGRATIONS[len(applied) :]


def encode_text(text: str) -> str | bytes:
    """Return `text` as it is stored: bytes if it contains lone surrogates (from undecodable ids), otherwise text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def decode_text(stored: str | bytes) -> str:
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


def _journal_error(path: Path | None, error: sqlite3.Error, remedy: str) -> JournalError:
    if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB":
        return JournalError(f"{path} is not a journal", remedy)
    name = "the temporary journal" if path is None else f"journal {path}"
    return JournalError(f"{name} cannot be used: {error}", remedy)
