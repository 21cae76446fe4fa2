"""Runs and relevance judgments (qrels) on disk, every line checked.

    run       TREC: `query_id Q0 doc_id rank score tag`      or JSON: `{query_id: {doc_id: score}}`
    qrels     TREC: `query_id iteration doc_id grade`        or BEIR: `query-id<TAB>corpus-id<TAB>score`
                                                             under a header line

A field of a TREC file ends at ASCII white space only. See `rank_k.data.lines` for compression and encodings.
"""

from __future__ import annotations

import codecs
import ctypes
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rank_k.data.compression import open_compressed, reject_pipe
from rank_k.data.lines import JsonPairs, abbreviate, decode, is_encodable, parse_json, read_lines, starts_with_json
from rank_k.data.part_file import PartFile
from rank_k.errors import FormatError, InputError
from rank_k.types import Candidate

_RUN_FORMAT = "'query_id Q0 doc_id rank score tag' on each line (no white space in ids or tag) or a score.json"
_QRELS_FORMAT = "'query_id iteration doc_id grade' on each line, or BEIR's 'query-id corpus-id score' and its lines"

_RunRow = tuple[str, str, float]
_NOT_IN_TREC = re.compile(r"[ \t\n\r\v\f\0]")
_SIGNIFICAND_BITS, _MIN_EXPONENT = 24, -125  # of single precision, as `math.frexp` counts the exponent
_BEIR_HEADER = (b"query-id", b"query_id", b"qid")
_GRADE = re.compile(rb"[+-]?[0-9]{1,9}")  # trec_eval keeps grades in 32 bits


class RunFile:
    """A first-stage run on disk, which is checked when it is opened and read again for every iteration.

    Iterating yields `(query_id, candidates)` in the file's order of queries. Candidates are sorted by score, highest
    first, equal scores in the file's order (the rank column is ignored, as trec_eval does); a document repeated within
    a query is kept once, with its best score.

    Memory holds one query at a time if the lines of each query are adjacent, else the complete run. JSON is always
    read as a whole.

    Attributes:
        path: the file.
        query_ids: the queries, in the file's order.
        duplicate_count: number of repeated documents that iterating leaves out.

    Raises:
        FormatError: For the first malformed line.
        InputError: If the file cannot be read or is not a regular file (a pipe cannot be read twice).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        reject_pipe(self.path, "a run is read twice: write it to a file first")
        reader = _read_json_rows if starts_with_json(self.path, _RUN_FORMAT) else _read_trec_rows
        self._read_rows: Callable[[], Iterable[_RunRow]] = partial(reader, self.path)
        self.duplicate_count = 0
        query_id_of_each_group = []
        for query_id, rows in groupby(self._read_rows(), itemgetter(0)):
            query_id_of_each_group.append(query_id)
            self.duplicate_count += _count_duplicates(rows)
        self.query_ids = tuple(dict.fromkeys(query_id_of_each_group))
        if len(self.query_ids) < len(query_id_of_each_group):
            rows_by_query: dict[str, list[_RunRow]] = {query_id: [] for query_id in self.query_ids}
            for row in self._read_rows():
                rows_by_query[row[0]].append(row)
            self.duplicate_count = sum(map(_count_duplicates, rows_by_query.values()))
            self._read_rows = partial(chain.from_iterable, rows_by_query.values())

    def __len__(self) -> int:
        return len(self.query_ids)

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        for query_id, rows in groupby(self._read_rows(), itemgetter(0)):
            candidates: dict[str, Candidate] = {}
            for _, doc_id, score in sorted(rows, key=lambda row: -row[2]):
                candidates.setdefault(doc_id, Candidate(doc_id, score))
            yield query_id, tuple(candidates.values())


def read_run(path: str | Path) -> dict[str, tuple[Candidate, ...]]:
    """Return the whole run: `query_id -> candidates, best first`. See `RunFile` for order and errors."""
    return dict(iter(RunFile(path)))


class RunWriter(PartFile):
    """A TREC run to be written: `with RunWriter(path) as run: run.write_query(query_id, doc_ids)`.

    The run is complete or absent, and one process writes it at a time (see `PartFile`). Queries are appended to
    `path` + ".part" one by one.

    Scores strictly decrease within a query, in single precision too, so that every reader keeps the order of the file:
    trec_eval and pytrec_eval ignore the rank column, read scores in single precision and sort ties by document id.
    There are two kinds of scores:

        BM25 (`rank-k retrieve`)      the BM25 score. Of equal scores, each is lowered to the next smaller
                                      single-precision number below the one before it.
        1 / rank (`rank-k rerank`)    1.0, 0.5, 0.333... with 12 decimals. A reranked list is an order: the score says
                                      nothing about how relevant a document is, and cannot be compared between queries.

    Args:
        path: the file.
        tag: the name of the run, in the last column of every line.

    Raises:
        InputError: If the tag is empty or has white space, or if the file cannot be written.
    """

    def __init__(self, path: str | Path, tag: str = "rank-k") -> None:
        super().__init__(path)
        self._tag = trec_field("tag", tag)

    def write_query(self, query_id: str, doc_ids: Sequence[str], scores: Iterable[float] | None = None) -> None:
        """Append the ranking of one query.

        Args:
            query_id: the query.
            doc_ids: its documents, best first.
            scores: a score for each document, highest first (default: 1 / rank).

        Raises:
            InputError: For an id that is empty or has white space.
        """
        query = trec_field("query id", query_id)
        if scores is None:
            score_texts = [b"%.12f" % (1 / rank) for rank in range(1, len(doc_ids) + 1)]
        else:
            score_texts = [b"%.9g" % score for score in _strictly_decreasing(scores)]  # 9 digits: exact in single
        lines = [
            b"%b Q0 %b %d %b %b\n" % (query, trec_field("document id", doc_id), rank, score_text, self._tag)
            for rank, (doc_id, score_text) in enumerate(zip(doc_ids, score_texts, strict=True), 1)
        ]
        self.write(b"".join(lines))
        self.flush()


def _strictly_decreasing(scores: Iterable[float]) -> Iterator[float]:
    """Yield `scores` as single-precision numbers, lowered where they are not below the one before by one step."""
    limit = math.inf
    for score in scores:
        score = min(ctypes.c_float(score).value, limit)
        yield score
        exponent = max(math.frexp(score)[1], _MIN_EXPONENT)
        limit = score - math.ldexp(1, exponent - _SIGNIFICAND_BITS)


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Return judgments: `query_id -> {doc_id: grade}`. Grades are whole numbers, negative ones included.

    Raises `FormatError` for a malformed line or a document judged twice with different grades.
    """
    path = Path(path)
    qrels: dict[str, dict[str, int]] = {}
    is_beir = False
    for count, (number, line) in enumerate(read_lines(path, _QRELS_FORMAT)):
        fields = [field.strip() for field in line.split(b"\t")]
        if count == 0 and len(fields) == 3 and fields[0].lower() in _BEIR_HEADER:
            is_beir = True
            continue
        if not is_beir:
            fields = line.split()
        if len(fields) != (3 if is_beir else 4) or not all(fields):
            raise FormatError(path, number, _describe_columns(fields), _QRELS_FORMAT)
        if not _GRADE.fullmatch(fields[-1]):
            problem = f"grade {abbreviate(fields[-1])}"
            raise FormatError(path, number, problem, "a whole number of at most 9 digits in the last column")
        query_id, doc_id, grade = decode(fields[0]), decode(fields[-2]), int(fields[-1])
        previous_grade = qrels.setdefault(query_id, {}).setdefault(doc_id, grade)
        if previous_grade != grade:
            problem = f"document {doc_id} of query {query_id} judged {grade} here and {previous_grade} before"
            raise FormatError(path, number, problem, "one grade for each document of a query")
    if not qrels:
        raise FormatError(path, 0, "a header and nothing below it", _QRELS_FORMAT)
    return qrels


def qrels_line(query_id: str, doc_id: str, grade: int) -> bytes:
    """Return a judgment as a line of a TREC file. Raises `InputError` for an id that TREC cannot hold."""
    return b"%b 0 %b %d\n" % (trec_field("query id", query_id), trec_field("document id", doc_id), grade)


def trec_field(name: str, value: str) -> bytes:
    """Return `value` encoded for a TREC file. Raises `InputError` if it is empty or has white space."""
    if not _fits_trec(value):
        raise InputError(
            f"{name} {abbreviate(value)} cannot be written to a TREC file",
            "ids and tags must be non-empty and without white space",
        )
    return value.encode("utf-8", "surrogateescape")


def _fits_trec(identifier: str) -> bool:
    return bool(identifier) and not _NOT_IN_TREC.search(identifier) and is_encodable(identifier)


def _describe_columns(fields: Sequence[bytes]) -> str:
    return f"{len(fields)} column{'s' * (len(fields) != 1)} ({abbreviate(b' '.join(fields))})"


def _count_duplicates(rows: Iterable[_RunRow]) -> int:
    doc_ids = [doc_id for _, doc_id, _ in rows]
    return len(doc_ids) - len(set(doc_ids))


def _read_trec_rows(path: Path) -> Iterator[_RunRow]:
    for number, line in read_lines(path, _RUN_FORMAT):
        fields = line.split()
        if len(fields) != 6:
            raise FormatError(path, number, _describe_columns(fields), _RUN_FORMAT)
        score = _finite_number(fields[4])
        if score is None or b"_" in fields[4]:  # Python reads 1_0 as ten; no other tool does
            raise FormatError(path, number, f"score {abbreviate(fields[4])}", "a finite number in column 5")
        yield decode(fields[0]), decode(fields[2]), score


def _read_json_rows(path: Path) -> Iterator[_RunRow]:
    with open_compressed(path, _RUN_FORMAT) as stream:
        text = decode(stream.plain.read().removeprefix(codecs.BOM_UTF8))
    run = parse_json(path, 0, text, _RUN_FORMAT, as_pairs=True)
    if not isinstance(run, JsonPairs) or not run:
        raise FormatError(path, 0, "JSON without queries", _RUN_FORMAT)
    for query_id, scores in run:
        if not isinstance(scores, JsonPairs):
            raise FormatError(path, 0, f"query {abbreviate(query_id)} with {abbreviate(scores)}", _RUN_FORMAT)
        for doc_id, score in scores:
            if unfit_ids := [identifier for identifier in (query_id, doc_id) if not _fits_trec(identifier)]:
                problem = f"id {abbreviate(unfit_ids[0])}"
                raise FormatError(path, 0, problem, "ids that are non-empty and without white space")
            value = None if isinstance(score, bool | str) else _finite_number(score)
            if value is None:
                problem = f"score {abbreviate(score)} of document {doc_id} for query {query_id}"
                raise FormatError(path, 0, problem, "a finite number")
            yield query_id, doc_id, value


def _finite_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
