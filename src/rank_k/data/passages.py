"""Passages on disk.

    JSONL: `_id`, `id`, `doc_id` or `docid`, with `text`, `contents` or `content`, maybe `title`
    TSV:   `id<TAB>text`

See `rank_k.data.lines` for compression and encodings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from rank_k.data.lines import read_lines
from rank_k.data.records import leading_id, parse_id, parse_record, read_records
from rank_k.types import Passage

PASSAGE_FORMAT = '{"_id": ..., "title": ..., "text": ...} on each line (JSONL) or id<TAB>text'
_PASSAGE_KEYS = ("_id", "id", "doc_id", "docid"), ("text", "contents", "content")


def read_passages(path: str | Path, doc_ids: Collection[str] | None = None) -> Iterator[Passage]:
    """Stream the passages of a corpus, or only those whose id is in `doc_ids`, in the file's order.

    The text is "title text"; the title is left out when it is empty or the text already begins with it.
    Lines of other ids are parsed no further than their id, so faults after it go unnoticed there.
    Raises `FormatError` while reading.
    """
    path = Path(path)
    lines = read_lines(path, PASSAGE_FORMAT)
    for _, doc_id, title, text in read_records(path, lines, *_PASSAGE_KEYS, PASSAGE_FORMAT, doc_ids):
        yield _passage_with_title(doc_id, title, text)


def parse_passage(path: Path, number: int, line: bytes, jsonl: bool) -> Passage:
    """The passage of one line, as `read_passages` returns it. `jsonl`: the result of `is_jsonl` for the file's first
    line."""
    return _passage_with_title(*parse_record(path, number, line, jsonl, *_PASSAGE_KEYS, PASSAGE_FORMAT))


def parse_passage_id(path: Path, number: int, line: bytes, jsonl: bool) -> str:
    """The id of the passage of one line. The rest of the line is not parsed where that is possible."""
    id_at_start = leading_id(line) if jsonl else None
    return id_at_start or parse_id(path, number, line, jsonl, _PASSAGE_KEYS[0], PASSAGE_FORMAT)[0]


def _passage_with_title(doc_id: str, title: str, text: str) -> Passage:
    if title and not text.startswith(title):
        text = f"{title} {text}" if text else title
    return Passage(doc_id, text)
