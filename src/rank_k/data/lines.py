"""Lines of text files, decompressed, numbered and checked, and the JSON in them. All readers of files share these.

Gzip and Zstandard are recognized by their first bytes, never by the file's name. A byte order mark, CRLF and blank
lines are accepted. Ids are decoded as UTF-8 with surrogateescape, so that they are written as the bytes they were read
as. In the text of queries and passages, bytes that cannot be decoded become U+FFFD.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rank_k.data.compression import open_compressed
from rank_k.errors import FormatError

_PROGRESS_EVERY_LINES = 20_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNENCODABLE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # the others stand for undecodable bytes


def read_lines(
    path: Path, expected: str, on_progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield the number (from 1) and bytes of each line of a file that is not blank, without its line end.

    Args:
        path: the file, which may be compressed.
        expected: what the file should hold, for messages.
        on_progress: called every 20,000 lines with the number of bytes of the file read so far.

    Raises:
        FormatError: For a NUL byte, and if all lines are blank.
    """
    is_empty = True
    with open_compressed(path, expected) as stream:
        for number, line in enumerate(stream.plain, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if b"\0" in line:
                problem = "a NUL byte (binary data, or UTF-16)"
                raise FormatError(path, number, problem, f"UTF-8 text, {expected}")
            if line.strip():
                is_empty = False
                yield number, line.rstrip(b"\r\n")
            if on_progress is not None and number % _PROGRESS_EVERY_LINES == 0:
                on_progress(stream.raw.tell())
    if is_empty:
        raise FormatError(path, 0, "an empty file", expected)


def read_objects(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file, each with its line number. Raises `FormatError` while reading."""
    for number, line in read_lines(path, expected):
        yield number, parse_object(path, number, line, expected)


def starts_with_json(path: Path, expected: str) -> bool:
    """Return whether a file's first line is JSON. Raises what `read_lines` raises."""
    return is_json(next(read_lines(path, expected))[1])


def is_json(line: bytes) -> bool:
    """Return whether a line begins a JSON object."""
    return line.lstrip().startswith(b"{")


def json_line(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as a line of a JSONL file."""
    return json.dumps(value).encode() + b"\n"


def decode(field: bytes) -> str:
    return field.decode("utf-8", "surrogateescape")


def id_key(identifier: str) -> bytes:
    """Return an id as a key of a database, whose text cannot hold undecodable bytes."""
    return identifier.encode("utf-8", "surrogatepass")


def is_encodable(identifier: str) -> bool:
    """Return False for half a surrogate pair, which JSON can spell and no file can hold."""
    return _UNENCODABLE.search(identifier) is None


def replace_surrogates(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def abbreviate(value: object) -> str:
    """Return `repr(value)` for an error message, truncated to 60 characters."""
    text = repr(decode(value) if isinstance(value, bytes) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_object(path: Path, number: int, line: bytes, expected: str) -> dict[str, Any]:
    """Return the JSON object in line `number` of the file. Raises `FormatError`."""
    value = parse_json(path, number, decode(line), expected)
    if not isinstance(value, dict):
        raise FormatError(path, number, f"JSON that is not an object: {abbreviate(value)}", expected)
    return value


class JsonPairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: a `dict` would silently keep the last of two equal keys."""


_DECODER = json.JSONDecoder(strict=False)  # `json.loads` makes one for every line, which takes as long as a short line
_PAIRS_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=JsonPairs)


def parse_json(path: Path, number: int, text: str, expected: str, *, as_pairs: bool = False) -> Any:
    """Return the value of the JSON `text`, which is line `number` of the file. Raises `FormatError`.

    With `as_pairs`, objects are `JsonPairs`.
    """
    try:
        return (_PAIRS_DECODER if as_pairs else _DECODER).decode(text)
    except json.JSONDecodeError as error:
        problem = f"invalid JSON ({error.msg} at column {error.colno})"
        raise FormatError(path, number or error.lineno, problem, expected) from error
    except RecursionError as error:
        raise FormatError(path, number, "JSON nested too deeply", expected) from error
    except ValueError as error:  # Python refuses to read numbers of thousands of digits
        raise FormatError(path, number, "JSON with an overlong number", expected) from error
