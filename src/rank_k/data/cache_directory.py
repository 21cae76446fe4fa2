"""The user's cache directory, for files that Rank-K can create again at any time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rank_k.data.part_file import replacement_path
from rank_k.errors import InputError


def cache_directory() -> Path:
    """Return the directory for cached files.

    It is the value of the environment variable `RANK_K_CACHE` if that is set, and otherwise the directory `rank-k` in
    `XDG_CACHE_HOME` or in the system's directory for caches.

    Raises:
        InputError: If none of these exists because the user has no home directory.
    """
    if configured_path := os.environ.get("RANK_K_CACHE"):
        return Path(configured_path).expanduser().absolute()
    base_directory = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base_directory).is_absolute():  # the XDG specification says to ignore relative paths
        return Path(base_directory, "rank-k")
    if sys.platform == "win32" and (base_directory := os.environ.get("LOCALAPPDATA", "")):
        return Path(base_directory, "rank-k", "Cache")
    try:
        home = Path.home()
    except RuntimeError as error:
        raise InputError("there is no home directory for the cache", "set RANK_K_CACHE to a directory") from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "rank-k"


def write_cached(name: str, lines: Iterable[bytes]) -> Path:
    """Write a file in the cache and return its path. The file is complete or absent.

    Args:
        name: Path of the file within the cache, with "/" between directories.
        lines: The content.

    Raises:
        InputError: If the file cannot be written.
    """
    path = cache_directory() / name
    try:
        with replacement_path(path) as part_path, part_path.open("wb") as file:
            file.writelines(lines)
    except OSError as error:
        problem = f"cannot write {error.filename or path} ({error.strerror or error})"
        raise InputError(problem, "free disk space or set RANK_K_CACHE to a different directory") from error
    return path


def cached_file(name: str, lines: Iterable[bytes]) -> Path:
    """Return the path of a file in the cache. If it does not exist, it is written by `write_cached`."""
    path = cache_directory() / name
    return path if path.is_file() else write_cached(name, lines)
