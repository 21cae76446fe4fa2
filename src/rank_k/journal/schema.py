"""The journal's tables and migrations, and opening and checking a file.

`docs/journal-schema.md` describes every table and column; a test compares it with the tables below.
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

DEFAULT_MAX_BYTES = 256 * 2**20


class _Connection(sqlite3.Connection):
    """A connection that raises `JournalError` where SQLite fails, for example because the disk is full."""

    path: Path | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        try:
            return super().execute(sql, parameters)
        except sqlite3.Error as error:
            raise _journal_error(self.path, error) from error

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        try:
            return super().executemany(sql, parameters)
        except sqlite3.Error as error:
            raise _journal_error(self.path, error) from error


class JournalFile:
    """An open journal file, or a temporary one (see `Journal`): its connection, schema and size."""

    def __init__(
        self, path: str | Path | None = None, *, read_only: bool = False, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.path = None if path is None else Path(path)
        self._max_bytes = max_bytes
        self._previous: _Connection | None = None  # of a temporary journal: the older half of its content
        self._open(read_only)

    def close(self) -> None:
        self._db.close()
        if self._previous is not None:
            self._previous.close()

    @property
    def size_in_bytes(self) -> int:
        """The journal's size on disk, without SQLite's write-ahead log."""
        return _size_in_bytes(self._db) + (0 if self._previous is None else _size_in_bytes(self._previous))

    def _open(self, read_only: bool) -> None:
        path = self.path
        try:
            self._db = self._connect(read_only)
        except sqlite3.Error as error:
            raise _journal_error(path, error) from error
        self._db.path = path
        try:
            self._db.execute("PRAGMA busy_timeout = 30000")
            self._migrate(read_only)
            if not read_only:
                self._db.execute("PRAGMA journal_mode = WAL")
                # NORMAL loses nothing when the process dies; after a power cut the last calls may be gone.
                self._db.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            self._db.close()
            raise _journal_error(path, error) from error
        except JournalError:
            self._db.close()
            raise

    def _connect(self, read_only: bool) -> _Connection:
        if self.path is None:
            return _connect("")
        if read_only:
            uri = f"{self.path.resolve().as_uri()}?mode=ro"
            return _connect(uri, uri=True)
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
            status = os.fstat(descriptor)
            os.close(descriptor)
            if stat.S_ISREG(status.st_mode) and not status.st_size:
                self.path.chmod(0o600)  # an empty file that existed before becomes a journal
        except OSError as error:
            raise JournalError(
                f"journal {self.path} cannot be written: {error.strerror}", "give another file with --journal"
            ) from error
        return _connect(self.path)

    def _migrate(self, read_only: bool) -> None:
        """Check that the file is a journal and apply the migrations that it has not had."""
        names = [name for name, _ in MIGRATIONS]
        if self._applied_migrations() == names:
            return
        if not read_only:
            self._db.execute("BEGIN IMMEDIATE")  # another process may be creating the same file
        applied = self._applied_migrations()
        if applied != names[: len(applied)]:
            raise JournalError(f"journal {self.path} was made by a newer rank-k", "update: pip install -U rank-k")
        if len(applied) < len(names) and read_only:
            raise JournalError(f"journal {self.path} is of an older version", "run any command that writes to it")
        for number, (name, sql) in enumerate(MIGRATIONS[len(applied) :], len(applied) + 1):
            for statement in sql.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO migrations VALUES (?, ?)", (name, time.time()))
            self._db.execute(f"PRAGMA user_version = {number}")
        if not read_only:
            self._db.execute("COMMIT")

    def _applied_migrations(self) -> list[str]:
        """Return the names of the migrations that the file has had. Raises `JournalError` if it is not a journal."""
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return []
        if "calls" not in tables:
            raise JournalError(f"{self.path} is a database but no journal", "give another file with --journal")
        if "migrations" not in tables:
            raise JournalError(
                f"journal {self.path} was made by a development version of rank-k and cannot be read",
                "give another file with --journal",
            )
        return [name for (name,) in self._db.execute("SELECT name FROM migrations ORDER BY rowid")]

    def _limit_size(self) -> None:
        """Drop the older half of a temporary journal when the newer half has reached half of `max_bytes`."""
        if self.path is not None:
            return
        if _size_in_bytes(self._db) > self._max_bytes // 2:
            if self._previous is not None:
                self._previous.close()
            self._previous = self._db
            self._open(read_only=False)
            rankings = self._previous.execute("SELECT run, position, query_id, ranking FROM rankings")
            self._db.executemany("INSERT INTO rankings VALUES (?, ?, ?, ?)", rankings)

    def _fetch_row(self, sql: str, *values: str | int) -> Any:
        """Return the first row, also from the older half of a temporary journal; None if there is none."""
        row = self._db.execute(sql, values).fetchone()
        if row is None and self._previous is not None:
            row = self._previous.execute(sql, values).fetchone()
        return row


def encode_text(text: str) -> str | bytes:
    """Return `text` as SQLite stores it: bytes if it has lone surrogates (from undecodable ids), else text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def decode_text(stored: str | bytes) -> str:
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


def _connect(database: str | Path, *, uri: bool = False) -> _Connection:
    return sqlite3.connect(database, uri=uri, isolation_level=None, check_same_thread=False, factory=_Connection)


def _journal_error(path: Path | None, error: sqlite3.Error) -> JournalError:
    name = "the temporary journal" if path is None else f"journal {path}"
    return JournalError(f"{name} cannot be used: {error}", "give another file with --journal")


def _size_in_bytes(db: sqlite3.Connection) -> int:
    pages, page_size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return int(pages * page_size)
