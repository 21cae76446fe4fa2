"""Read queries from files.

    JSONL:       `_id`, `id`, `query_id` or `qid`, with `text` or `query`, or with other fields that are requested
    TSV:         `id<TAB>text`
    TREC topics: classic or XML (`rank_k.data.topics`)

`rank_k.data.lines` describes compression and encodings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from rank_k.data.lines import abbreviate, read_lines, read_objects, replace_surrogates, starts_with_json
from rank_k.data.records import RecordFormat, join_fields, parse_records, record_id
from rank_k.errors import FormatError, InputError
from rank_k.types import Query

QUERIES = RecordFormat(
    id_keys=("_id", "id", "query_id", "qid"),
    text_keys=("text", "query"),
    expected='{"_id": ..., "text": ...} on each line (JSONL), id<TAB>text, or TREC topics',
)


def read_queries(path: str | Path, fields: str | None = None) -> dict[str, Query]:
    """Return queries by id, in the file's order.

    Args:
        path: The file.
        fields: Comma-separated names of the fields that make up the text of a query, such as "title,description".
            Their texts are joined by newlines; empty ones are left out. `desc` and `narr` are accepted for
            `description` and `narrative`. By default, the text is the field `text` or `query`, and in TREC topics the
            field `title`, `query` or `text`.

    Raises:
        FormatError: If a line is malformed, if a query lacks one of the fields or has no text in any of them, or if
            two queries with the same id have different texts.
        InputError: If a field name is empty or repeated.
    """
    path = Path(path)
    names = [] if fields is None else [name.strip() for name in fields.split(",")]
    if "" in names or len(set(names)) < len(names):
        problem = f"query fields {fields!r}: a name is empty or repeated"
        raise InputError(problem, "separate field names with commas, as in title,description")
    queries: dict[str, Query] = {}
    for number, query_id, text in _read_query_rows(path, names):
        if queries.setdefault(query_id, Query(query_id, text)).text != text:
            problem = f"query {query_id} appears again with a different text"
            raise FormatError(path, number, problem, "each query id once")
    return queries


def read_translations(path: str | Path, field: str = "ht") -> dict[str, str]:
    """Return translations of queries by query id, without empty ones.

    Only JSONL files have translations; for other files, the result is empty.

    Args:
        path: The file.
        field: The field that holds the translation. `ht` is the human translation in cross-language collections.

    Raises:
        FormatError: If a line is malformed, or a translation is not a string.
    """
    path = Path(path)
    translations: dict[str, str] = {}
    if not starts_with_json(path, QUERIES.expected):
        return translations
    for number, row in read_objects(path, QUERIES.expected):
        value = row.get(field) or ""
        if not isinstance(value, str):
            raise FormatError(path, number, f"the field {field} is {abbreviate(value)}", "a string")
        if value.strip():
            translations[record_id(path, number, row, QUERIES.id_keys)] = replace_surrogates(value.strip())
    return translations


def _read_query_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, id and text of every query."""
    lines = read_lines(path, QUERIES.expected)
    first = next(lines)
    lines = chain([first], lines)  # the file may be a pipe, which can be read only once
    if not first[1].lstrip().startswith(b"<"):
        for number, query_id, _, text in parse_records(path, lines, QUERIES, fields):
            yield number, query_id, text
        return
    from rank_k.data.topics import read_topics

    by_number = dict(lines)
    content = b"\n".join(by_number.get(number, b"") for number in range(1, max(by_number) + 1))
    for number, query_id, record in read_topics(path, content):
        default_fields = next(([key] for key in ("title", "query", "text") if key in record), ["title"])
        yield number, query_id, join_fields(path, number, record, fields or default_fields)
