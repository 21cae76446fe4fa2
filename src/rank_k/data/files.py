"""Runs, judgments, queries and passages on disk: every line checked, every error with its line number.

What is read (gzip and Zstandard are told by their first bytes, never by the name; a byte order mark, CRLF and blank
lines are fine):

    run       TREC: `query_id Q0 doc_id rank score tag`      or JSON: `{query_id: {doc_id: score}}`
    qrels     TREC: `query_id iteration doc_id grade`        or BEIR: `query-id<TAB>corpus-id<TAB>score`
                                                             under a header line
    queries   JSONL: `_id`, `id`, `query_id` or `qid`, with `text` or `query`, or any other fields
              TREC topics, classic or XML: see `rank_k.data.topics`
    passages  JSONL: `_id`, `id`, `doc_id` or `docid`, with `text`, `contents` or `content`, maybe `title`
              both also as TSV: `id<TAB>text` (further tabs belong to the text)

Where several accepted keys stand in one object the first of the list above counts. Ids leave as the bytes
they came as (UTF-8 with surrogateescape, a field of a TREC file ends at ASCII white space only); in the
text of queries and passages what cannot be decoded becomes U+FFFD.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

from rank_k.data.compression import open_compressed
from rank_k.data.part_file import PartFile
from rank_k.errors import FormatError, InputError
from rank_k.types import Candidate, Passage, Query

_RUN = "'query_id Q0 doc_id rank score tag' on each line (no white space in ids or tag) or a score.json"
_QRELS = "'query_id iteration doc_id grade' on each line, or BEIR's 'query-id corpus-id score' and its lines"
_QUERIES = '{"_id": ..., "text": ...} on each line (JSONL), id<TAB>text, or TREC topics'
PASSAGES = '{"_id": ..., "title": ..., "text": ...} on each line (JSONL) or id<TAB>text'

_Row = tuple[str, str, float]
_NOT_IN_TREC = re.compile(r"[ \t\n\r\v\f\0]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BEIR_HEADER = (b"query-id", b"query_id", b"qid")
_GRADE = re.compile(rb"[+-]?[0-9]{1,9}")  # trec_eval keeps grades in 32 bits
_ALSO = {
    "text": ("query",),
    "query": ("text",),
    "description": ("desc",),
    "desc": ("description",),
    "narrative": ("narr",),
    "narr": ("narrative",),
}
"""Other names of query fields."""
_QUERY_KEYS = ("_id", "id", "query_id", "qid")
_PASSAGE_KEYS = ("_id", "id", "doc_id", "docid"), ("text", "contents", "content")
_LEADING_ID = re.compile(rb'\s*\{\s*("_?id")\s*:\s*"([^"\\]+)"')


class RunFile:
    """A first-stage run on disk, checked as a whole when opened and then read again for every iteration.

    Iterating yields `(query_id, candidates)` in the file's order of queries. Candidates stand by score,
    highest first, equal scores in the file's order (the rank column is ignored, as trec_eval does); a
    document repeated within a query is kept once, at its best score.

    Memory holds one query at a time as long as the lines of each query stand together. Where they do not,
    and for JSON, the whole run is held.

    Raises `FormatError` for the first line that is not as it should be, `InputError` if the file cannot be
    read or is no regular file (a pipe cannot be read twice).
    """

    path: Path
    query_ids: tuple[str, ...]
    duplicates: int
    """How many repeated documents were dropped."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
            raise InputError(f"{path} is a pipe or device", "a run is read twice: write it to a file first")
        is_json = _is_json(self.path)
        self._rows: Callable[[Path], Iterator[_Row]] = _json_rows if is_json else _trec_rows
        self._held: dict[str, tuple[Candidate, ...]] | None = None
        self.duplicates = 0
        seen: dict[str, None] = {}
        together = not is_json
        if together:
            for query_id, rows in groupby(self._rows(self.path), itemgetter(0)):
                together = together and query_id not in seen
                seen[query_id] = None
                doc_ids = [doc_id for _, doc_id, _ in rows]
                self.duplicates += len(doc_ids) - len(set(doc_ids))
        if not together:
            scattered: dict[str, list[_Row]] = {}
            for row in self._rows(self.path):
                scattered.setdefault(row[0], []).append(row)
            self._held = {query_id: _best_first(rows) for query_id, rows in scattered.items()}
            self.duplicates = sum(map(len, scattered.values())) - sum(map(len, self._held.values()))
            seen = dict.fromkeys(scattered)
        self.query_ids = tuple(seen)

    def __len__(self) -> int:
        return len(self.query_ids)

    def __iter__(self) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        if self._held is not None:
            yield from self._held.items()
            return
        for query_id, rows in groupby(self._rows(self.path), itemgetter(0)):
            yield query_id, _best_first(rows)


def read_run(path: str | Path) -> dict[str, tuple[Candidate, ...]]:
    """The whole run at once: `query_id -> candidates, best first`. See `RunFile` for order and errors."""
    return dict(iter(RunFile(path)))


class RunWriter:
    """Writes a TREC run: `with RunWriter(path) as run: run.write(query_id, doc_ids)`.

    The run is complete or absent, and one process writes it at a time (see `PartFile`); queries are appended to
    `path` + ".part" one by one. The score is 1/rank with 12 decimals, which decreases strictly up to rank 999,999.
    """

    def __init__(self, path: str | Path, tag: str = "rank-k") -> None:
        self._tag = trec_field("tag", tag)
        self._file = PartFile(path)

    def __enter__(self) -> RunWriter:
        self._file.__enter__()
        return self

    def write(self, query_id: str, doc_ids: Sequence[str]) -> None:
        """Append one query, `doc_ids` best first. Raises `InputError` for an id that TREC cannot hold."""
        query = trec_field("query id", query_id)
        lines = [
            b"%b Q0 %b %d %.12f %b\n" % (query, trec_field("document id", doc_id), rank, 1 / rank, self._tag)
            for rank, doc_id in enumerate(doc_ids, 1)
        ]
        self._file.write(b"".join(lines))
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Judgments: `query_id -> {doc_id: grade}`. Grades are whole numbers, negative ones included.

    Raises `FormatError` for a bad line or a document judged twice with different grades.
    """
    path = Path(path)
    qrels: dict[str, dict[str, int]] = {}
    beir = False
    for count, (number, line) in enumerate(_lines(path, _QRELS)):
        fields = [field.strip() for field in line.split(b"\t")]
        if count == 0 and len(fields) == 3 and fields[0].lower() in _BEIR_HEADER:
            beir = True
            continue
        if not beir:
            fields = line.split()
        if len(fields) != (3 if beir else 4) or not all(fields):
            raise FormatError(path, number, _columns(fields), _QRELS)
        if not _GRADE.fullmatch(fields[-1]):
            found = f"grade {_shown(fields[-1])}"
            raise FormatError(path, number, found, "a whole number of at most 9 digits in the last column")
        query_id, doc_id, grade = _decoded(fields[0]), _decoded(fields[-2]), int(fields[-1])
        before = qrels.setdefault(query_id, {}).setdefault(doc_id, grade)
        if before != grade:
            found = f"document {doc_id} of query {query_id} judged {grade} here and {before} before"
            raise FormatError(path, number, found, "one grade for each document of a query")
    if not qrels:
        raise FormatError(path, 0, "a header and nothing below it", _QRELS)
    return qrels


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
    for number, query_id, text in _query_rows(path, names):
        if queries.setdefault(query_id, Query(query_id, text)).text != text:
            raise FormatError(path, number, f"query {query_id} again with another text", "each query id once")
    return queries


def read_translations(path: str | Path, field: str = "ht") -> dict[str, str]:
    """What `field` of each query holds, by id, where it holds something. In cross-language sets in BEIR's layout `ht`
    is a translation by hand. Files other than JSONL have no such fields. Raises `FormatError`."""
    path = Path(path)
    with open_compressed(path, _QUERIES) as stream:
        if not is_jsonl(next(numbered_lines(path, stream.plain, _QUERIES))[2]):
            return {}
    found = {}
    for number, row in read_objects(path, _QUERIES):
        value = row.get(field) or ""
        if not isinstance(value, str):
            raise FormatError(path, number, f"{_shown(value)} as {field}", "a string")
        if value.strip():
            query_id = _identified_as(path, number, row, _QUERY_KEYS)
            found[query_id] = _mended(value.strip())
    return found


def read_passages(path: str | Path, wanted: Collection[str] | None = None) -> Iterator[Passage]:
    """Stream the passages of a corpus, or only those whose id is in `wanted`, as the file has them.

    The text is "title text"; the title is left out when it is empty or the text already begins with it.
    Lines that are not wanted are parsed no further than their id, so faults after it go unnoticed there.
    Raises `FormatError` while reading.
    """
    path = Path(path)
    for _, doc_id, title, text in _records(path, _lines(path, PASSAGES), *_PASSAGE_KEYS, PASSAGES, wanted):
        yield _passage(doc_id, title, text)


def parse_passage(path: Path, number: int, line: bytes, jsonl: bool) -> Passage:
    """The passage of one line, as `read_passages` has it. `jsonl`: what `is_jsonl` says of the file's first line."""
    return _passage(*_record(path, number, line, jsonl, *_PASSAGE_KEYS, PASSAGES))


def parse_passage_id(path: Path, number: int, line: bytes, jsonl: bool) -> str:
    """Its id, the rest of the line unread where that is possible."""
    leading = _leading_id(line) if jsonl else None
    return leading or _identified(path, number, line, jsonl, _PASSAGE_KEYS[0], PASSAGES)[0]


def is_jsonl(first_line: bytes) -> bool:
    """Whether a file that begins so is JSONL, not TSV."""
    return first_line.lstrip().startswith(b"{")


def _passage(doc_id: str, title: str, text: str) -> Passage:
    if title and not text.startswith(title):
        text = f"{title} {text}" if text else title
    return Passage(doc_id, text)


def read_objects(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, each with its line number. Raises `FormatError` while reading."""
    for number, line in _lines(path, expected):
        found = _parsed(path, number, _decoded(line), expected)
        if not isinstance(found, dict):
            raise FormatError(path, number, f"JSON that is no object: {_shown(found)}", expected)
        yield number, found


# Bytes and lines


def numbered_lines(path: Path, lines: Iterable[bytes], expected: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield line number (from 1), byte offset and bytes of each line that is not blank, without its line end.

    Every reader of lines uses this function, so that columns in error messages never depend on the reader.
    Raises `FormatError` for a NUL byte and where all lines are blank.
    """
    empty, start = True, 0
    for number, line in enumerate(lines, 1):
        length = len(line)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if b"\0" in line:
            found = "a NUL byte (binary data, or UTF-16)"
            raise FormatError(path, number, found, f"UTF-8 text, {expected}")
        if line.strip():
            empty = False
            yield number, start + length - len(line), line.rstrip(b"\r\n")
        start += length
    if empty:
        raise FormatError(path, 0, "an empty file", expected)


def _lines(path: Path, expected: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, without their line ends, numbered from 1; at least one."""
    with open_compressed(path, expected) as stream:
        for number, _, line in numbered_lines(path, stream.plain, expected):
            yield number, line


def _decoded(field: bytes) -> str:
    return field.decode("utf-8", "surrogateescape")


def trec_field(what: str, value: str) -> bytes:
    """`value` as it stands in a TREC file. Raises `InputError` for what cannot stand there."""
    if not _fits_trec(value):
        raise InputError(
            f"{what} {_shown(value)} cannot stand in a TREC run",
            "ids and tags must be non-empty and without white space",
        )
    return value.encode("utf-8", "surrogateescape")


def _fits_trec(identifier: str) -> bool:
    return bool(identifier) and not _NOT_IN_TREC.search(identifier) and _is_encodable(identifier)


def _is_encodable(identifier: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and no file can hold."""
    try:
        identifier.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    shown = repr(_decoded(value) if isinstance(value, bytes) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _columns(fields: Sequence[bytes]) -> str:
    return f"{len(fields)} column{'s' * (len(fields) != 1)} ({_shown(b' '.join(fields))})"


# Runs


def _best_first(rows: Iterator[_Row] | list[_Row]) -> tuple[Candidate, ...]:
    best: dict[str, Candidate] = {}
    for _, doc_id, score in sorted(rows, key=lambda row: -row[2]):
        best.setdefault(doc_id, Candidate(doc_id, score))
    return tuple(best.values())


def _trec_rows(path: Path) -> Iterator[_Row]:
    for number, line in _lines(path, _RUN):
        fields = line.split()
        if len(fields) != 6:
            raise FormatError(path, number, _columns(fields), _RUN)
        try:
            score = float(fields[4])
        except ValueError:
            score = math.nan
        if not math.isfinite(score) or b"_" in fields[4]:  # Python reads 1_0 as ten; no other tool does
            raise FormatError(path, number, f"score {_shown(fields[4])}", "a finite number in column 5")
        yield _decoded(fields[0]), _decoded(fields[2]), score


def _is_json(path: Path) -> bool:
    lines = _lines(path, _RUN)
    return next(lines)[1].lstrip().startswith(b"{")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: `dict` would silently keep the last of two equal keys."""


def _json_rows(path: Path) -> Iterator[_Row]:
    with open_compressed(path, _RUN) as stream:
        run = _parsed(path, 0, _decoded(stream.plain.read().removeprefix(codecs.BOM_UTF8)), _RUN, _Pairs)
    if not isinstance(run, _Pairs) or not run:
        raise FormatError(path, 0, "JSON without queries", _RUN)
    for query_id, scores in run:
        if not isinstance(scores, _Pairs):
            raise FormatError(path, 0, f"query {_shown(query_id)} with {_shown(scores)}", _RUN)
        for doc_id, score in scores:
            for identifier in (query_id, doc_id):
                if not _fits_trec(identifier):
                    found = f"id {_shown(identifier)}"
                    raise FormatError(path, 0, found, "ids that are non-empty and without white space")
            try:
                value = math.nan if isinstance(score, bool | str | None) else float(score)
            except (TypeError, OverflowError):
                value = math.nan
            if not math.isfinite(value):
                found = f"score {_shown(score)} of document {doc_id} for query {query_id}"
                raise FormatError(path, 0, found, "a finite number")
            yield query_id, doc_id, value


@cache
def _decoder(pairs: type[_Pairs] | None) -> json.JSONDecoder:
    """Made once: `json.loads` makes one for every line, which takes as long as to read a short line."""
    return json.JSONDecoder(strict=False, object_pairs_hook=pairs)


def _parsed(path: Path, number: int, text: str, expected: str, pairs: type[_Pairs] | None = None) -> Any:
    try:
        return _decoder(pairs).decode(text)
    except json.JSONDecodeError as error:
        found = f"invalid JSON ({error.msg} at column {error.colno})"
        raise FormatError(path, number or error.lineno, found, expected) from error
    except RecursionError as error:
        raise FormatError(path, number, "JSON nested too deeply", expected) from error
    except ValueError as error:  # Python refuses to read numbers of thousands of digits
        raise FormatError(path, number, "JSON with an overlong number", expected) from error


# Queries and passages


def _records(
    path: Path,
    lines: Iterator[tuple[int, bytes]],
    id_keys: Sequence[str],
    text_keys: Sequence[str],
    expected: str,
    wanted: Collection[str] | None = None,
    fields: Sequence[str] = (),
) -> Iterator[tuple[int, str, str, str]]:
    """Line number, id, title and text of every record. The first line tells JSONL from TSV.

    With `fields`, the text is composed of those instead of standing under one of `text_keys`.
    """
    chosen = None if wanted is None else frozenset(wanted)
    jsonl: bool | None = None
    for number, line in lines:
        if jsonl is None:
            jsonl = is_jsonl(line)
        if chosen is not None and jsonl and (leading := _leading_id(line)) and leading not in chosen:
            continue
        if chosen is not None and _identified(path, number, line, jsonl, id_keys, expected)[0] not in chosen:
            continue
        yield number, *_record(path, number, line, jsonl, id_keys, text_keys, expected, fields)


def _record(
    path: Path,
    number: int,
    line: bytes,
    jsonl: bool,
    id_keys: Sequence[str],
    text_keys: Sequence[str],
    expected: str,
    fields: Sequence[str] = (),
) -> tuple[str, str, str]:
    """Id, title and text of one line."""
    name, record = _identified(path, number, line, jsonl, id_keys, expected)
    if isinstance(record, bytes):
        if fields:
            raise FormatError(path, number, "TSV, which has no fields to choose from", "JSONL or TREC topics")
        return name, "", record.decode("utf-8", "replace")
    title = record.get("title") or ""
    text = _composed(path, number, record, fields) if fields else _value(path, number, record, text_keys, "text")
    for part in (text, title):
        if not isinstance(part, str):
            raise FormatError(path, number, f"{_shown(part)} as text or title", "strings")
    return name, _mended(title).strip(), _mended(text)


def _identified(
    path: Path, number: int, line: bytes, jsonl: bool, id_keys: Sequence[str], expected: str
) -> tuple[str, dict[str, Any] | bytes]:
    """The id of one line and what goes with it: a JSON object, or all that follows the tab."""
    if not jsonl:
        identifier, tab, rest = line.partition(b"\t")
        if not tab or not identifier.strip():
            found = "no id before the tab" if tab else "no tab"
            raise FormatError(path, number, f"{found} in {_shown(line)}", expected)
        return _decoded(identifier), rest
    record = _parsed(path, number, _decoded(line), expected)
    if not isinstance(record, dict):
        raise FormatError(path, number, f"JSON that is no object: {_shown(record)}", expected)
    return _identified_as(path, number, record, id_keys), record


def _identified_as(path: Path, number: int, record: dict[str, Any], id_keys: Sequence[str]) -> str:
    name = _value(path, number, record, id_keys, "id")
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name or not _is_encodable(name):
        raise FormatError(path, number, f"id {_shown(name)}", "an id that is a non-empty string")
    return name


def _leading_id(line: bytes) -> str | None:
    """The id of a JSON line that begins with it; None where the line must be parsed, as when another `_id`, which
    would count more, or the same key, which would count last, may follow."""
    leading = _LEADING_ID.match(line)
    if leading is None or line.find(b'"_id"', leading.end()) >= 0 or line.find(leading[1], leading.end()) >= 0:
        return None
    return _decoded(leading[2])


def _query_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Line number, id and text of every query."""
    lines = _lines(path, _QUERIES)
    first = next(lines)
    lines = chain([first], lines)  # read once: it may be a pipe
    if not first[1].lstrip().startswith(b"<"):
        for number, query_id, _, text in _records(path, lines, _QUERY_KEYS, ("text", "query"), _QUERIES, None, fields):
            yield number, query_id, text
        return
    from rank_k.data.topics import read_topics

    by_number = dict(lines)
    content = b"\n".join(by_number.get(number, b"") for number in range(1, max(by_number) + 1))
    for number, query_id, record in read_topics(path, content):
        main = next(([key] for key in ("title", "query", "text") if key in record), ["title"])
        yield number, query_id, _composed(path, number, record, fields or main)


def _composed(path: Path, number: int, record: Mapping[str, Any], fields: Sequence[str]) -> str:
    parts = []
    for name in fields:
        key = next((key for key in (name, *_ALSO.get(name, ())) if key in record), None)
        if key is None:
            raise FormatError(path, number, f"no field {name}", f"one of the fields {', '.join(record) or '(none)'}")
        if not isinstance(record[key], str | None):
            raise FormatError(path, number, f"{_shown(record[key])} as {key}", "strings")
        parts.append((record[key] or "").strip())
    if not any(parts):
        raise FormatError(path, number, f"nothing in {', '.join(fields)}", "a query with some text")
    return "\n".join(filter(None, parts))


def _value(path: Path, number: int, record: dict[str, Any], keys: Sequence[str], what: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    found = f"no {what} (keys: {_shown(', '.join(record))})"
    raise FormatError(path, number, found, f"one of the keys {', '.join(keys)}")


def _mended(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
