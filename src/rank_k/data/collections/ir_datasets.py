"""The datasets of ir_datasets (MacAvaney et al., SIGIR 2021).

Queries, judgments and scored documents are written to files in the cache whenever they are needed, so that the rest of
Rank-K can read them like any other files. Documents stay in the store of ir_datasets.
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
    """A dataset of ir_datasets, which downloads each part when it is first needed.

    ir_datasets prints terms of use, and its progress if standard error is a terminal.

    Args:
        name: The id of the dataset.

    Raises:
        InputError: If the id is unknown, if the dataset lacks a part, or if a part cannot be downloaded. The message
            then includes the instructions of ir_datasets: where to get the data and where to put them.
        MissingExtra: If ir_datasets is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        known_names = load("ir_datasets").registry
        try:
            self._dataset = load("ir_datasets").load(name)
        except KeyError:
            similar_names = difflib.get_close_matches(name, known_names, 3, 0.8)
            suggestion = f"did you mean {' or '.join(similar_names)}? " if similar_names else ""
            raise InputError(f"there is no dataset {name!r}", f"{suggestion}write {NAME_FORMS}") from None

    @property
    def corpus(self) -> IrCorpus:
        self._require_part("docs", "documents")
        return IrCorpus(self.name, self._dataset)

    @cached_property
    def queries(self) -> Path:
        """The queries as a JSONL file. `text` is the default text in ir_datasets; other text fields are included."""
        self._require_part("queries", "queries")
        queries = _rows(self.name, "queries", self._dataset.queries_iter)
        return self._write("queries.jsonl", map(_query_line, queries))

    @cached_property
    def qrels(self) -> Path | None:
        """The judgments in TREC format, without excluded documents. With several subtopics, the highest grade counts.

        None if there are no judgments.
        """
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
        """The scored documents as a run in TREC format; None if there are none."""
        if not self._dataset.has_scoreddocs():
            return None
        scored = _rows(self.name, "scored documents", self._dataset.scoreddocs_iter)
        return self._write("run.scoreddocs.trec", map(_run_line, scored))

    @cached_property
    def excluded(self) -> ExcludedDocuments:
        """Documents that must not be ranked because their grade means "excluded", as in the datasets of BRIGHT."""
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
            raise InputError(
                f"dataset {self.name} has no {label}", f"give the id of a subset that has {label}, or give the files"
            )


class IrCorpus:
    """The documents of a dataset, with the methods of `CorpusFile`."""

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
    """The documents of a dataset by id, from the store of ir_datasets. Any thread may use it."""

    def __init__(self, name: str, store: Any) -> None:
        self._name, self._store, self._lock = name, store, threading.Lock()

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """Return a passage.

        Args:
            doc_id: The id of the passage.
            query_id: The query whose candidate it is, for error messages.

        Raises:
            InputError: If the dataset has no such document, or if it cannot be read.
        """
        try:
            with self._lock:
                return Passage(doc_id, _text_of(self._store.get(doc_id)))
        except KeyError:
            raise missing_passage_error(doc_id, query_id, f"dataset {self._name}") from None
        except Exception as error:
            raise _unavailable_error(self._name, "documents", error, []) from error

    def close(self) -> None:
        """Do nothing, because ir_datasets keeps its files open."""


def _rows(name: str, part: str, iterate: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Yield the rows of a part of a dataset. Errors of ir_datasets are raised as `InputError`.

    Args:
        name: The id of the dataset.
        part: The part, for error messages.
        iterate: Returns the rows.
    """
    with _errors_as_input_error(name, part):
        rows = iter(iterate())
    while True:
        with _errors_as_input_error(
            name, part
        ):  # `yield` is outside the context, because the context would suppress output of the caller
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
    """Return the default text of a query or document in ir_datasets, or else the first field after its id."""
    if hasattr(record, "default_text"):
        return str(record.default_text() or "")
    return str(getattr(record, "text", record[1]) or "")


@contextmanager
def _errors_as_input_error(name: str, part: str) -> Iterator[None]:
    """Raise any exception as an `InputError`, which includes the instructions that ir_datasets has logged.

    Args:
        name: The id of the dataset.
        part: The part that is read, for error messages.
    """
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
                stack.enter_context(redirect_stderr(io.StringIO()))  # no progress bars in log files
            yield
    except InputError:
        raise
    except Exception as error:  # ir_datasets and its readers raise many kinds of errors
        raise _unavailable_error(name, part, error, records) from error
    for record in records:
        if "agree" in record.getMessage():  # a request to agree to the terms of use
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
        f"run this once on a machine that can download them and copy {home / name.partition('/')[0]} from there;"
        f" see {documentation_url}"
    )
    return InputError(problem, " ".join(hints) if any(str(home) in hint for hint in hints) else copy_hint)


def _attempted_urls(error: BaseException) -> list[str]:
    """Return the URLs that could not be downloaded: the URL of a failed HTTP request, or of each mirror tried."""
    lists_of_mirrors = [argument for argument in error.args if isinstance(argument, list)]
    mirrors = [
        attempt[0] for attempt in chain.from_iterable(lists_of_mirrors) if isinstance(attempt, tuple) and attempt
    ]
    urls = [getattr(source, "url", None) for source in (getattr(error, "request", None), *mirrors)]
    return [str(url) for url in dict.fromkeys(urls) if url is not None]
