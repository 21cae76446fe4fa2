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

from rank_k.data.compression import open_compressed
from rank_k.data.lines import abbreviate, numbered_lines, read_lines, read_objects, replace_surrogates
from rank_k.data.records import is_jsonl, join_fields, read_records, record_id
from rank_k.errors import FormatError, InputError
from rank_k.types import Query

_QUERY_FORMAT = '{"_id": ..., "text": ...} on each line (JSONL), id<TAB>text, or TREC topics'
_QUERY_ID_KEYS = ("_id", "id", "query_id", "qid")


def read_queries(path: str | Path, fields: str | None = None) -> dict[str, Query]:
    """Queries by id, in the file's order.

    `fields` ("title,description") names what a query's text is made of, one below the other; empty ones are left
    out. Without, it is `text` or `query`; of TREC topics `title`, `query` or `text`. `desc` and `narr`
    also stand for `description` and `narrative`.

    Raises `FormatError`, also for a query without one of the fields, with nothing in any, and for one id with two
    texts; `InputError` for names that are empty or repeated.
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
    """What `field` of each query holds, by id, where it holds something. In cross-language sets in BEIR's layout `ht`
    is a translation by hand. Files other than JSONL have no such fields. Raises `FormatError`."""
    path = Path(path)
    with open_compressed(path, _QUERY_FORMAT) as stream:
        if not is_jsonl(next(numbered_lines(path, stream.plain, _QUERY_FORMAT))[2]):
            return {}
    translations = {}
    for number, row in read_objects(path, _QUERY_FORMAT):
        value = row.get(field) or ""
        if not isinstance(value, str):
            raise FormatError(path, number, f"{abbreviate(value)} as {field}", "a string")
        if value.strip():
            query_id = record_id(path, number, row, _QUERY_ID_KEYS)
            translations[query_id] = replace_surrogates(value.strip())
    return translations


def _read_query_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Line number, id and text of every query."""
    lines = read_lines(path, _QUERY_FORMAT)
    first = next(lines)
    lines = chain([first], lines)  # read once: it may be a pipe
    if not first[1].lstrip().startswith(b"<"):
        records = read_records(path, lines, _QUERY_ID_KEYS, ("text", "query"), _QUERY_FORMAT, None, fields)
        for number, query_id, _, text in records:
            yield number, query_id, text
        return
    from rank_k.data.topics import read_topics

    by_number = dict(lines)
    content = b"\n".join(by_number.get(number, b"") for number in range(1, max(by_number) + 1))
    for number, query_id, record in read_topics(path, content):
        default_fields = next(([key] for key in ("title", "query", "text") if key in record), ["title"])
        yield number, query_id, join_fields(path, number, record, fields or default_fields)
