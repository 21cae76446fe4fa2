"""The data sets of ir_datasets (MacAvaney et al., SIGIR 2021), by their ids.

Queries, judgments and scored documents are written to files in the cache each time they are needed, so that everything
else reads them as it reads the user's own files. Documents stay in the store of ir_datasets.
"""

from __future__ import annotations

import difflib
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rank_k.data.cache_directory import write_cached
from rank_k.data.collections.base import NAME_FORMS, ExcludedDocuments
from rank_k.data.corpus_index import OnProgress
from rank_k.data.lines import json_line
from rank_k.data.passages import missing_passage_error
from rank_k.data.trec import qrels_line, trec_field
from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.types import Passage


class IrDataset:
    """A data set of ir_datasets. Each part is downloaded by ir_datasets when it is first needed.

    ir_datasets shows its own terms of use, and its progress if standard error is a terminal.

    Raises:
        InputError: For an unknown id, a part that the data set lacks, and data that can neither be found nor
            downloaded: one message with all that ir_datasets says about where to get them and where to put them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        known_names = load("ir_datasets").registry
        try:
            self._dataset = load("ir_datasets").load(name)
        except KeyError:
            similar_names = difflib.get_close_matches(name, known_names, 3, 0.8)
            suggestion = f"did you mean {' or '.join(similar_names)}? " if similar_names else ""
            raise InputError(f"there is no data set {name!r}", f"{suggestion}write {NAME_FORMS}") from None

    @property
    def corpus(self) -> IrCorpus:
        self._require_part("docs", "documents")
        return IrCorpus(self.name, self._dataset)

    @cached_property
    def queries(self) -> Path:
        """JSONL: `text` is what ir_datasets takes for the text; all fields that are text are there too."""
        self._require_part("queries", "queries")
        queries = _rows(self.name, "queries", self._dataset.queries_iter)
        return self._write("queries.jsonl", map(_query_line, queries))

    @cached_property
    def qrels(self) -> Path | None:
        """TREC format, without excluded documents. Judged for several subtopics, the highest grade counts."""
        if not self._dataset.has_qrels():
            return None
        grades: dict[tuple[str, str], int] = {}
        for qrel in _rows(self.name, "judgments", self._dataset.qrels_iter):
            if qrel.relevance not in self._excluded_grades:
                pair = (qrel.query_id, qrel.doc_id)
                grades[pair] = max(int(qrel.relevance), grades.get(pair, int(qrel.relevance)))
        return self._write("qrels.trec", (qrels_line(*pair, grade) for pair, grade in grades.items()))

    @cached_property
    def first_stage(self) -> Path | None:
        """The scored documents, in TREC format."""
        if not self._dataset.has_scoreddocs():
            return None
        scored = _rows(self.name, "scored documents", self._dataset.scoreddocs_iter)
        return self._write("run.scoreddocs.trec", map(_run_line, scored))

    @cached_property
    def excluded(self) -> ExcludedDocuments:
        """Documents whose grade means that they are excluded, as in the data sets of BRIGHT."""
        doc_ids_by_query: dict[str, set[str]] = {}
        if self._excluded_grades:
            for qrel in _rows(self.name, "judgments", self._dataset.qrels_iter):
                if qrel.relevance in self._excluded_grades:
                    doc_ids_by_query.setdefault(qrel.query_id, set()).add(qrel.doc_id)
        return {query_id: frozenset(doc_ids) for query_id, doc_ids in doc_ids_by_query.items()}

    @cached_property
    def _excluded_grades(self) -> frozenset[int]:
        if not self._dataset.has_qrels():
            return frozenset()
        meanings = self._dataset.qrels_defs()
        return frozenset(grade for grade, meaning in meanings.items() if "excluded" in str(meaning).lower())

    def _write(self, file_name: str, lines: Iterable[bytes]) -> Path:
        return write_cached(f"ir_datasets/{quote(self.name, safe='')}/{file_name}", lines)

    def _require_part(self, part: str, label: str) -> None:
        if not self._dataset.has(part):
            raise InputError(f"data set {self.name} has no {label}", "name a part of it that has, or give the files")


class IrCorpus:
    """The documents of a data set, with the methods of `CorpusFile`."""

    files: tuple[Path, ...] = ()

    def __init__(self, name: str, dataset: Any) -> None:
        self._name, self._dataset = name, dataset

    def passages(self) -> Iterator[Passage]:
        for document in _rows(self._name, "documents", self._dataset.docs_iter):
            yield Passage(document.doc_id, _text_of(document))

    def store(self, on_progress: OnProgress | None = None) -> IrStore:
        with _errors_as_input_error(self._name, "documents"):
            store = self._dataset.docs_store()
            if hasattr(store, "build"):
                store.build()
        return IrStore(self._name, store)


class IrStore:
    """The documents of a data set by id, from the store of ir_datasets. Any thread may use it."""

    def __init__(self, name: str, store: Any) -> None:
        self._name, self._store, self._lock = name, store, threading.Lock()

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """Return the passage. Raises `InputError` if the data set lacks it; `query_id` is for the message."""
        try:
            with self._lock:
                return Passage(doc_id, _text_of(self._store.get(doc_id)))
        except KeyError:
            raise missing_passage_error(doc_id, query_id, f"data set {self._name}") from None
        except Exception as error:
            raise _unavailable_error(self._name, "documents", error, []) from error

    def close(self) -> None:
        """Do nothing: ir_datasets keeps its files open."""


def _rows(name: str, part: str, iterate: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Yield the rows of a part of a data set. Any error of ir_datasets is raised as an `InputError`."""
    with _errors_as_input_error(name, part):
        rows = iter(iterate())
    while True:
        with _errors_as_input_error(name, part):  # not around `yield`: the caller's errors are its own
            row = next(rows, None)
        if row is None:
            return
        yield row


def _query_line(query: Any) -> bytes:
    fields = {key: value for key, value in query._asdict().items() if isinstance(value, str)}
    return json_line(fields | {"_id": query.query_id, "text": _text_of(query)})


def _run_line(row: Any) -> bytes:
    query_id, doc_id, score = row[:3]
    return b"%b Q0 %b 0 %r scoreddocs\n" % (
        trec_field("query id", query_id),
        trec_field("document id", doc_id),
        float(score),
    )


def _text_of(record: Any) -> str:
    """Return what ir_datasets takes for the text of a query or document, else its first field after the id."""
    if hasattr(record, "default_text"):
        return str(record.default_text() or "")
    return str(getattr(record, "text", record[1]) or "")


@contextmanager
def _errors_as_input_error(name: str, part: str) -> Iterator[None]:
    """Raise whatever goes wrong inside as one `InputError`, with what ir_datasets logged about it before."""
    logger = logging.getLogger("ir_datasets")
    records: list[logging.LogRecord] = []

    def collect_record(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    try:
        with ExitStack() as stack:
            logger.addFilter(collect_record)
            stack.callback(logger.removeFilter, collect_record)
            if not sys.stderr.isatty():
                stack.enter_context(redirect_stderr(io.StringIO()))  # progress bars are for people
            yield
    except InputError:
        raise
    except Exception as error:  # ir_datasets and its readers raise all kinds
        raise _unavailable_error(name, part, error, records) from error
    for record in records:
        if "agree" in record.getMessage():  # to the terms of use
            logger.handle(record)


def _unavailable_error(name: str, part: str, error: Exception, records: Iterable[logging.LogRecord]) -> InputError:
    messages = dict.fromkeys(record.getMessage() for record in records if record.levelno == logging.INFO)
    hints = [message for message in messages if not message.startswith(("[", "download error"))]
    urls = ", ".join(_attempted_urls(error))
    if urls:
        problem = f"the {part} of {name} are not on this machine and cannot be downloaded ({urls})"
    else:
        problem = f"the {part} of {name} cannot be read ({type(error).__name__}: {str(error)[:200]})"
    home = load("ir_datasets").util.home_path()
    documentation_url = f"https://ir-datasets.com/{name.partition('/')[0]}.html"
    copy_hint = (
        f"run this once where they can be downloaded and copy {home / name.partition('/')[0]} here,"
        f" see {documentation_url}"
    )
    return InputError(problem, " ".join(hints) if any(str(home) in hint for hint in hints) else copy_hint)


def _attempted_urls(error: BaseException) -> list[str]:
    """Return the URLs that were tried: those of an HTTP request or of all mirrors, which an error may have as pairs."""
    lists_of_mirrors = [argument for argument in error.args if isinstance(argument, list)]
    mirrors = [
        attempt[0] for attempt in chain.from_iterable(lists_of_mirrors) if isinstance(attempt, tuple) and attempt
    ]
    urls = [getattr(source, "url", None) for source in (getattr(error, "request", None), *mirrors)]
    return [str(url) for url in dict.fromkeys(urls) if url is not None]
