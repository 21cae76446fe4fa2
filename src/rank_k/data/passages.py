"""Passages on disk.

    JSONL: `_id`, `id`, `doc_id` or `docid`, with `text`, `contents` or `content`, maybe `title`
    TSV:   `id<TAB>text`

See `rank_k.data.lines` for compression and encodings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Stream the passages of a corpus, in the file's order. See `read_numbered_passages`."""
    return (passage for _, passage in read_numbered_passages(Path(path)))


def read_numbered_passages(
    path: Path, on_progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, Passage]]:
    """Stream the passages of a corpus with their line numbers, in the file's order.

    The text is "title text"; the title is left out when it is empty or the text already begins with it.

    Args:
        path: the file, TSV or JSONL, compressed or not.
        on_progress: called every now and then with the number of bytes of the file read so far.

    Raises:
        FormatError: While reading, for a line that is not a passage.
    """
    for number, doc_id, title, text in parse_records(path, read_lines(path, PASSAGES.expected, on_progress), PASSAGES):
        if title and not text.startswith(title):
            text = f"{title} {text}" if text else title
        yield number, Passage(doc_id, text)


def missing_passage_error(doc_id: str, query_id: str | None, source: str) -> InputError:
    """Return the error for a document that `source` lacks."""
    of_query = "" if query_id is None else f" of query {query_id}"
    return InputError(
        f"document {doc_id}{of_query} is not in {source}", "give the documents that the run was made from"
    )
