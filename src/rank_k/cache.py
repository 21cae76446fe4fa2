"""Where on the user's machine things are kept that can be made again."""

from __future__ import annotations

import os
import sys
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
