"""Every call to a model, kept in one SQLite file: cache, resume, accounting and training data at once.

A call is found again by its key: the sha256 of the request as sent, the model's identity and the number of
the sample. Address, time-outs, concurrency and keys are no part of it. Tables:

    calls     what was sent, what came back, tokens, seconds
    runs      what was to be done: one row for each command's settings
    queries   what each run was asked, in the order of its input
    windows   which calls answered which window of which query, by what, the order that was read, the repairs
    rounds    how each query's ranking stood before each of its rounds
    rankings  finished queries waiting for their turn in the output
    sets      candidate sets that a teacher was asked about: what is known of each but its texts

The file is readable by its owner only (0600): it holds texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rank_k.errors import JournalError
from rank_k.types import Ranking, Response, Usage, Window, WindowRanking

_MIGRATIONS = (
    """
    CREATE TABLE calls (
        key TEXT PRIMARY KEY,
        model TEXT NOT NULL,
        purpose TEXT NOT NULL,
        request BLOB NOT NULL,
        text TEXT NOT NULL,
        reasoning TEXT,
        finish_reason TEXT,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        seconds REAL NOT NULL,
        finished_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE runs (
        run TEXT PRIMARY KEY,
        started_at REAL NOT NULL,
        settings TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE windows (
        run TEXT NOT NULL,
        query_id TEXT NOT NULL,
        round INTEGER NOT NULL,
        position INTEGER NOT NULL,
        doc_ids TEXT NOT NULL,
        calls TEXT NOT NULL,
        orders TEXT NOT NULL,
        repairs TEXT NOT NULL,
        PRIMARY KEY (run, query_id, round, position)
    ) WITHOUT ROWID;
    CREATE TABLE rankings (
        run TEXT NOT NULL,
        position INTEGER NOT NULL,
        query_id TEXT NOT NULL,
        ranking TEXT NOT NULL,
        PRIMARY KEY (run, position)
    ) WITHOUT ROWID;
    """,
    "ALTER TABLE calls ADD COLUMN tokens BLOB;",  # [[text, log-probability], ...], compressed
    """
    ALTER TABLE calls ADD COLUMN shown TEXT;
    CREATE TABLE sets (
        number INTEGER PRIMARY KEY,
        set_id TEXT NOT NULL UNIQUE,
        facts TEXT NOT NULL
    );
    """,
    """
    CREATE TABLE queries (
        run TEXT NOT NULL,
        position INTEGER NOT NULL,
        query_id TEXT NOT NULL,
        text TEXT,
        opened_at REAL,
        PRIMARY KEY (run, position)
    ) WITHOUT ROWID;
    CREATE TABLE rounds (
        run TEXT NOT NULL,
        position INTEGER NOT NULL,
        round INTEGER NOT NULL,
        ranking BLOB NOT NULL,
        PRIMARY KEY (run, position, round)
    ) WITHOUT ROWID;
    INSERT INTO queries SELECT run, position, query_id, NULL, NULL FROM rankings;
    """,
    "ALTER TABLE windows ADD COLUMN ordered_by TEXT NOT NULL DEFAULT 'comparison';",  # `Window.by`
)
"""Applied in order; `PRAGMA user_version` says how many a file has had. Never edited, only added to."""


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """One window as the journal keeps it; `calls` are keys into `calls`."""

    query_id: str
    round: int
    position: int
    window: Window
    call_keys: tuple[str, ...]
    rankings: tuple[WindowRanking, ...]
    repairs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One command's work: its name, when it last began (seconds since 1970) and the settings it was begun with."""

    run: str
    started_at: float
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """A query of a run. `position`: its place in the run's input, from 0. `text` and `opened_at` (seconds since 1970)
    are None in journals of older versions. `finished`: whether it has a ranking."""

    run: str
    position: int
    query_id: str
    text: str | None
    started_at: float | None
    finished: bool


@dataclass(frozen=True, slots=True)
class QueryCost:
    """What a query of a run came to."""

    query_id: str
    rounds: int
    windows: int
    calls: int
    unranked_windows: int
    usage: Usage
    seconds: float
    repairs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the journal keeps it. `shown`: the ids of the passages it was about, in the order shown; empty in
    journals of older versions."""

    model: str
    purpose: str
    request: Mapping[str, Any]
    response: Response
    doc_ids: tuple[str, ...]


def call_key(identity: str, body: Mapping[str, Any], sample: int) -> str:
    """The name of a call: what decides the reply, and nothing else."""
    canonical = json.dumps([identity, body, sample], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def run_name(settings: Mapping[str, Any]) -> str:
    """The name of the run with these settings."""
    return hashlib.sha256(_written(settings).encode()).hexdigest()[:16]


def _written(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


class _Database(sqlite3.Connection):
    """One whose failures, of which a full disk is the usual one, are those of the journal in `path`."""

    path: Path | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        try:
            return super().execute(sql, parameters)
        except sqlite3.Error as error:
            raise _cannot_be_used(self.path, error) from error

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        try:
            return super().executemany(sql, parameters)
        except sqlite3.Error as error:
            raise _cannot_be_used(self.path, error) from error


class Journal:
    """`Journal(path)` opens or makes the file; `Journal()` keeps a temporary one on disk, gone with the
    process, which forgets what is oldest rather than take more than about `room` bytes. Raises `JournalError` for a
    file that is no journal or of a newer version, and when nothing can be kept, as on a full disk. Not for several
    threads at once; several processes may share a file."""

    def __init__(self, path: str | Path | None = None, *, read_only: bool = False, room: int = 256 * 2**20) -> None:
        self.path = None if path is None else Path(path)
        self._room = room
        self._before: _Database | None = None  # of a temporary one: what was kept before the rest
        self._connect(read_only)

    def _connect(self, read_only: bool) -> None:
        path = self.path
        try:
            self._db = self._open(read_only)
        except sqlite3.Error as error:
            raise _cannot_be_used(path, error) from error
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
            raise _cannot_be_used(path, error) from error
        except JournalError:
            self._db.close()
            raise

    def _open(self, read_only: bool) -> _Database:
        if self.path is None:
            return _connected("")
        if read_only:
            uri = f"{self.path.resolve().as_uri()}?mode=ro"
            return _connected(uri, uri=True)
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
            opened = os.fstat(descriptor)
            os.close(descriptor)
            if stat.S_ISREG(opened.st_mode) and not opened.st_size:
                self.path.chmod(0o600)  # an empty file that was there before is made into a journal
        except OSError as error:
            raise JournalError(
                f"journal {self.path} cannot be written: {error.strerror}", "give another file with --journal"
            ) from error
        return _connected(self.path)

    def _migrate(self, read_only: bool) -> None:
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "calls" not in tables:
            raise JournalError(f"{self.path} is a database but no journal", "give another file with --journal")
        if self._version() == len(_MIGRATIONS):
            return
        if not read_only:
            self._db.execute("BEGIN IMMEDIATE")  # another process may be making the same file: one at a time
        version = self._version()
        if version > len(_MIGRATIONS):
            raise JournalError(f"journal {self.path} was made by a newer rank-k", "update: pip install -U rank-k")
        if version < len(_MIGRATIONS) and read_only:
            raise JournalError(f"journal {self.path} is of an older version", "run any command that writes to it")
        for number in range(version, len(_MIGRATIONS)):
            for statement in _MIGRATIONS[number].split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {number + 1}")
        if not read_only:
            self._db.execute("COMMIT")

    def _version(self) -> int:
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        return version

    def _make_room(self) -> None:
        """Begin a temporary journal anew when it has taken half of its room, and drop the half before."""
        if self.path is not None:
            return
        if _size(self._db) > self._room // 2:
            if self._before is not None:
                self._before.close()
            self._before = self._db
            self._connect(read_only=False)
            waiting = self._before.execute("SELECT * FROM rankings")
            self._db.executemany("INSERT INTO rankings VALUES (?, ?, ?, ?)", waiting)

    @property
    def bytes(self) -> int:
        """What it takes on disk, without the log that SQLite keeps beside a file."""
        return _size(self._db) + (0 if self._before is None else _size(self._before))

    def _row(self, query: str, *values: str | int) -> Any:
        """The first row, of what a temporary journal kept before if need be; None if there is none."""
        row = self._db.execute(query, values).fetchone()
        if row is None and self._before is not None:
            row = self._before.execute(query, values).fetchone()
        return row

    def close(self) -> None:
        self._db.close()
        if self._before is not None:
            self._before.close()

    # --- calls ---

    def find_response(self, key: str) -> Response | None:
        """The reply kept under `key`, or None."""
        row = self._row(
            "SELECT text, reasoning, finish_reason, prompt_tokens, completion_tokens, reasoning_tokens,"
            " cached_tokens, estimated, seconds, tokens FROM calls WHERE key = ?",
            key,
        )
        if row is None:
            return None
        tokens = None if row[9] is None else tuple((t, p) for t, p in json.loads(zlib.decompress(row[9])))
        text, reasoning, finish_reason = (None if part is None else _text(part) for part in row[:3])
        return Response(text or "", reasoning, finish_reason, _usage(row[3:8]), row[8], tokens)

    def store_call(
        self,
        key: str,
        model: str,
        purpose: str,
        body: Mapping[str, Any],
        reply: Response,
        shown: Sequence[str] = (),
    ) -> Response:
        """Keep a finished call; returns what the journal now holds (another process may have been first).

        `shown`: the ids of the passages it was about, in the order shown.
        """
        self._make_room()
        usage = reply.usage
        kept = self._db.execute(
            "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key,
                _storable(model),
                purpose,
                zlib.compress(json.dumps(body).encode(), 1),
                _storable(reply.text),
                None if reply.reasoning is None else _storable(reply.reasoning),
                None if reply.finish_reason is None else _storable(reply.finish_reason),
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.reasoning_tokens,
                usage.cached_tokens,
                usage.estimated,
                reply.seconds,
                time.time(),
                None if reply.tokens is None else zlib.compress(json.dumps(reply.tokens).encode(), 1),
                json.dumps(shown) if shown else None,
            ),
        )
        return reply if kept.rowcount else self.find_response(key) or reply

    def request(self, key: str) -> Mapping[str, Any]:
        """The body that was sent for the call `key`. Raises KeyError."""
        row = self._row("SELECT request FROM calls WHERE key = ?", key)
        if row is None:
            raise KeyError(key)
        body: Mapping[str, Any] = json.loads(zlib.decompress(row[0]))
        return body

    def call(self, key: str) -> Call | None:
        """The whole of the call kept under `key`, or None."""
        row = self._row("SELECT model, purpose, request, shown FROM calls WHERE key = ?", key)
        reply = self.find_response(key)
        if row is None or reply is None:
            return None
        model, purpose, request, shown = row
        body, doc_ids = json.loads(zlib.decompress(request)), json.loads(shown or "[]")
        return Call(_text(model), purpose, body, reply, tuple(doc_ids))

    def totals(self, run: str | None = None, query_id: str | None = None) -> list[tuple[str, str, int, Usage, float]]:
        """(model, purpose, calls, tokens, seconds) over the whole file, or over what the windows of a run, of a query
        or of both were asked by."""
        given = {"run": run, "query_id": None if query_id is None else _storable(query_id)}
        wanted = {name: value for name, value in given.items() if value is not None}
        asked = f"SELECT value FROM windows, json_each(calls) WHERE {' AND '.join(f'{name} = ?' for name in wanted)}"
        rows = self._db.execute(
            "SELECT model, purpose, count(*), sum(prompt_tokens), sum(completion_tokens),"
            " sum(reasoning_tokens), sum(cached_tokens), max(estimated), sum(seconds)"
            f" FROM calls {f'WHERE key IN ({asked})' if wanted else ''} GROUP BY model, purpose ORDER BY 1, 2",
            tuple(wanted.values()),
        )
        return [(_text(r[0]), r[1], r[2], _usage(r[3:8]), r[8]) for r in rows]

    # --- windows ---

    def begin_run(self, settings: Mapping[str, Any]) -> str:
        """Note that a run with these settings starts (or goes on); returns its name."""
        written = _written(settings)
        run = run_name(settings)
        self._db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", (run, time.time(), written))
        return run

    def forget_windows(self, run: str) -> None:
        """Forget which windows a run asked about; its calls stay. For a run that is done anew: where a window that
        was given up has an answer now, what follows may be fewer windows than before."""
        self._db.execute("DELETE FROM windows WHERE run = ?", (run,))

    def store_window(self, run: str, record: WindowRecord) -> None:
        orders = [
            [order.tiers, [d for d in order.doc_ids if d in order.ranked_ids], order.is_valid]
            for order in record.rankings
        ]
        window = record.window
        self._db.execute(
            "INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                run,
                _storable(record.query_id),
                record.round,
                record.position,
                json.dumps([window.doc_ids, window.rank_range]),
                json.dumps(record.call_keys),
                json.dumps(orders),
                json.dumps(dict(record.repairs)),
                window.method,
            ),
        )

    def windows(self, run: str | None = None, query_id: str | None = None) -> Iterator[WindowRecord]:
        """The windows of a run (default: the last one written), of one query or all, in the order asked."""
        where = "run = ?"
        values: list[str | bytes] = [run or self.last_run()]
        if query_id is not None:
            where, values = where + " AND query_id = ?", [*values, _storable(query_id)]
        rows = self._db.execute(
            "SELECT query_id, round, position, doc_ids, calls, orders, repairs, ordered_by FROM windows"
            f" WHERE {where} ORDER BY query_id, round, position",
            values,
        )
        for query, number, position, shown, calls, orders, repairs, by in rows:
            doc_ids, reach = json.loads(shown)
            yield WindowRecord(
                _text(query),
                number,
                position,
                Window(tuple(doc_ids), (reach[0], reach[1]), by),
                tuple(json.loads(calls)),
                tuple(
                    WindowRanking(tuple(map(tuple, tiers)), frozenset(placed), ranked)
                    for tiers, placed, ranked in json.loads(orders)
                ),
                Counter(json.loads(repairs)),
            )

    def queries(self, run: str) -> Iterator[QueryCost]:
        """What each query of a run came to, by query id."""
        for query_id, records in groupby(self.windows(run), key=lambda record: record.query_id):
            windows = list(records)
            calls = [self.find_response(key) for record in windows for key in record.call_keys]
            yield QueryCost(
                query_id,
                len({record.round for record in windows}),
                len(windows),
                len(calls),
                sum(not any(order.is_valid for order in record.rankings) for record in windows),
                sum((reply.usage for reply in calls if reply), Usage()),
                sum(reply.seconds for reply in calls if reply),
                sum((Counter(record.repairs) for record in windows), Counter()),
            )

    def runs(self) -> list[RunRecord]:
        """All runs, the last one begun first."""
        rows = self._db.execute("SELECT run, started_at, settings FROM runs ORDER BY started_at DESC")
        return [RunRecord(run, started_at, json.loads(settings)) for run, started_at, settings in rows]

    def model(self, run: str) -> str:
        """The name of the model that a run asked; empty if it asked nothing."""
        for (calls,) in self._db.execute("SELECT calls FROM windows WHERE run = ?", (run,)):
            for key in json.loads(calls):
                row = self._db.execute("SELECT model FROM calls WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    return _text(row[0])
        return ""

    def last_run(self) -> str:
        row = self._db.execute("SELECT run FROM runs ORDER BY started_at DESC LIMIT 1").fetchone()
        return row[0] if row else ""

    # --- queries and how their rankings came about ---

    def store_query(self, run: str, position: int, query_id: str, text: str) -> None:
        """Note that the query in this place of a run's input is begun (or begun again)."""
        self._db.execute(
            "INSERT OR REPLACE INTO queries VALUES (?, ?, ?, ?, ?)",
            (run, position, _storable(query_id), _storable(text), time.time()),
        )
        self._db.execute("DELETE FROM rounds WHERE run = ? AND position = ?", (run, position))

    def store_round(self, run: str, position: int, number: int, ranking: Ranking) -> None:
        """Note how a query's ranking stood before its round `number`, from 0: that one is the first stage's."""
        written = zlib.compress(_ranking_written(ranking).encode(), 1)
        self._db.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?)", (run, position, number, written))

    def rounds(self, run: str, position: int) -> list[Ranking]:
        """How a query's ranking stood before each of its rounds."""
        rows = self._db.execute(
            "SELECT ranking FROM rounds WHERE run = ? AND position = ? ORDER BY round", (run, position)
        )
        return [_ranking_read(zlib.decompress(row[0])) for row in rows]

    def opened(
        self, run: str | None = None, *, find: str = "", offset: int = 0, limit: int | None = None
    ) -> tuple[int, list[QueryRecord]]:
        """How many queries of a run (of all runs) were begun, and those from `offset` on, in the order of the input.

        `find`: only those whose id or text holds it, in whatever case its letters a to z are.
        """
        where, values = "TRUE", list[str | bytes]()
        if run is not None:
            where, values = "run = ?", [run]
        if find:
            where += " AND (query_id LIKE ? ESCAPE '!' OR text LIKE ? ESCAPE '!')"
            values += [_storable("%" + "".join(f"!{c}" if c in "%_!" else c for c in find) + "%")] * 2
        [total] = self._db.execute(f"SELECT count(*) FROM queries WHERE {where}", values).fetchone()
        end = "ORDER BY run, position LIMIT ? OFFSET ?"
        return total, self._query_records(f"{where} {end}", (*values, -1 if limit is None else limit, offset))

    def query(self, run: str, position: int) -> QueryRecord | None:
        """The query in that place of the run's input, or None."""
        return next(iter(self._query_records("run = ? AND position = ?", (run, position))), None)

    def _query_records(self, where: str, values: Sequence[Any]) -> list[QueryRecord]:
        rows = self._db.execute(
            "SELECT run, position, query_id, text, opened_at, EXISTS"
            " (SELECT 1 FROM rankings WHERE rankings.run = queries.run AND rankings.position = queries.position)"
            f" FROM queries WHERE {where}",
            values,
        )
        return [
            QueryRecord(run, position, _text(query_id), None if text is None else _text(text), at, bool(finished))
            for run, position, query_id, text, at, finished in rows
        ]

    # --- candidate sets ---

    def store_set(self, set_id: str, facts: Mapping[str, Any]) -> None:
        """Note what is known of a candidate set whose window is asked about under the query id `set_id`."""
        self._db.execute(
            "INSERT INTO sets (set_id, facts) VALUES (?, ?) ON CONFLICT (set_id) DO UPDATE SET facts = excluded.facts",
            (_storable(set_id), json.dumps(facts)),
        )

    def traced_sets(self) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
        """What is known of each candidate set that was asked about, in the order in which they were first noted, and
        the keys of all calls about it, each once, those of the latest run first."""
        rows = self._db.execute(
            "SELECT number, facts, calls FROM windows JOIN sets ON set_id = query_id"
            " LEFT JOIN runs USING (run) ORDER BY number, started_at DESC, run"
        )
        for _, windows in groupby(rows, key=lambda row: row[0]):
            found = [(facts, json.loads(calls)) for _, facts, calls in windows]
            yield json.loads(found[0][0]), tuple(dict.fromkeys(key for _, calls in found for key in calls))

    # --- rankings ---

    def store_ranking(self, run: str, position: int, query_id: str, ranking: Ranking) -> None:
        self._make_room()
        self._db.execute(
            "INSERT OR REPLACE INTO rankings VALUES (?, ?, ?, ?)",
            (
                run,
                position,
                _storable(query_id),
                _ranking_written(ranking),
            ),
        )

    def ranking(self, run: str, position: int) -> Ranking | None:
        """The ranking, or None. A temporary journal gives it once: nobody else can ask for it."""
        where = "FROM rankings WHERE run = ? AND position = ?"
        row = self._db.execute(f"SELECT ranking {where}", (run, position)).fetchone()
        if row is None:
            return None
        if self.path is None:
            self._db.execute(f"DELETE {where}", (run, position))
        return _ranking_read(row[0])


def _connected(to: str | Path, *, uri: bool = False) -> _Database:
    return sqlite3.connect(to, uri=uri, isolation_level=None, check_same_thread=False, factory=_Database)


def _cannot_be_used(path: Path | None, error: sqlite3.Error) -> JournalError:
    name = "the temporary journal" if path is None else f"journal {path}"
    return JournalError(f"{name} cannot be used: {error}", "give another file with --journal")


def _ranking_written(ranking: Ranking) -> str:
    return json.dumps([ranking.doc_ids, [int(t) for t in ranking.tied], ranking.probability])


def _ranking_read(written: str | bytes) -> Ranking:
    doc_ids, tied, probability = json.loads(written)
    return Ranking(tuple(doc_ids), tuple(map(bool, tied)), probability)


def _size(db: sqlite3.Connection) -> int:
    pages, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return int(pages * size)


def _usage(row: Sequence[int]) -> Usage:
    prompt, completion, reasoning, cached, estimated = row
    return Usage(prompt, completion, reasoning, cached, bool(estimated))


def _storable(text: str) -> str | bytes:
    """`text` as SQLite takes it: lone surrogates (undecodable bytes of ids, say) can only be kept as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _text(stored: str | bytes) -> str:
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")
