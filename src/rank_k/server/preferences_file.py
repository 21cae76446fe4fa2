"""The file in which judgments are kept: one row of JSONL each, on disk before it counts, never changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rank_k.errors import FormatError, InputError
from rank_k.evaluation.preferences import Judgment, read_judgments


class PreferencesFile:
    """Readable and writable by its owner only, for it says who judged what. Held by one server at a time.

    `rows` are all of it. What was half written when the machine stopped, and so was never acknowledged, is cut off.

    Raises `InputError` if it cannot be written or another server holds it, `FormatError` for what is no judgment.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror})", "name another file for --preferences-file"
            ) from error
        try:
            _lock(self._descriptor, path)
            self.rows = self._read()
            self._size = os.fstat(self._descriptor).st_size
        except BaseException:
            self.close()
            raise

    def append(self, row: Judgment) -> None:
        """Returns once the row is on disk; raises `OSError` where that failed, and the file is as it was before."""
        line = (json.dumps(row.to_dict()) + "\n").encode("ascii")
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)
        self.rows.append(row)

    def _read(self) -> list[Judgment]:
        content = self.path.read_bytes()
        complete_length = content.rfind(b"\n") + 1
        try:
            rows = read_judgments(self.path) if content.strip() else []
        except FormatError as error:
            if error.line != content.count(b"\n") + 1 or not _is_partial_row(content[complete_length:]):
                raise
            os.ftruncate(self._descriptor, complete_length)
            return read_judgments(self.path) if complete_length else []
        if complete_length < len(content):
            os.write(self._descriptor, b"\n")
        return rows

    def close(self) -> None:
        os.close(self._descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """Keep other servers away, where the system can do that."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(
            f"another server writes {path}", "give this one a file of its own: --preferences-file"
        ) from error


def _is_partial_row(line: bytes) -> bool:
    """Whether it is the beginning of a row that was written here."""
    if not line.startswith(b'{"judge": "'):
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
