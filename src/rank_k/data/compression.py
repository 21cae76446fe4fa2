"""Open files that may be compressed with gzip or Zstandard. The first bytes of a file show its compression."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, NamedTuple

from rank_k.errors import FormatError, InputError
from rank_k.optional_deps import load

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def reject_pipe(path: Path, remedy: str) -> None:
    """Raise `InputError` with `remedy` if `path` is a pipe or device, which cannot be read twice."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is a pipe or device", remedy)


class DecompressedStream(NamedTuple):
    """An open file.

    Attributes:
        plain: The decompressed content.
        raw: The file itself. Its position is the number of bytes read so far.
    """

    plain: IO[bytes] | gzip.GzipFile
    raw: IO[bytes]


@contextmanager
def open_compressed(path: Path, expected: str) -> Iterator[DecompressedStream]:
    """Open a file for reading, decompressed.

    Args:
        path: The file.
        expected: The expected content of the file, for error messages.

    Raises:
        InputError: If the file cannot be opened or read.
        FormatError: If `path` is a directory, or if compressed data turn out to be damaged or incomplete.
        MissingExtra: If the file is compressed with Zstandard and no package that reads it is installed.
    """
    if path.is_dir():
        raise FormatError(path, 0, "a directory", f"a file with {expected}")
    try:
        with path.open("rb") as raw:
            start = raw.peek(4)[:4]
            if start[:2] == _GZIP:
                with gzip.open(raw) as plain:
                    yield DecompressedStream(plain, raw)
            elif start == _ZSTD:
                with _open_zstd(path, raw) as plain:
                    yield DecompressedStream(plain, raw)
            else:
                yield DecompressedStream(raw, raw)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file", "check the path") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FormatError(path, 0, f"damaged gzip data ({error})", "a complete gzip file") from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})", "check its permissions") from error


@contextmanager
def _open_zstd(path: Path, raw: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a file with the Zstandard module of Python 3.14, or with its backport.

    Unlike other packages, both raise `EOFError` if the file is incomplete.
    """
    zstd = import_module("compression.zstd") if sys.version_info >= (3, 14) else load("backports.zstd")
    try:
        with zstd.open(raw) as plain:
            yield plain
    except (zstd.ZstdError, EOFError) as error:
        raise FormatError(path, 0, f"damaged Zstandard data ({error})", "a complete Zstandard file") from error
