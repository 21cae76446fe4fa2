"""Where on the user's machine things are kept that can be made again."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rank_k.errors import InputError


def cache_directory() -> Path:
    """`RANK_K_CACHE`, else `rank-k` in `XDG_CACHE_HOME`, else where the system keeps caches."""
    if own := os.environ.get("RANK_K_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification has relative ones ignored
        return Path(base, "rank-k")
    if sys.platform == "win32" and (base := os.environ.get("LOCALAPPDATA", "")):
        return Path(base, "rank-k", "Cache")
    try:
        home = Path.home()
    except RuntimeError as error:
        raise InputError("there is no home directory to keep a cache in", "set RANK_K_CACHE to a directory") from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "rank-k"


def keep(name: str, lines: Iterable[bytes]) -> Path:
    """Write `lines` to the file `name` (folders in it by `/`) in the cache, whole or not at all; returns its path.

    Raises `InputError` if that cannot be.
    """
    path = cache_directory() / name
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
            part = Path(file.name)
            file.writelines(lines)
        part.replace(path)
    except OSError as error:
        problem = f"{error.filename or path}: {error.strerror or error}"
        raise InputError(problem, "see to the disk, or set RANK_K_CACHE to another folder") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return path
