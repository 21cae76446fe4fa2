"""Read and write runs, and read relevance judgments (qrels). Every line is checked.

    run       TREC: `query_id Q0 doc_id rank score tag`      or JSON: `{query_id: {doc_id: score}}`
    qrels     TREC: `query_id iteration doc_id grade`        or BEIR: `query-id<TAB>corpus-id<TAB>score`
                                                             with a header line

Only ASCII white space separates the fields of a TREC file. `rank_k.data.lines` describes compression and encodings.
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

_RUN_FORMAT = "'query_id Q0 doc_id rank score tag' on each line (no white space in ids or tag), or a score.json"
_QRELS_FORMAT = "'query_id iteration doc_id grade' on each line, or BEIR's format with its header line"

_RunRow = tuple[str, str, float]
_NOT_IN_TREC = re.compile(r"[ \t\n\r\v\f\0]")
_SIGNIFICAND_BITS, _MIN_EXPONENT = 24, -125  # of single precision, as `math.frexp` counts the exponent
_BEIR_HEADER = (b"query-id", b"query_id", b"qid")
_GRADE = re.compile(rb"[+-]?[0-9]{1,9}")  # trec_eval stores grades in 32 bits


class RunFile:
    """A first-stage run in a file. The file is checked when it is opened, and read again for every iteration.

    Iterating yields pairs of query id and candidates, in the file's order of queries. Candidates are sorted by score,
    highest first; equal scores keep the file's order. As in trec_eval, the rank column is ignored. Each candidate has
    the score in the file. If a document appears twice for a query, only its best score counts.

    If the lines of each query are adjacent, only one query is in memory at a time. Otherwise, and for JSON, the
    complete run is in memory.

    Args:
        path: The file.

    Attributes:
        path: The file.
        query_ids: The queries, in the file's order.
        duplicate_count: The number of repeated documents that iterating leaves out.

    Raises:
        FormatError: If a line is malformed.
        InputError: If the file cannot be read, or if it is a pipe, which cannot be read twice.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        reject_pipe(self.path, "a run is read twice, so write it to a file")
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
    """Return all candidates of a run by query id, best first. `RunFile` describes their order and the errors."""
    return dict(iter(RunFile(path)))


class RunWriter(PartFile):
    """Writes a run in TREC format: `with RunWriter(path) as run: run.write_query(query_id, doc_ids)`.

    The file is complete or absent, and only one process writes it at a time (see `PartFile`).

    The scores of a query strictly decrease, also in single precision, so that every reader keeps the order of the
    documents. (trec_eval and pytrec_eval ignore the rank column, read scores in single precision, and sort equal scores
    by document id.) There are two kinds of scores:

        `rank-k retrieve`   The BM25 score. If scores are equal, each one after the first is lowered to the next
                            smaller number in single precision.
        `rank-k rerank`     1 / rank with 12 decimals (1.0, 0.5, 0.333...). Reranking yields an order and no measure
                            of relevance, so these scores cannot be compared across queries.

    Args:
        path: The file to write.
        tag: The name of the run, which is the last column of every line (default: "rank-k").

    Raises:
        InputError: If the tag is empty or has white space, or if the file cannot be written.
    """

    def __init__(self, path: str | Path, tag: str = "rank-k") -> None:
        super().__init__(path)
        self._tag = trec_field("tag", tag)

    def write_query(self, query_id: str, doc_ids: Sequence[str], scores: Iterable[float] | None = None) -> None:
        """Append the ranking of one query.

        Args:
            query_id: The query.
            doc_ids: Its documents, best first.
            scores: The score of each document, highest first (default: 1 / rank).

        Raises:
            InputError: If an id is empty or has white space.
        """
        query = trec_field("query id", query_id)
        if scores is None:
            score_texts = [b"%.12f" % (1 / rank) for rank in range(1, len(doc_ids) + 1)]
        else:
            # 9 digits are enough to represent single precision exactly
            score_texts = [b"%.9g" % score for score in _strictly_decreasing(scores)]
        lines = [
            b"%b Q0 %b %d %b %b\n" % (query, trec_field("document id", doc_id), rank, score_text, self._tag)
            for rank, (doc_id, score_text) in enumerate(zip(doc_ids, score_texts, strict=True), 1)
        ]
        self.write(b"".join(lines))
        self.flush()


def _strictly_decreasing(scores: Iterable[float]) -> Iterator[float]:
    """Yield `scores` in single precision, each one lowered, if necessary, to one step below the one before it."""
    limit = math.inf
    for score in scores:
        score = min(ctypes.c_float(score).value, limit)
        yield score
        exponent = max(math.frexp(score)[1], _MIN_EXPONENT)
        limit = score - math.ldexp(1, exponent - _SIGNIFICAND_BITS)


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Return relevance judgments as `query_id -> {doc_id: grade}`. Grades are whole numbers and may be negative.

    Raises:
        FormatError: If a line is malformed, or if a document has two different grades for a query.
        InputError: If the file cannot be read.
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
        raise FormatError(path, 0, "a header without judgments", _QRELS_FORMAT)
    return qrels


def qrels_line(query_id: str, doc_id: str, grade: int) -> bytes:
    """Return a judgment as a line of a TREC file. Raises `InputError` if an id is empty or has white space."""
    return b"%b 0 %b %d\n" % (trec_field("query id", query_id), trec_field("document id", doc_id), grade)


def trec_field(name: str, value: str) -> bytes:
    """Return a field of a TREC file as bytes.

    Args:
        name: What the field holds, for error messages.
        value: The content of the field.

    Raises:
        InputError: If `value` is empty, has white space or cannot be encoded.
    """
    if not _fits_trec(value):
        raise InputError(
            f"{name} {abbreviate(value)} cannot be written to a TREC file",
            "ids and tags must not be empty or have white space",
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
        if score is None or b"_" in fields[4]:  # Python reads 1_0 as 10, but no other tool does
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
                raise FormatError(path, 0, problem, "ids that are not empty and have no white space")
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
