"""Write files so that they are complete or absent, even if the process is interrupted.

PartFile           for outputs, which only one process writes at a time
replacement_path   for cached files, which several processes may write at the same time
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
except ImportError:  # Windows, where a file that is open for writing cannot be replaced
    fcntl = None  # type: ignore[assignment]


class PartFile:
    """A binary output file, which replaces `path` when it is complete.

    Data are written to `path` + ".part". When the `with` block ends, that file is renamed to `path`. After an
    exception, the part file stays for inspection and `path` is unchanged. If `path` is a symbolic link, it is followed;
    if the part file is a symbolic link, that is an error. The part file is locked while it is written, so that two
    commands with the same output cannot mix their lines. The lock ends with the process.

    Args:
        path: The file to write.

    Raises:
        InputError: If `path` is not a regular file, if the file cannot be written, or if another process writes it.
    """

    def __init__(self, path: str | Path) -> None:
        self.target = Path(os.path.realpath(path))
        self.path = self.target.with_name(self.target.name + ".part")
        if self.target.exists() and not self.target.is_file():
            raise InputError(f"{path} is not a regular file", "give a regular file, which can be replaced")

    def __enter__(self) -> Self:
        try:
            descriptor = self._lock()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(f"{self.path} is a symbolic link", "remove it") from error
            raise InputError(f"cannot write {self.path} ({error.strerror})", "choose a different file") from error
        self._file = os.fdopen(descriptor, "wb")
        return self

    def write(self, data: bytes) -> None:
        """Append `data`, which may be buffered until `flush` is called."""
        self._file.write(data)

    def flush(self) -> None:
        """Pass everything written so far to the operating system."""
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
                if fcntl is not None:  # while the file is locked: otherwise another process might start to write it
                    self.path.replace(self.target)
        if exception_type is None and fcntl is None:
            self.path.replace(self.target)

    def _lock(self) -> int:
        """Return a descriptor of the part file, which is empty and locked."""
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        while True:
            descriptor = os.open(self.path, flags, 0o666)
            try:
                lock_exclusively(descriptor, self.target)
                with contextlib.suppress(FileNotFoundError):  # another process has renamed it in the meantime
                    if fcntl is None or os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                        os.ftruncate(descriptor, 0)
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def lock_exclusively(descriptor: int, path: Path) -> None:
    """Lock an open file, if the operating system and the file system support locks.

    Args:
        descriptor: The open file.
        path: The name of the file, for error messages.

    Raises:
        InputError: If another process has locked the file.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another process is writing {path}", "wait until it has finished, or choose a different file"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # the file system has no locks
            raise


_ABANDONED_AFTER_SECONDS = 86_400
"""A temporary file that is older than this was left by a process that was killed."""


@contextlib.contextmanager
def replacement_path(path: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file, which replaces `path` when the `with` block ends without an exception.

    Several processes may replace the same file at the same time: each one writes a separate file in the same
    directory, and the last one to finish wins. The directory is created if necessary. If a process is killed, its
    file stays until a later call deletes it.

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
