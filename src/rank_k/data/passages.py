"""Read passages from files.

    JSONL: `_id`, `id`, `doc_id` or `docid`, with `text`, `contents` or `content`, and optionally `title`
    TSV:   `id<TAB>text`

`rank_k.data.lines` describes compression and encodings.
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
    """Yield the passages of a corpus file in the file's order, as `read_numbered_passages` does."""
    return (passage for _, passage in read_numbered_passages(Path(path)))


def read_numbered_passages(
    path: Path, on_progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, Passage]]:
    """Yield the passages of a corpus file with their line numbers, in the file's order.

    The text of a passage is its title, a space and its text. The title is left out if the text already begins with it.

    Args:
        path: The file, TSV or JSONL, which may be compressed.
        on_progress: Called every 20,000 lines with the number of bytes of the file read so far.

    Raises:
        FormatError: If a line is not a passage.
    """
    for number, doc_id, title, text in parse_records(path, read_lines(path, PASSAGES.expected, on_progress), PASSAGES):
        if title and not text.startswith(title):
            text = f"{title} {text}" if text else title
        yield number, Passage(doc_id, text)


def missing_passage_error(doc_id: str, query_id: str | None, source: str) -> InputError:
    """Return the error for a document that is not in `source`.

    Args:
        doc_id: The document.
        query_id: The query whose candidate it is (None: unknown).
        source: The name of the corpus, for the message.
    """
    of_query = "" if query_id is None else f" of query {query_id}"
    return InputError(
        f"document {doc_id}{of_query} is not in {source}", "give the documents that the run was retrieved from"
    )
