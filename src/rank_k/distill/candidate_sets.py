"""Candidate sets: a query and the passages that a teacher compares, one set per line of JSONL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from rank_k.data.lines import read_objects
from rank_k.errors import FormatError

EXPECTED_FORMAT = (
    '{"set_id": ..., "query_id": ..., "query": ..., "doc_ids": [...], "passages": [...], ...} as distill sample writes'
)


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """A query and its passages, in the order in which the prompt presents them to the teacher.

    Args:
        set_id: The id of the set. Sets with the same id have the same query, and the same documents in the same order.
        query_id: The id of the query in its collection.
        query: The text of the query.
        doc_ids: The ids of the passages.
        passages: The texts of the passages, in the order of `doc_ids`.
        grades: The relevance grades of the judged passages by document id, or None if the query has no judgments.
        source: The name of the collection.
        license: The license of the texts in the collection, or None if it is not known.
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
        """All fields except the texts of the passages."""
        return {name: value for name, value in asdict(self).items() if name != "passages"}


def make_set_id(source: str, query_id: str, number: int, query: str, doc_ids: Iterable[str]) -> str:
    """Return the id of the `number`-th set of a query. Sets with different content get different ids."""
    content = json.dumps([query, list(doc_ids)]).encode()
    return f"{source}/{query_id}/{number}-{sha256(content).hexdigest()[:8]}"


def read_license(collection: Path) -> str | None:
    """Return the license in the PROVENANCE.md of a collection's folder, or None.

    The license is the text between "License of the data:" and the end of the line. If the file does not contain this
    label, the license is the text between the first "License" and the end of the sentence.
    """
    provenance = collection / "PROVENANCE.md"
    if not provenance.is_file():
        return None
    text = provenance.read_text(encoding="utf-8", errors="replace")
    match = re.search(r"Licen[cs]e of the data:\s*(.+)", text) or re.search(
        r"Licen[cs]e:?\s+(.+?)(?:\.\s|\.?$)", text, re.M
    )
    return match[1].strip().strip("*.").strip() or None if match else None


def encode_json_line(row: Mapping[str, Any]) -> bytes:
    """Return a line of a JSONL file. Undecodable bytes of ids are written as they were read."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"


def read_candidate_sets(path: str | Path) -> Iterator[CandidateSet]:
    """Yield the sets of a JSONL file. Raises `FormatError` for the first line that is not a set."""
    names = [field.name for field in fields(CandidateSet)]
    for number, row in read_objects(Path(path), EXPECTED_FORMAT):
        if (problem := _problem(row)) is not None:
            raise FormatError(Path(path), number, problem, EXPECTED_FORMAT)
        values = {name: row.get(name) for name in names}
        yield CandidateSet(**values | {"doc_ids": tuple(row["doc_ids"]), "passages": tuple(row["passages"])})


def _problem(row: Mapping[str, Any]) -> str | None:
    """Return why a JSON object is not a candidate set, or None if it is one."""
    for name in ("set_id", "query_id", "query", "source"):
        if not isinstance(row.get(name), str):
            return f"{name} is missing or not a string"
    for name in ("doc_ids", "passages"):
        if not isinstance(row.get(name), list) or not all(isinstance(text, str) for text in row[name]):
            return f"{name} is missing or not a list of strings"
    doc_ids, passages, grades = row["doc_ids"], row["passages"], row.get("grades")
    if len(doc_ids) != len(passages):
        return f"doc_ids has {len(doc_ids)} entries, but passages has {len(passages)}"
    if len(doc_ids) < 2 or len(set(doc_ids)) < len(doc_ids):
        return "doc_ids has fewer than two entries, or contains an id twice"
    if grades is not None and not (isinstance(grades, dict) and all(type(grade) is int for grade in grades.values())):
        return "grades is not an object with an integer for each document id"
    return None if isinstance(row.get("license"), str | None) else "license is not a string"
