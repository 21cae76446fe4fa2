"""A candidate set: a query and the passages that a teacher is to compare, as one line of JSONL."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rank_k.data.lines import read_objects
from rank_k.data.part_file import PartFile
from rank_k.errors import FormatError

EXPECTED_FORMAT = (
    '{"set_id": ..., "query_id": ..., "query": ..., "doc_ids": [...], "passages": [...], ...} as distill sample writes'
)


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """What is shown to a teacher, in the order shown.

    `grades`: of the passages that are judged, or None where nothing is known of the query. `source`: the name of
    the collection; `license`: of its texts, None where it is not known. The id says what is in the set: two sets
    of one id have the same query and documents in the same order.
    """

    set_id: str
    query_id: str
    query: str
    doc_ids: tuple[str, ...]
    passages: tuple[str, ...]
    grades: Mapping[str, int] | None
    source: str
    license: str | None

    @property
    def metadata(self) -> dict[str, Any]:
        """All of it but the passages' texts."""
        return {name: value for name, value in asdict(self).items() if name != "passages"}


def make_set_id(source: str, query_id: str, number: int, query: str, doc_ids: Iterable[str]) -> str:
    """The name of the `number`-th set of a query: readable, and another one where the set is another."""
    content = json.dumps([query, list(doc_ids)]).encode()
    return f"{source}/{query_id}/{number}-{sha256(content).hexdigest()[:8]}"


def read_license(collection: Path) -> str | None:
    """What the PROVENANCE.md of a collection's folder says behind "License of the data:", to the end of the line, or
    else behind the first "License", to the end of the sentence."""
    provenance = collection / "PROVENANCE.md"
    if not provenance.is_file():
        return None
    text = provenance.read_text(encoding="utf-8", errors="replace")
    match = re.search(r"Licen[cs]e of the data:\s*(.+)", text) or re.search(
        r"Licen[cs]e:?\s+(.+?)(?:\.\s|\.?$)", text, re.M
    )
    return match[1].strip().strip("*.").strip() or None if match else None


def encode_json_line(row: Mapping[str, Any]) -> bytes:
    """One line of a JSONL file. Ids leave as the bytes they came as."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"


def read_candidate_sets(path: str | Path) -> Iterator[CandidateSet]:
    """Stream the sets of a file. Raises `FormatError` for the first line that is none."""
    path = Path(path)
    for number, row in read_objects(path, EXPECTED_FORMAT):
        yield _parse_set(path, number, row)


def _parse_set(path: Path, number: int, row: Mapping[str, Any]) -> CandidateSet:
    def format_error(problem: str) -> FormatError:
        return FormatError(path, number, problem, EXPECTED_FORMAT)

    for name in ("set_id", "query_id", "query", "source"):
        if not isinstance(row.get(name), str):
            raise format_error(f"no {name}" if name not in row else f"{name} that is no text")
    doc_ids, passages = (_string_tuple(row.get(name)) for name in ("doc_ids", "passages"))
    if doc_ids is None or passages is None:
        raise format_error("doc_ids or passages that are no lists of texts")
    if len(doc_ids) != len(passages):
        raise format_error(f"{len(doc_ids)} ids for {len(passages)} passages")
    if len(doc_ids) < 2 or len(set(doc_ids)) < len(doc_ids):
        raise format_error("fewer than two passages" if len(doc_ids) < 2 else "a passage that stands there twice")
    grades, license = row.get("grades"), row.get("license")
    if grades is not None and not (
        isinstance(grades, dict)
        and all(isinstance(grade, int) and not isinstance(grade, bool) for grade in grades.values())
    ):
        raise format_error("grades that are not whole numbers by document id")
    if not isinstance(license, str | None):
        raise format_error("a license that is no text")
    return CandidateSet(
        row["set_id"],
        row["query_id"],
        row["query"],
        doc_ids,
        passages,
        grades,
        row["source"],
        license,
    )


def _string_tuple(value: Any) -> tuple[str, ...] | None:
    is_texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return tuple(value) if is_texts else None


class JsonLinesWriter(PartFile):
    """Writes a JSONL file, complete or not at all: `with JsonLinesWriter(path) as file: file.append(row)`."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        self.write(encode_json_line(row))


class CandidateSetAppender:
    """A file of sets that grows: `with CandidateSetAppender(path) as file`.

    `existing_rows` yields what an earlier run wrote, without an incomplete last line; `write` adds a set. Raises
    `FormatError` for a file of anything else and leaves it unchanged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> CandidateSetAppender:
        self._file = self.path.open("ab")
        try:
            _drop_incomplete_line(self.path)
        except FormatError:
            self._file.close()
            raise
        self.has_rows = self.path.stat().st_size > 0
        return self

    def existing_rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """What is there already, with its line numbers."""
        if self.has_rows:
            yield from read_objects(self.path, EXPECTED_FORMAT)

    def write(self, row: CandidateSet) -> None:
        self._file.write(encode_json_line(asdict(row)))

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


_PREFIX = b'{"set_id": "'


def _drop_incomplete_line(path: Path) -> None:
    """Cut off what stands after the last end of line. Raises `FormatError` if the file is not one of sets."""
    with path.open("rb+") as file:
        if not _PREFIX.startswith(first_bytes := file.read(len(_PREFIX))):
            raise FormatError(path, 1, f"{first_bytes!r}...", f"a file of sets to go on with: {EXPECTED_FORMAT}")
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - 65_536, 0)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
