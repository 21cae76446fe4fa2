"""Passages of a file by id, with none of its texts in memory: an index of where each line lies.

The index is an SQLite database of `id -> line number, start, length`. A small file's is made in memory, a
big one's is kept: beside the file, or in the user's cache where that folder cannot be written to. It is
written under another name and renamed when it is whole, so that no half of one is ever read and any number of
processes may make it at once. It holds for the file's size and time of change alone; otherwise it is made anew.

Compressed files cannot be read from the middle. Their index holds the text too, in parts of `PART_BYTES` bytes, each
compressed by itself, and start and length count decompressed bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from rank_k.data.cache_directory import cache_directory
from rank_k.data.compression import open_compressed
from rank_k.data.lines import numbered_lines
from rank_k.data.passages import PASSAGE_FORMAT, parse_passage, parse_passage_id
from rank_k.data.records import is_jsonl
from rank_k.errors import InputError
from rank_k.types import Passage

OnProgress = Callable[[int, int], None]
"""Called while an index is made with bytes of the file read so far and bytes in all."""

SUFFIX = ".offsets"
FORMAT_VERSION = 2
"""Part of every index: another number than this one's makes it stale."""

PART_BYTES = 16_384
"""Bytes of text that are compressed, and decompressed for a lookup, together: 0.1 ms."""

PERSIST_FROM_BYTES = 8 * 2**20
"""Bytes of a file from which its index is kept: below, making it takes less than a second."""

_CACHE_SIZE = -32_768  # SQLite's unit: 32 MiB, for sorting and for pages
_PROGRESS_EVERY_LINES = 20_000


class CorpusIndex:
    """The lines of the passages in `path`, by id. Open it with `open_corpus_index`; any thread may use it."""

    def __init__(self, path: Path, db: sqlite3.Connection, source: IO[bytes]) -> None:
        self.path = path
        properties = dict(db.execute("SELECT name, value FROM facts"))
        self._jsonl, self._compressed = bool(properties["jsonl"]), bool(properties["compressed"])
        self._db, self._source, self._lock = db, source, threading.Lock()
        self._initial_state = _file_state(os.fstat(source.fileno()))

    def passages(self, doc_id: str) -> list[Passage]:
        """Those with this id, in the file's order: one, or none, or several where the file repeats an id.

        Raises `FormatError` for a line that is not as it should be, `InputError` if the file or its index
        has been damaged since.
        """
        try:
            with self._lock:
                rows = self._db.execute("SELECT number, start, length FROM entries WHERE id = ?", (_id_key(doc_id),))
                lines = [(number, self._read(start, length)) for number, start, length in rows]
            if _file_state(os.fstat(self._source.fileno())) != self._initial_state:
                raise InputError(f"{self.path} was changed while it was in use", "run the same command again")
            return [parse_passage(self.path, number, line, self._jsonl) for number, line in lines]
        except UnicodeEncodeError:  # half a surrogate pair, which no file can hold
            return []
        except (sqlite3.Error, zlib.error, OSError) as error:
            raise InputError(f"the index of {self.path} cannot be read ({error})", f"delete {self.file}") from error

    def __len__(self) -> int:
        with self._lock:
            (count,) = self._db.execute("SELECT count(*) FROM entries").fetchone()
        return int(count)

    @property
    def file(self) -> str:
        """Path of the index; empty for one in memory."""
        return str(self._db.execute("PRAGMA database_list").fetchone()[2])

    def close(self) -> None:
        self._db.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self.close()

    def _read(self, start: int, length: int) -> bytes:
        if not self._compressed:
            self._source.seek(start)
            return self._source.read(length)
        first_part = start // PART_BYTES
        rows = self._db.execute(
            "SELECT data FROM parts WHERE number BETWEEN ? AND ? ORDER BY number",
            (first_part, (start + length - 1) // PART_BYTES),
        )
        decompressed = b"".join(zlib.decompress(data) for (data,) in rows)
        return decompressed[start - first_part * PART_BYTES :][:length]


def open_corpus_index(
    path: str | Path, on_progress: OnProgress | None = None, *, persist_from_bytes: int = PERSIST_FROM_BYTES
) -> CorpusIndex:
    """The index of the passages in `path` (TSV or JSONL, as it is or compressed), made now if need be.

    Making one takes a few seconds a million passages and at most some 150 MB of memory, whatever their number
    (measured in `benchmarks/corpus_index.py`). Raises `FormatError` for a line without an id and what
    `open_compressed` raises; `InputError` for a pipe, and where an index can be stored nowhere.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is a pipe or device", "passages are looked up by place: write it to a file first")
    with open_compressed(path, PASSAGE_FORMAT):
        source = path.open("rb")
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        file_stat = os.fstat(source.fileno())
        if file_stat.st_size < persist_from_bytes:
            db = stack.enter_context(contextlib.closing(_connect(":memory:")))
            _build_index(db, path, file_stat, on_progress)
        else:
            db = stack.enter_context(contextlib.closing(_persistent_index(path, file_stat, on_progress)))
        index = CorpusIndex(path, db, source)
        stack.pop_all()  # from here on the index closes them
    return index


def _persistent_index(path: Path, file_stat: os.stat_result, on_progress: OnProgress | None) -> sqlite3.Connection:
    """The index on disk: one that is there and holds, or else a new one."""
    real_path = Path(os.path.realpath(path))
    digest = hashlib.sha256(os.fsencode(real_path)).hexdigest()[:16]
    index_paths = (
        real_path.with_name(real_path.name + SUFFIX),
        cache_directory() / "offsets" / f"{digest}-{real_path.name[:100]}{SUFFIX}",
    )
    for index_path in index_paths:
        if (db := _open_persistent_index(index_path, file_stat)) is not None:
            return db
    problems = []
    for index_path in index_paths:
        try:
            _write_index(index_path, path, file_stat, on_progress)
        except (OSError, sqlite3.Error) as error:
            problems.append(f"{index_path.parent}: {getattr(error, 'strerror', None) or error}")
        else:
            if (db := _open_persistent_index(index_path, file_stat)) is not None:
                return db
            problems.append(f"{index_path.parent}: another process wrote it meanwhile")
    raise InputError(
        f"the index of {path} cannot be kept ({'; '.join(problems)})",
        "make room in one of these folders, or name another with RANK_K_CACHE",
    )


def _open_persistent_index(index_path: Path, file_stat: os.stat_result) -> sqlite3.Connection | None:
    """The index at `place`, if there is one and it is of the file in this state."""
    if not index_path.is_file():
        return None
    with contextlib.ExitStack() as stack, contextlib.suppress(sqlite3.Error, TypeError):  # no database, or another's
        # immutable: no lock files beside it, which a read-only folder could not hold
        db = stack.enter_context(contextlib.closing(_connect(f"{index_path.as_uri()}?mode=ro&immutable=1")))
        properties = dict(db.execute("SELECT name, value FROM facts"))
        if properties.items() >= _file_state(file_stat).items():
            stack.pop_all()
            return db
    return None


def _write_index(index_path: Path, path: Path, file_stat: os.stat_result, on_progress: OnProgress | None) -> None:
    """Write the index to `index_path`, complete or not at all."""
    index_path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_parts(index_path)
    descriptor, part_name = tempfile.mkstemp(dir=index_path.parent, prefix=f".{index_path.name[:100]}-", suffix=".part")
    os.close(descriptor)
    part_path = Path(part_name)
    try:
        with contextlib.closing(_connect(part_path.as_uri())) as db:
            _build_index(db, path, file_stat, on_progress)
        part_path.chmod(0o644 & file_stat.st_mode)  # whoever may read the file may use its index
        with part_path.open("rb+") as file:
            os.fsync(file.fileno())
        part_path.replace(index_path)
    finally:
        part_path.unlink(missing_ok=True)


def _remove_stale_parts(index_path: Path) -> None:
    """Remove what killed processes left behind; a day is longer than any that still runs."""
    for leftover in index_path.parent.glob(f".*{SUFFIX}-*.part"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 86_400:
                leftover.unlink()


def _connect(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA cache_size = {_CACHE_SIZE}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _file_state(file_stat: os.stat_result) -> dict[str, int]:
    return {"format": FORMAT_VERSION, "part": PART_BYTES, "size": file_stat.st_size, "changed": file_stat.st_mtime_ns}


def _build_index(db: sqlite3.Connection, path: Path, file_stat: os.stat_result, on_progress: OnProgress | None) -> None:
    """Fill an empty database. Rows are gathered as they come and sorted at once: entering them one by one in
    the order of the file would move all over the tree, ever slower as it grows."""
    db.execute("PRAGMA journal_mode = OFF")  # an incomplete index is thrown away, never repaired
    db.execute("PRAGMA synchronous = OFF")
    if file_stat.st_size < PERSIST_FROM_BYTES:
        db.execute("PRAGMA temp_store = MEMORY")
    db.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER)")
    db.execute("CREATE TABLE parts (number INTEGER PRIMARY KEY, data BLOB)")
    db.execute(
        "CREATE TABLE entries (id BLOB, number INTEGER, start INTEGER, length INTEGER, PRIMARY KEY (id, number))"
        " WITHOUT ROWID"
    )
    db.execute("CREATE TEMP TABLE gathered (id BLOB, number INTEGER, start INTEGER, length INTEGER)")
    db.execute("BEGIN")
    scan = _CorpusScan(db, path, file_stat.st_size, on_progress)
    db.executemany("INSERT INTO gathered VALUES (?, ?, ?, ?)", scan.rows())
    db.execute("INSERT INTO entries SELECT * FROM gathered ORDER BY id, number")
    properties = _file_state(file_stat) | {"jsonl": scan.jsonl, "compressed": scan.compressed}
    db.executemany("INSERT INTO facts VALUES (?, ?)", properties.items())
    db.execute("COMMIT")
    db.execute("DROP TABLE gathered")
    current_stat = path.stat()
    if (current_stat.st_size, current_stat.st_mtime_ns) != (file_stat.st_size, file_stat.st_mtime_ns):
        raise InputError(f"{path} was changed while it was read", "run the same command again")


class _CorpusScan:
    """One reading of the file: a row of the index per passage, and the parts where it is compressed."""

    def __init__(self, db: sqlite3.Connection, path: Path, size: int, on_progress: OnProgress | None) -> None:
        self._db, self._path, self._size = db, path, size
        self._on_progress = on_progress or (lambda done, total: None)
        self.jsonl = self.compressed = False

    def rows(self) -> Iterator[tuple[bytes, int, int, int]]:
        path = self._path
        with open_compressed(path, PASSAGE_FORMAT) as stream:
            self.compressed = stream.plain is not stream.raw
            lines = self._store_parts(stream.plain) if self.compressed else stream.plain
            is_first_line_read = False
            for number, start, line in numbered_lines(path, lines, PASSAGE_FORMAT):
                if not is_first_line_read:
                    self.jsonl, is_first_line_read = is_jsonl(line), True
                yield _id_key(parse_passage_id(path, number, line, self.jsonl)), number, start, len(line)
                if number % _PROGRESS_EVERY_LINES == 0:
                    self._on_progress(stream.raw.tell(), self._size)
        self._on_progress(self._size, self._size)

    def _store_parts(self, lines: Any) -> Iterator[bytes]:
        """Yield `lines` and store their text in compressed parts."""
        text, number = bytearray(), 0
        for line in lines:
            text += line
            while len(text) >= PART_BYTES:
                self._store_part(number, bytes(text[:PART_BYTES]))
                del text[:PART_BYTES]
                number += 1
            yield line
        if text:
            self._store_part(number, bytes(text))

    def _store_part(self, number: int, part: bytes) -> None:
        self._db.execute("INSERT INTO parts VALUES (?, ?)", (number, zlib.compress(part, 1)))


def _id_key(doc_id: str) -> bytes:
    return doc_id.encode("utf-8", "surrogateescape")
