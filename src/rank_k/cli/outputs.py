"""Files that a command is to write."""

from __future__ import annotations

import os
from pathlib import Path


def check_output(option: str, file: Path, others: tuple[Path, ...]) -> None:
    """It can be written and nothing of the user's is lost by that: found out before the work begins."""
    from rank_k.errors import InputError

    if file.is_dir():
        raise InputError(f"{option} {file} is a directory", "name a file in it")
    folder = file.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{option} {file}: there is no folder {folder} that can be written to", "make it first")
    if any(os.path.realpath(file) == os.path.realpath(other) for other in others):
        raise InputError(f"{option} {file} would replace a file that is read", "name another one")
