"""Passages on disk.

    JSONL: `_id`, `id`, `doc_id` or `docid`, with `text`, `contents` or `content`, maybe `title`
    TSV:   `id<TAB>text`

See `rank_k.data.lines` for compression and encodings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rank_k.data.lines import read_lines
from rank_k.data.records import RecordFormat, parse_records
from rank_k.errors import InputError
from rank_k.types import Passage

PASSAGES = RecordFormat(
    id_keys=("_id", "id", "doc_id", "docid"),
    text_keys=("text", "contents", "content"),
    expected='{"_id": ..., "title": ..., "text": ...} on each line (JSONL) or id<TAB>text',
)


def read_passages(path: str | Path) -> Iterator[Passage]:
    """Stream the passages of a corpus, in the file's order.

    The text is "title text"; the title is left out when it is empty or the text already begins with it.
    Raises `FormatError` while reading.
    """
    path = Path(path)
    for _, passage in parse_passages(path, read_lines(path, PASSAGES.expected)):
        yield passage


def parse_passages(path: Path, lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Passage]]:
    """Yield the passages in numbered lines of the file `path`, each with its line number. Raises `FormatError`."""
    for number, doc_id, title, text in parse_records(path, lines, PASSAGES):
        if title and not text.startswith(title):
            text = f"{title} {text}" if text else title
        yield number, Passage(doc_id, text)


def missing_passage_error(doc_id: str, query_id: str | None, source: str) -> InputError:
    """Return the error for a document that `source` lacks."""
    of_query = "" if query_id is None else f" of query {query_id}"
    return InputError(
        f"document {doc_id}{of_query} is not in {source}", "give the documents that the run was made from"
    )
