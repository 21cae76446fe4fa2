"""Records of JSONL and TSV files: one line with an id, a text and sometimes a title, for queries and passages.

The format, JSONL or TSV, is detected from the first line. TSV is `id<TAB>text`; further tabs belong to the text. Where
a JSON object has several accepted keys, the first in the list of keys counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rank_k.data.lines import abbreviate, decode, is_encodable, is_json, parse_object, replace_surrogates
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


class RecordFormat(NamedTuple):
    """The accepted keys of a JSON object's id and text, and what a file should hold, for messages."""

    id_keys: Sequence[str]
    text_keys: Sequence[str]
    expected: str


def parse_records(
    path: Path, lines: Iterable[tuple[int, bytes]], record_format: RecordFormat, fields: Sequence[str] = ()
) -> Iterator[tuple[int, str, str, str]]:
    """Yield line number, id, title and text of every record. Raises `FormatError`.

    Args:
        path: the file, for messages.
        lines: its lines with their numbers.
        record_format: keys of id and text.
        fields: if any are given, the text is joined from these instead.
    """
    jsonl: bool | None = None
    for number, line in lines:
        if jsonl is None:
            jsonl = is_json(line)
        if not jsonl:
            doc_id, text = _parse_tsv(path, number, line, record_format.expected)
            if fields:
                raise FormatError(path, number, "TSV, which has no fields to choose from", "JSONL or TREC topics")
            yield number, doc_id, "", text
            continue
        record = parse_object(path, number, line, record_format.expected)
        doc_id = record_id(path, number, record, record_format.id_keys)
        title = record.get("title") or ""
        text = (
            join_fields(path, number, record, fields)
            if fields
            else _first_value(path, number, record, record_format.text_keys, "text")
        )
        for part in (text, title):
            if not isinstance(part, str):
                raise FormatError(path, number, f"{abbreviate(part)} as text or title", "strings")
        yield number, doc_id, replace_surrogates(title).strip(), replace_surrogates(text)


def _parse_tsv(path: Path, number: int, line: bytes, expected: str) -> tuple[str, str]:
    identifier, tab, text = line.partition(b"\t")
    if not tab or not identifier.strip():
        problem = "no id before the tab" if tab else "no tab"
        raise FormatError(path, number, f"{problem} in {abbreviate(line)}", expected)
    return decode(identifier), text.decode("utf-8", "replace")


def record_id(path: Path, number: int, record: Mapping[str, Any], id_keys: Sequence[str]) -> str:
    """Return the id of a JSON object. Whole numbers count as strings. Raises `FormatError`."""
    identifier = _first_value(path, number, record, id_keys, "id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier or not is_encodable(identifier):
        raise FormatError(path, number, f"id {abbreviate(identifier)}", "an id that is a non-empty string")
    return identifier


def join_fields(path: Path, number: int, record: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return the texts of `fields`, one below the other, without empty ones. Raises `FormatError` if all are empty."""
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


def _first_value(path: Path, number: int, record: Mapping[str, Any], keys: Sequence[str], description: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    problem = f"no {description} (keys: {abbreviate(', '.join(record))})"
    raise FormatError(path, number, problem, f"one of the keys {', '.join(keys)}")
