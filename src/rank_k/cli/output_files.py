"""Files that a command is to write."""

from __future__ import annotations

import os
from pathlib import Path

_SIDE_FILES = ("", ".part", "-wal", "-shm")
"""Suffixes of the files that are written next to one: the part file of an output, and SQLite's of a journal."""


def check_output(option: str, file: Path, other_files: tuple[Path, ...]) -> None:
    """Check that `file` can be written and is not one of `others`, before the work begins.

    Args:
        option: The flag that names `file`, for the message.
        file: The file to be written: an output, a report, a journal.
        others: Every other file that the command reads or writes.

    Raises:
        InputError: If `file` cannot be written, or if it or a file written next to it is one of `others`.
    """
    from rank_k.errors import InputError

    if file.is_dir():
        raise InputError(f"{option} {file} is a directory", "name a file in it")
    folder = file.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{option} {file}: there is no folder {folder} that can be written to", "make it first")
    written = _identities(file)
    for other_file in other_files:
        if written & _identities(other_file):
            raise InputError(
                f"{option} {file} would replace {other_file}, which this command also uses", "name another file"
            )


def _identities(file: Path) -> set[object]:
    """Return what identifies `file` and its side files: device and inode if it exists (links are equal), and path."""
    identities: set[object] = set()
    for suffix in _SIDE_FILES:
        path = Path(f"{file}{suffix}")
        identities.add(os.path.realpath(path))
        if path.exists() and path.is_file():
            status = path.stat()
            identities.add((status.st_dev, status.st_ino))
    return identities
