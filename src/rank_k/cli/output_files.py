"""Check the files that a command will write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rank_k.errors import InputError

_SIDE_FILES = ("", ".part", "-wal", "-shm")
"""Suffixes of the files that are written next to one: the part file of an output, and SQLite's of a journal."""


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path | None]) -> None:
    """Check that the outputs of a command can be written and replace no other file of it, before the work begins.

    Args:
        outputs: The files to be written by the flag that names them. None stands for an option that was not given.
        inputs: The files that the command reads.

    Raises:
        InputError: If an output cannot be written, or if it or a file written next to it is an input or another
            output.
    """
    other_files = [file for file in inputs if file is not None]
    for option, file in outputs.items():
        if file is not None:
            _check_output(option, file, other_files)
            other_files.append(file)


def _check_output(option: str, file: Path, other_files: Iterable[Path]) -> None:
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
    """Return what identifies `file` and its side files: the resolved path and, if it exists, its device and inode."""
    identities: set[object] = set()
    for suffix in _SIDE_FILES:
        path = Path(f"{file}{suffix}")
        identities.add(os.path.realpath(path))
        if path.is_file():
            status = path.stat()  # equal for hard links
            identities.add((status.st_dev, status.st_ino))
    return identities
