"""Check the files of a command before its work begins: the files that it will write, and the journals that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

from rank_k.errors import InputError, JournalError
from rank_k.journal import Journal

_SIDE_FILES = ("", ".part", "-wal", "-shm")
"""Suffixes of an output file and of the files next to it: the part file of an output, and the files that SQLite writes
next to a journal."""


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path | None]) -> None:
    """Check that the outputs of a command can be written and do not replace another file of the command.

    Args:
        outputs: The files to be written, by the flag that names them; None for an option that was not given.
        inputs: The files that the command reads.

    Raises:
        InputError: If an output cannot be written. Or if an output, or a file that is written next to it, would replace
            an input or a different output.
    """
    other_files = [file for file in inputs if file is not None]
    for option, file in outputs.items():
        if file is not None:
            _check_output(option, file, other_files)
            other_files.append(file)


def _check_output(option: str, file: Path, other_files: Iterable[Path]) -> None:
    if file.is_dir():
        raise InputError(f"{option} {file} is a directory", "give a file in it")
    folder = file.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            f"{option} {file}: the folder {folder} does not exist or cannot be written to",
            "create it, or choose a different folder",
        )
    for other_file in other_files:
        side_files = ([Path(f"{path}{suffix}") for suffix in _SIDE_FILES] for path in (file, other_file))
        if any(_is_same_file(*pair) for pair in product(*side_files)):
            raise InputError(
                f"{option} {file} would replace {other_file}, which this command also uses", "give a different file"
            )


def _is_same_file(first: Path, second: Path) -> bool:
    """Return whether two paths name the same file, which need not exist. Hard links to one file count as the same."""
    if first.is_file() and second.is_file():
        return first.samefile(second)
    return os.path.realpath(first) == os.path.realpath(second)


def open_journal(file: Path, remedy: str) -> Journal:
    """Open a journal for reading. The caller closes it.

    Args:
        file: The journal.
        remedy: What to do if the file is not a journal.

    Raises:
        InputError: If there is no such file, or it is not a journal.
    """
    if not file.is_file():
        raise InputError(f"there is no journal {file}", remedy)
    try:
        return Journal(file, read_only=True)
    except JournalError as error:
        journal_of_run = file.with_name(f"{file.name}.journal.sqlite")
        if journal_of_run.is_file():
            remedy = f"did you mean {journal_of_run}?"
        elif "--journal" not in error.remedy:
            remedy = error.remedy
        raise InputError(error.problem, remedy) from error
