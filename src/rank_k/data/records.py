"""Records of JSONL and TSV files, for queries and passages: each line has an id, a text and sometimes a title.

The first line shows whether a file is JSONL or TSV. TSV lines are `id<TAB>text`; further tabs belong to the text. If a
JSON object has several of the accepted keys, the first one in the list of accepted keys is used.
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
"""Alternative names of query fields."""


class RecordFormat(NamedTuple):
    """A format of records.

    Attributes:
        id_keys: Accepted keys of the id in a JSON object.
        text_keys: Accepted keys of the text in a JSON object.
        expected: The format of a line, for error messages.
    """

    id_keys: Sequence[str]
    text_keys: Sequence[str]
    expected: str


def parse_records(
    path: Path, lines: Iterable[tuple[int, bytes]], record_format: RecordFormat, fields: Sequence[str] = ()
) -> Iterator[tuple[int, str, str, str]]:
    """Yield the line number, id, title and text of every record.

    Args:
        path: The file, for error messages.
        lines: The lines of the file with their numbers.
        record_format: The accepted keys of id and text.
        fields: Names of JSON fields that the text consists of (default: one of `record_format.text_keys`).

    Raises:
        FormatError: If a line is not a record.
    """
    jsonl: bool | None = None
    for number, line in lines:
        if jsonl is None:
            jsonl = is_json(line)
        if not jsonl:
            doc_id, text = _parse_tsv(path, number, line, record_format.expected)
            if fields:
                raise FormatError(path, number, "TSV, which has no named fields", "JSONL or TREC topics")
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
                raise FormatError(path, number, f"the text or title is {abbreviate(part)}", "a string")
        yield number, doc_id, replace_surrogates(title).strip(), replace_surrogates(text)


def _parse_tsv(path: Path, number: int, line: bytes, expected: str) -> tuple[str, str]:
    identifier, tab, text = line.partition(b"\t")
    if not tab or not identifier.strip():
        problem = "no id before the tab" if tab else "no tab"
        raise FormatError(path, number, f"{problem} in {abbreviate(line)}", expected)
    return decode(identifier), text.decode("utf-8", "replace")


def record_id(path: Path, number: int, record: Mapping[str, Any], id_keys: Sequence[str]) -> str:
    """Return the id of a JSON object as a string. In the file, it may be a whole number.

    Raises:
        FormatError: If there is no id, or if it is empty or cannot be encoded.
    """
    identifier = _first_value(path, number, record, id_keys, "id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier or not is_encodable(identifier):
        raise FormatError(path, number, f"id {abbreviate(identifier)}", "a non-empty string as id")
    return identifier


def join_fields(path: Path, number: int, record: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return the texts of `fields`, joined by newlines. Empty fields are left out.

    Raises:
        FormatError: If a field is missing or is not a string, or if all are empty.
    """
    parts = []
    for name in fields:
        key = next((key for key in (name, *_FIELD_SYNONYMS.get(name, ())) if key in record), None)
        if key is None:
            raise FormatError(path, number, f"no field {name}", f"one of the fields {', '.join(record) or '(none)'}")
        if not isinstance(record[key], str | None):
            raise FormatError(path, number, f"the field {key} is {abbreviate(record[key])}", "a string")
        parts.append((record[key] or "").strip())
    if not any(parts):
        raise FormatError(path, number, f"no text in {', '.join(fields)}", "a query that is not empty")
    return "\n".join(filter(None, parts))


def _first_value(path: Path, number: int, record: Mapping[str, Any], keys: Sequence[str], description: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    problem = f"no {description} (keys: {abbreviate(', '.join(record))})"
    raise FormatError(path, number, problem, f"one of the keys {', '.join(keys)}")
