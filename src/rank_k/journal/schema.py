"""The journal's tables and migrations, and opening and checking a file.

`docs/reference/journal-schema.md` describes every table and column; a test compares it with the tables below.
"""

from __future__ import annotations

import os
import sqlite3
import stat
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

MIGRATIONS: tuple[tuple[str, str], ...] = (("initial", _INITIAL),)
"""(name, SQL), applied in order. The table `migrations` lists those that a file has had, and `PRAGMA user_version` is
their number. A migration is never edited; changes are added as new ones."""


class _Connection(sqlite3.Connection):
    """A connection that raises `JournalError` if SQLite fails, for example because the disk is full."""

    path: Path | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        try:
            return super().execute(sql, parameters)
        except sqlite3.Error as error:
            raise _journal_error(self.path, error) from error


def open_database(path: Path | None, *, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to the journal in a file, which is created if it does not exist and has every migration.

    Without `path`, the journal is a temporary one on disk, which is deleted with the process. Raises `JournalError`.
    """
    if path is not None and not read_only:
        _create_private_file(path)
    database = "" if path is None else f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rw'}"
    try:
        db = sqlite3.connect(
            database, uri=True, timeout=30, isolation_level=None, check_same_thread=False, factory=_Connection
        )
    except sqlite3.Error as error:
        raise _journal_error(path, error) from error
    db.path = path
    try:
        _migrate(db, read_only)
        if not read_only:
            db.execute("PRAGMA journal_mode = WAL")
            # NORMAL loses nothing when the process dies; after a power cut the last calls may be gone.
            db.execute("PRAGMA synchronous = NORMAL")
    except JournalError:
        db.close()
        raise
    return db


def _create_private_file(path: Path) -> None:
    """Create the file if it does not exist. Only its owner may read a new or empty file."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        status = os.fstat(descriptor)
        os.close(descriptor)
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            path.chmod(0o600)  # an empty file that existed before becomes a journal
    except OSError as error:
        problem = f"journal {path} cannot be written: {error.strerror}"
        raise JournalError(problem, "give another file with --journal") from error


def _migrate(db: _Connection, read_only: bool) -> None:
    """Check that the file is a journal and apply the migrations that it has not had."""
    if not _missing_migrations(db):
        return
    if read_only:
        raise JournalError(f"journal {db.path} is of an older version", "run any command that writes to it")
    db.execute("BEGIN IMMEDIATE")  # another process may be creating the same file
    missing = _missing_migrations(db)
    for number, (name, sql) in enumerate(missing, len(MIGRATIONS) - len(missing) + 1):
        for statement in sql.split(";"):
            db.execute(statement)
        db.execute("INSERT INTO migrations VALUES (?, ?)", (name, time.time()))
        db.execute(f"PRAGMA user_version = {number}")
    db.execute("COMMIT")


def _missing_migrations(db: _Connection) -> tuple[tuple[str, str], ...]:
    """Return the migrations that the file has not had. Raises `JournalError` if it is not a journal of this version."""
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return MIGRATIONS
    if "calls" not in tables:
        raise JournalError(f"{db.path} is a database but no journal", "give another file with --journal")
    if "migrations" not in tables:
        raise JournalError(
            f"journal {db.path} was made by a development version of rank-k and cannot be read",
            "give another file with --journal",
        )
    applied = [name for (name,) in db.execute("SELECT name FROM migrations ORDER BY rowid")]
    if applied != [name for name, _ in MIGRATIONS[: len(applied)]]:
        raise JournalError(f"journal {db.path} was made by a newer rank-k", "update: pip install -U rank-k")
    return MIGRATIONS[len(applied) :]


def encode_text(text: str) -> str | bytes:
    """Return `text` as SQLite stores it: bytes if it has lone surrogates (from undecodable ids), else text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def decode_text(stored: str | bytes) -> str:
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


def _journal_error(path: Path | None, error: sqlite3.Error) -> JournalError:
    name = "the temporary journal" if path is None else f"journal {path}"
    return JournalError(f"{name} cannot be used: {error}", "give another file with --journal")
