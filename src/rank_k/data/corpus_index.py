"""The passages of a corpus file by id, in an SQLite database, so that no corpus is held in memory.

The database has a row for each passage: line number, id and text. A big file's database is kept as its index, in the
same folder, or in the user's cache if that folder cannot be written to. It is written under a temporary name and
renamed when it is complete, so that no process reads an incomplete one and any number of processes may make it at once.
It is made again when the file's size or time of change differs. A small file's database is temporary.
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
"""Called while an index is made with the bytes of the file read so far and its size."""

SUFFIX = ".index.sqlite"
FORMAT_VERSION = 3
"""Part of every index. An index with another number is made again."""

PERSIST_FROM_BYTES = 8 * 2**20
"""Size of a file from which its index is kept. Indexing a smaller one takes about a second or less."""

_SCHEMA = """
    PRAGMA cache_size = -32768;  -- in SQLite's unit: 32 MiB, for sorting and for pages
    PRAGMA journal_mode = OFF;  -- an incomplete index is thrown away, never repaired
    PRAGMA synchronous = OFF;
    CREATE TABLE source (format INTEGER, size INTEGER, changed INTEGER);
    CREATE TABLE passages (number INTEGER PRIMARY KEY, id BLOB, text TEXT);
"""


class CorpusIndex:
    """The passages that the file `path` had when it was indexed. Any thread may use it.

    `open_corpus_index` makes it.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db, self._lock = db, threading.Lock()

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """Return the passage. Raises `InputError` if the file has none or several texts of that id, or if its index is
        damaged; `query_id` is for the message."""
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
            raise InputError(f"{lines} have different texts of document {doc_id}", "keep one of them")
        return Passage(doc_id, first_text)

    def close(self) -> None:
        self._db.close()


def open_corpus_index(
    path: str | Path, on_progress: OnProgress | None = None, *, persist_from_bytes: int = PERSIST_FROM_BYTES
) -> CorpusIndex:
    """Return the index of the passages in a file, TSV or JSONL, compressed or not. It is made first if need be.

    Making one takes about 10 s per million passages and at most about 100 MB of memory, whatever their number
    (`python -m benchmarks.corpus_index`).

    Args:
        path: the file.
        on_progress: called while the index is made.
        persist_from_bytes: size of the file from which its index is kept.

    Raises:
        FormatError: For a line that is not a passage, with its number.
        InputError: If the file cannot be read or is a pipe, or if its index can be stored nowhere.
    """
    path = Path(path)
    on_progress = on_progress or (lambda done, total: None)
    reject_pipe(path, "passages are looked up by id: write them to a file first")
    with open_compressed(path, PASSAGES.expected) as stream:
        file_stat = os.fstat(stream.raw.fileno())
    if file_stat.st_size < persist_from_bytes:
        return CorpusIndex(path, _make_database("", path, file_stat, on_progress))
    return CorpusIndex(path, _open_persistent(path, file_stat, on_progress))


def _open_persistent(path: Path, file_stat: os.stat_result, on_progress: OnProgress) -> sqlite3.Connection:
    """Return the kept index of the file in this state, or make it."""
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
        f"the index of {path} cannot be stored ({'; '.join(problems)})",
        "make room in one of these folders, or name another with RANK_K_CACHE",
    )


def _open_complete(index_path: Path, file_stat: os.stat_result) -> sqlite3.Connection | None:
    """Return the index at `index_path` if there is one of the file in this state."""
    if not index_path.is_file():
        return None
    # immutable: no lock files in the same folder, which may be read-only
    db = _connect(f"{index_path.as_uri()}?mode=ro&immutable=1")
    with suppress(sqlite3.Error):  # not a database, or another program's
        if db.execute("SELECT format, size, changed FROM source").fetchone() == _file_state(file_stat):
            return db
    db.close()
    return None


def _write_index(index_path: Path, path: Path, file_stat: os.stat_result, on_progress: OnProgress) -> None:
    with replacement_path(index_path) as part_path:
        part_path.chmod(0o644 & file_stat.st_mode)  # whoever may read the file may use its index
        _make_database(part_path.as_uri(), path, file_stat, on_progress).close()


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _file_state(file_stat: os.stat_result) -> tuple[int, int, int]:
    return FORMAT_VERSION, file_stat.st_size, file_stat.st_mtime_ns


def _make_database(uri: str, path: Path, file_stat: os.stat_result, on_progress: OnProgress) -> sqlite3.Connection:
    """Return a new database of the passages of the file."""
    db = _connect(uri)
    try:
        db.executescript(_SCHEMA)
        db.execute("BEGIN")
        size = file_stat.st_size
        passages = read_numbered_passages(path, lambda done: on_progress(done, size))
        rows = ((number, id_key(passage.doc_id), passage.text) for number, passage in passages)
        db.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
        on_progress(size, size)
        db.execute("CREATE INDEX passages_by_id ON passages (id)")  # sorted at once, much faster than row by row
        db.execute("INSERT INTO source VALUES (?, ?, ?)", _file_state(file_stat))
        db.execute("COMMIT")
        if _file_state(path.stat()) != _file_state(file_stat):
            raise InputError(f"{path} was changed while it was read", "run the same command again")
    except BaseException:
        db.close()
        raise
    return db
