"""Read the lines of text files and the JSON in them. All readers of input files use this module.

Files may be compressed with gzip or Zstandard, which is detected from the first bytes of the file, not from its name. A
byte order mark, CRLF line ends and blank lines are accepted. Ids are decoded as UTF-8 with surrogateescape, so that
they have the same bytes in the output as in the input. Undecodable bytes in the text of queries and passages become
U+FFFD.
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
_UNENCODABLE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # the other surrogates stand for undecodable bytes


def read_lines(
    path: Path, expected: str, on_progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield the number and content of each line that is not blank. Numbers count from 1, blank lines included.

    Args:
        path: The file, which may be compressed.
        expected: The expected content of the file, for error messages.
        on_progress: Called every 20,000 lines with the number of bytes of the file read so far.

    Raises:
        FormatError: If the file has a NUL byte, if all lines are blank, or if compressed data are damaged.
        InputError: If the file cannot be read.
    """
    is_empty = True
    with open_compressed(path, expected) as stream:
        for number, line in enumerate(stream.plain, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if b"\0" in line:
                problem = "a NUL byte (the file is binary or UTF-16)"
                raise FormatError(path, number, problem, f"UTF-8 text, {expected}")
            if line.strip():
                is_empty = False
                yield number, line.rstrip(b"\r\n")
            if on_progress is not None and number % _PROGRESS_EVERY_LINES == 0:
                on_progress(stream.raw.tell())
    if is_empty:
        raise FormatError(path, 0, "an empty file", expected)


def read_objects(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and object of each line of a JSONL file.

    Raises:
        FormatError: If a line is not a JSON object.
    """
    for number, line in read_lines(path, expected):
        yield number, parse_object(path, number, line, expected)


def starts_with_json(path: Path, expected: str) -> bool:
    """Return whether the first line of a file begins a JSON object. Raises the errors of `read_lines`."""
    return is_json(next(read_lines(path, expected))[1])


def is_json(line: bytes) -> bool:
    """Return whether a line begins with a JSON object."""
    return line.lstrip().startswith(b"{")


def json_line(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as a line of a JSONL file."""
    return json.dumps(value).encode() + b"\n"


def decode(field: bytes) -> str:
    return field.decode("utf-8", "surrogateescape")


def id_key(identifier: str) -> bytes:
    """Return an id as a database key. It is bytes because text in SQLite cannot hold undecodable bytes."""
    return identifier.encode("utf-8", "surrogatepass")


def is_encodable(identifier: str) -> bool:
    """Return whether an id can be written to a file. JSON can contain half of a surrogate pair, which cannot."""
    return _UNENCODABLE.search(identifier) is None


def replace_surrogates(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def abbreviate(value: object) -> str:
    """Return `repr(value)`, truncated to 60 characters, for an error message. Bytes are decoded first."""
    text = repr(decode(value) if isinstance(value, bytes) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_object(path: Path, number: int, line: bytes, expected: str) -> dict[str, Any]:
    """Return the JSON object in a line.

    Args:
        path: The file, for error messages.
        number: The number of the line.
        line: The line.
        expected: The expected format, for error messages.

    Raises:
        FormatError: If the line is not a JSON object.
    """
    value = parse_json(path, number, decode(line), expected)
    if not isinstance(value, dict):
        raise FormatError(path, number, f"JSON that is not an object: {abbreviate(value)}", expected)
    return value


class JsonPairs(list[tuple[str, Any]]):
    """A JSON object as a list of pairs. A `dict` would silently keep only the last of two equal keys."""


_DECODER = json.JSONDecoder(strict=False)  # `json.loads` would create one per line, which is slow
_PAIRS_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=JsonPairs)


def parse_json(path: Path, number: int, text: str, expected: str, *, as_pairs: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        path: The file, for error messages.
        number: The number of the line (0: the text is the whole file).
        text: The JSON text.
        expected: The expected format, for error messages.
        as_pairs: Return objects as `JsonPairs` and not as `dict`.

    Raises:
        FormatError: If the text is not valid JSON.
    """
    try:
        return (_PAIRS_DECODER if as_pairs else _DECODER).decode(text)
    except json.JSONDecodeError as error:
        problem = f"invalid JSON ({error.msg} at column {error.colno})"
        raise FormatError(path, number or error.lineno, problem, expected) from error
    except RecursionError as error:
        raise FormatError(path, number, "JSON nested too deeply", expected) from error
    except ValueError as error:  # Python rejects numbers of thousands of digits
        raise FormatError(path, number, "JSON with a number of too many digits", expected) from error
