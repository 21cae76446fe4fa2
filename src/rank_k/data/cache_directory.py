"""Where on the user's machine things are kept that can be made again."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rank_k.errors import InputError


def cache_directory() -> Path:
    """`RANK_K_CACHE`, else `rank-k` in `XDG_CACHE_HOME`, else where the system keeps caches."""
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
    """Write `lines` to the file `name` (folders in it by `/`) in the cache, whole or not at all; returns its path.

    Raises `InputError` if that cannot be, and whatever making the lines raises.
    """
    path = cache_directory() / name
    with _disk_errors_as_input_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part_path = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for line in lines:  # an OSError of these is not the disk's: those of downloads are such
                try:
                    file.write(line)
                except OSError as error:
                    raise _disk_error(path, error) from error
            with _disk_errors_as_input_errors(path):
                file.flush()
        with _disk_errors_as_input_errors(path):
            Path(part_path).replace(path)
    finally:
        Path(part_path).unlink(missing_ok=True)
    return path


@contextmanager
def _disk_errors_as_input_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _disk_error(path, error) from error


def _disk_error(path: Path, error: OSError) -> InputError:
    problem = f"{error.filename or path}: {error.strerror or error}"
    return InputError(problem, "see to the disk, or set RANK_K_CACHE to another folder")
