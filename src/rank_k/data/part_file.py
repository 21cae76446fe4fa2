"""Files that are complete or absent.

PartFile           an output, which one process writes at a time
replacement_path   a cached file, which any number of processes may write at once
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from rank_k.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open for writing cannot be replaced anyway
    fcntl = None  # type: ignore[assignment]


class PartFile:
    """A binary file that takes the place of `path` once it is complete.

    Bytes go to `path` + ".part". A clean exit from the `with` block renames that file to `path`; after an exception
    it stays for inspection, and the file at `path` is untouched. A link at `path` is followed; one at the part file
    is not. The part file is locked while it is written, so that two commands with the same output never mix their
    lines: the second one is refused. The lock ends with the process, however that ends.

    Raises:
        InputError: On entering, if the file cannot be written or another process is writing it.
    """

    def __init__(self, path: str | Path) -> None:
        self.target = Path(os.path.realpath(path))
        self.path = self.target.with_name(self.target.name + ".part")
        if self.target.exists() and not self.target.is_file():
            raise InputError(f"{path} is not a regular file", "name a file that can be replaced")

    def __enter__(self) -> Self:
        try:
            descriptor = self._lock()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(f"{self.path} is a symbolic link", "remove it") from error
            raise InputError(f"cannot write {self.path} ({error.strerror})", "name another file") from error
        self._file = os.fdopen(descriptor, "wb")
        return self

    def write(self, data: bytes) -> None:
        """Append `data`. It may stay in a buffer until `flush`."""
        self._file.write(data)

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._file.flush()

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if exception_type is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                if fcntl is not None:  # renamed while it is locked, or the next process would write into it
                    self.path.replace(self.target)
        if exception_type is None and fcntl is None:
            self.path.replace(self.target)

    def _lock(self) -> int:
        """Return a descriptor of the empty part file, locked for this process."""
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        while True:
            descriptor = os.open(self.path, flags, 0o666)
            try:
                lock_exclusively(descriptor, self.target)
                with contextlib.suppress(FileNotFoundError):  # finished and renamed by another process meanwhile
                    if fcntl is None or os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                        os.ftruncate(descriptor, 0)
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def lock_exclusively(descriptor: int, path: Path) -> None:
    """Lock an open file, if the system and its file system support locks. `path`: the file's name for the message.

    Raises:
        InputError: If another process has locked the file.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another process is writing {path}", "wait until it has finished, or name another file"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
            raise


_ABANDONED_AFTER_SECONDS = 86_400
"""Temporary files older than a day belong to processes that were killed."""


@contextlib.contextmanager
def replacement_path(path: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file in the same folder, which replaces `path` unless the block raises.

    Any number of processes may replace the same file at once: each writes a separate file, and the last one to finish
    wins. The folder is created. A killed process leaves its file behind; a later call removes it.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:100]}-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                leftover.unlink()
    part_path = path.with_name(f"{prefix}{secrets.token_hex(8)}.part")
    try:
        part_path.touch(exist_ok=False)
        yield part_path
        with part_path.open("rb+") as file:
            os.fsync(file.fileno())
        part_path.replace(path)
    finally:
        part_path.unlink(missing_ok=True)
