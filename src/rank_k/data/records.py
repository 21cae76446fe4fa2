"""Records of JSONL and TSV files: one line with an id, a text and sometimes a title, for queries and passages.

The format, JSONL or TSV, is detected from the first line. TSV is `id<TAB>text`; further tabs belong to the text. Where
a JSON object has several accepted keys, the first in the list of keys counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rank_k.data.lines import abbreviate, decode, is_encodable, parse_json, replace_surrogates
from rank_k.errors import FormatError

_FIELD_SYNONYMS = {
    "text": ("query",),
    "query": ("text",),
    "description": ("desc",),
    "desc": ("description",),
    "narrative": ("narr",),
    "narr": ("narrative",),
}
"""Other names of query fields."""
_LEADING_ID = re.compile(rb'\s*\{\s*("_?id")\s*:\s*"([^"\\]+)"')


def is_jsonl(first_line: bytes) -> bool:
    """Whether a file that begins so is JSONL, not TSV."""
    return first_line.lstrip().startswith(b"{")


def read_records(
    path: Path,
    lines: Iterator[tuple[int, bytes]],
    id_keys: Sequence[str],
    text_keys: Sequence[str],
    expected: str,
    ids: Collection[str] | None = None,
    fields: Sequence[str] = (),
) -> Iterator[tuple[int, str, str, str]]:
    """Line number, id, title and text of every record, or of those whose id is in `ids`.

    With `fields`, the text is joined from those fields instead of read from one of `text_keys`.
    """
    selected_ids = None if ids is None else frozenset(ids)
    jsonl: bool | None = None
    for number, line in lines:
        if jsonl is None:
            jsonl = is_jsonl(line)
        if selected_ids is not None and jsonl and (id_at_start := leading_id(line)) and id_at_start not in selected_ids:
            continue
        if selected_ids is not None and parse_id(path, number, line, jsonl, id_keys, expected)[0] not in selected_ids:
            continue
        yield number, *parse_record(path, number, line, jsonl, id_keys, text_keys, expected, fields)


def parse_record(
    path: Path,
    number: int,
    line: bytes,
    jsonl: bool,
    id_keys: Sequence[str],
    text_keys: Sequence[str],
    expected: str,
    fields: Sequence[str] = (),
) -> tuple[str, str, str]:
    """Id, title and text of one line."""
    identifier, record = parse_id(path, number, line, jsonl, id_keys, expected)
    if isinstance(record, bytes):
        if fields:
            raise FormatError(path, number, "TSV, which has no fields to choose from", "JSONL or TREC topics")
        return identifier, "", record.decode("utf-8", "replace")
    title = record.get("title") or ""
    text = (
        join_fields(path, number, record, fields) if fields else _first_value(path, number, record, text_keys, "text")
    )
    for part in (text, title):
        if not isinstance(part, str):
            raise FormatError(path, number, f"{abbreviate(part)} as text or title", "strings")
    return identifier, replace_surrogates(title).strip(), replace_surrogates(text)


def parse_id(
    path: Path, number: int, line: bytes, jsonl: bool, id_keys: Sequence[str], expected: str
) -> tuple[str, dict[str, Any] | bytes]:
    """The id of one line and what goes with it: a JSON object, or all that follows the tab."""
    if not jsonl:
        identifier, tab, rest = line.partition(b"\t")
        if not tab or not identifier.strip():
            problem = "no id before the tab" if tab else "no tab"
            raise FormatError(path, number, f"{problem} in {abbreviate(line)}", expected)
        return decode(identifier), rest
    record = parse_json(path, number, decode(line), expected)
    if not isinstance(record, dict):
        raise FormatError(path, number, f"JSON that is no object: {abbreviate(record)}", expected)
    return record_id(path, number, record, id_keys), record


def record_id(path: Path, number: int, record: dict[str, Any], id_keys: Sequence[str]) -> str:
    """The id of a JSON object. Whole numbers count as strings."""
    identifier = _first_value(path, number, record, id_keys, "id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier or not is_encodable(identifier):
        raise FormatError(path, number, f"id {abbreviate(identifier)}", "an id that is a non-empty string")
    return identifier


def leading_id(line: bytes) -> str | None:
    """The id of a JSON line that begins with it; None where the line must be parsed, as when another `_id`, which
    would count more, or the same key, which would count last, may follow."""
    match = _LEADING_ID.match(line)
    if match is None or line.find(b'"_id"', match.end()) >= 0 or line.find(match[1], match.end()) >= 0:
        return None
    return decode(match[2])


def join_fields(path: Path, number: int, record: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The texts of `fields`, one below the other; empty ones are left out. Raises `FormatError` if all are empty."""
    parts = []
    for name in fields:
        key = next((key for key in (name, *_FIELD_SYNONYMS.get(name, ())) if key in record), None)
        if key is None:
            raise FormatError(path, number, f"no field {name}", f"one of the fields {', '.join(record) or '(none)'}")
        if not isinstance(record[key], str | None):
            raise FormatError(path, number, f"{abbreviate(record[key])} as {key}", "strings")
        parts.append((record[key] or "").strip())
    if not any(parts):
        raise FormatError(path, number, f"nothing in {', '.join(fields)}", "a query with some text")
    return "\n".join(filter(None, parts))


def _first_value(path: Path, number: int, record: dict[str, Any], keys: Sequence[str], description: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    problem = f"no {description} (keys: {abbreviate(', '.join(record))})"
    raise FormatError(path, number, problem, f"one of the keys {', '.join(keys)}")
