"""The user's cache: files that Rank-K can make again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rank_k.data.part_file import replacement_path
from rank_k.errors import InputError


def cache_directory() -> Path:
    """Return `RANK_K_CACHE`, else `rank-k` in `XDG_CACHE_HOME`, else `rank-k` in the system's folder for caches."""
    if configured_path := os.environ.get("RANK_K_CACHE"):
        return Path(configured_path).expanduser().absolute()
    base_directory = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base_directory).is_absolute():  # the XDG specification has relative ones ignored
        return Path(base_directory, "rank-k")
    if sys.platform == "win32" and (base_directory := os.environ.get("LOCALAPPDATA", "")):
        return Path(base_directory, "rank-k", "Cache")
    try:
        home = Path.home()
    except RuntimeError as error:
        raise InputError("there is no home directory to keep a cache in", "set RANK_K_CACHE to a directory") from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "rank-k"


def write_cached(name: str, lines: Iterable[bytes]) -> Path:
    """Write `lines` to the file `name` of the cache (with "/" between folders), complete or not at all.

    Args:
        name: path of the file in the cache.
        lines: the content. An `OSError` that they raise is taken for one of the disk.

    Returns:
        The path of the file.

    Raises:
        InputError: If the file cannot be written.
    """
    path = cache_directory() / name
    try:
        with replacement_path(path) as part_path, part_path.open("wb") as file:
            file.writelines(lines)
    except OSError as error:
        problem = f"{error.filename or path}: {error.strerror or error}"
        raise InputError(problem, "free disk space, or set RANK_K_CACHE to another folder") from error
    return path


def cached_file(name: str, lines: Iterable[bytes]) -> Path:
    """Return the file `name` of the cache. It is written, as by `write_cached`, only if it does not exist."""
    path = cache_directory() / name
    return path if path.is_file() else write_cached(name, lines)
