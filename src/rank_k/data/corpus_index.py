"""Look up passages of a corpus file by id. An SQLite database holds them, so that no corpus has to fit in memory.

The database has one row per passage: line number, id and text. For a large file, the database is saved as an index in
the same directory, or in the user's cache if that directory is read-only. The index is rebuilt when the size or the
modification time of the file has changed. It is written under a temporary name and renamed when it is complete;
several processes may build it at the same time. For a small file, the database is temporary.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rank_k.data.cache_directory import cache_directory
from rank_k.data.compression import open_compressed, reject_pipe
from rank_k.data.lines import id_key
from rank_k.data.part_file import replacement_path
from rank_k.data.passages import PASSAGES, missing_passage_error, read_numbered_passages
from rank_k.errors import InputError
from rank_k.types import Passage

OnProgress = Callable[[int, int], None]
"""Called while an index is built, with the number of bytes read so far and the size of the file in bytes."""

SUFFIX = ".index.sqlite"
FORMAT_VERSION = 3
"""Stored in every index. An index with a different version is rebuilt."""

PERSIST_FROM_BYTES = 8 * 2**20
"""The index of a file of at least this size is saved. Smaller files are indexed in about a second or less."""

_SCHEMA = """
    PRAGMA cache_size = -32768;  -- in SQLite's unit: 32 MiB, for sorting and for pages
    PRAGMA journal_mode = OFF;  -- an incomplete index is discarded, never repaired
    PRAGMA synchronous = OFF;
    CREATE TABLE source (format INTEGER, size INTEGER, changed INTEGER);
    CREATE TABLE passages (number INTEGER PRIMARY KEY, id BLOB, text TEXT);
"""


class CorpusIndex:
    """The passages of a corpus file by id. `open_corpus_index` returns one. Any thread may use it.

    Attributes:
        path: The corpus file.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db, self._lock = db, threading.Lock()

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """Return a passage.

        Args:
            doc_id: The id of the passage.
            query_id: The query whose candidate it is, for error messages.

        Raises:
            InputError: If the file has no passage with this id, or several with different texts, or if the index is
                damaged.
        """
        try:
            with self._lock:
                rows = self._db.execute(
                    "SELECT number, text FROM passages WHERE id = ? ORDER BY number", (id_key(doc_id),)
                ).fetchall()
        except sqlite3.Error as error:
            index_file = self._db.execute("PRAGMA database_list").fetchone()[2]
            raise InputError(f"the index of {self.path} cannot be read ({error})", f"delete {index_file}") from error
        if not rows:
            raise missing_passage_error(doc_id, query_id, str(self.path))
        first_number, first_text = rows[0]
        if other_numbers := [number for number, text in rows if text != first_text]:
            lines = f"lines {first_number} and {other_numbers[0]} of {self.path}"
            raise InputError(f"{lines} give different texts for document {doc_id}", "remove one of them")
        return Passage(doc_id, first_text)

    def close(self) -> None:
        self._db.close()


def open_corpus_index(
    path: str | Path, on_progress: OnProgress | None = None, *, persist_from_bytes: int = PERSIST_FROM_BYTES
) -> CorpusIndex:
    """Return the index of a corpus file, which is built if it does not exist or is out of date.

    Building takes about 10 s per million passages and at most about 100 MB of memory
    (`python -m benchmarks.corpus_index`).

    Args:
        path: The file, TSV or JSONL, which may be compressed.
        on_progress: Called while the index is built.
        persist_from_bytes: Save the index if the file has at least this size (default: 8 MiB).

    Raises:
        FormatError: If a line is not a passage.
        InputError: If the file cannot be read or is a pipe, or if the index cannot be saved.
    """
    path = Path(path)
    on_progress = on_progress or (lambda done, total: None)
    reject_pipe(path, "passages are looked up by id, so write them to a file")
    with open_compressed(path, PASSAGES.expected) as stream:
        file_stat = os.fstat(stream.raw.fileno())
    if file_stat.st_size < persist_from_bytes:
        return CorpusIndex(path, _make_database("", path, file_stat, on_progress))
    return CorpusIndex(path, _open_persistent(path, file_stat, on_progress))


def _open_persistent(path: Path, file_stat: os.stat_result, on_progress: OnProgress) -> sqlite3.Connection:
    """Return the saved index of the file, which is built if it does not exist or is out of date."""
    real_path = Path(os.path.realpath(path))
    digest = hashlib.sha256(os.fsencode(real_path)).hexdigest()[:16]
    index_paths = (
        real_path.with_name(real_path.name + SUFFIX),
        cache_directory() / "corpus_index" / f"{digest}-{real_path.name[:100]}{SUFFIX}",
    )
    for index_path in index_paths:
        if (db := _open_complete(index_path, file_stat)) is not None:
            return db
    problems = []
    for index_path in index_paths:
        try:
            _write_index(index_path, path, file_stat, on_progress)
        except (OSError, sqlite3.Error) as error:
            problems.append(f"{index_path.parent}: {getattr(error, 'strerror', None) or error}")
        else:
            if (db := _open_complete(index_path, file_stat)) is not None:
                return db
            problems.append(f"{index_path.parent}: another process replaced it")
    raise InputError(
        f"the index of {path} cannot be saved ({'; '.join(problems)})",
        "free space in one of these directories, or set RANK_K_CACHE to a different directory",
    )


def _open_complete(index_path: Path, file_stat: os.stat_result) -> sqlite3.Connection | None:
    """Return the index at `index_path` if it exists and is up to date."""
    if not index_path.is_file():
        return None
    # immutable: SQLite creates no lock files; the directory may be read-only
    db = _connect(f"{index_path.as_uri()}?mode=ro&immutable=1")
    with suppress(sqlite3.Error):  # not a database, or the database of a different program
        if db.execute("SELECT format, size, changed FROM source").fetchone() == _file_state(file_stat):
            return db
    db.close()
    return None


def _write_index(index_path: Path, path: Path, file_stat: os.stat_result, on_progress: OnProgress) -> None:
    with replacement_path(index_path) as part_path:
        part_path.chmod(0o644 & file_stat.st_mode)  # all users who may read the file may use its index
        _make_database(part_path.as_uri(), path, file_stat, on_progress).close()


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _file_state(file_stat: os.stat_result) -> tuple[int, int, int]:
    return FORMAT_VERSION, file_stat.st_size, file_stat.st_mtime_ns


def _make_database(uri: str, path: Path, file_stat: os.stat_result, on_progress: OnProgress) -> sqlite3.Connection:
    """Return a new database of the passages in the file."""
    db = _connect(uri)
    try:
        db.executescript(_SCHEMA)
        db.execute("BEGIN")
        size = file_stat.st_size
        passages = read_numbered_passages(path, lambda done: on_progress(done, size))
        rows = ((number, id_key(passage.doc_id), passage.text) for number, passage in passages)
        db.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
        on_progress(size, size)
        # created after all rows were inserted, because sorting all rows at once is much faster
        db.execute("CREATE INDEX passages_by_id ON passages (id)")
        db.execute("INSERT INTO source VALUES (?, ?, ?)", _file_state(file_stat))
        db.execute("COMMIT")
        if _file_state(path.stat()) != _file_state(file_stat):
            raise InputError(f"{path} changed while it was read", "run the same command again")
    except BaseException:
        db.close()
        raise
    return db
