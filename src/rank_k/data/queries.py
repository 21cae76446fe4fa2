"""Queries on disk.

    JSONL:       `_id`, `id`, `query_id` or `qid`, with `text` or `query`, or any other fields
    TSV:         `id<TAB>text`
    TREC topics: classic or XML, see `rank_k.data.topics`

See `rank_k.data.lines` for compression and encodings.
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
        path: the file.
        fields: names of the fields that make up a query's text ("title,description"), joined one below the other
            without empty ones. Without it, the text is `text` or `query`; of TREC topics `title`, `query` or `text`.
            `desc` and `narr` also stand for `description` and `narrative`.

    Raises:
        FormatError: For a malformed line, a query without one of the fields or with no text in any, and for one id
            with two texts.
        InputError: For field names that are empty or repeated.
    """
    path = Path(path)
    names = [] if fields is None else [name.strip() for name in fields.split(",")]
    if "" in names or len(set(names)) < len(names):
        problem = f"query fields {fields!r}: a name is empty or repeated"
        raise InputError(problem, "write names of fields with commas between, such as title,description")
    queries: dict[str, Query] = {}
    for number, query_id, text in _read_query_rows(path, names):
        if queries.setdefault(query_id, Query(query_id, text)).text != text:
            raise FormatError(path, number, f"query {query_id} again with another text", "each query id once")
    return queries


def read_translations(path: str | Path, field: str = "ht") -> dict[str, str]:
    """Return the value of `field` of each query, by id, where it is not empty.

    In cross-language sets in BEIR's layout `ht` is a translation by hand. Files other than JSONL have no such fields.
    Raises `FormatError`.
    """
    path = Path(path)
    translations: dict[str, str] = {}
    if not starts_with_json(path, QUERIES.expected):
        return translations
    for number, row in read_objects(path, QUERIES.expected):
        value = row.get(field) or ""
        if not isinstance(value, str):
            raise FormatError(path, number, f"{abbreviate(value)} as {field}", "a string")
        if value.strip():
            translations[record_id(path, number, row, QUERIES.id_keys)] = replace_surrogates(value.strip())
    return translations


def _read_query_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield line number, id and text of every query."""
    lines = read_lines(path, QUERIES.expected)
    first = next(lines)
    lines = chain([first], lines)  # read once: it may be a pipe
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
