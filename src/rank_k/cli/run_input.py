"""The input of a command that reranks a run: queries, candidates and documents. It is checked before the first call."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rank_k.cli.collection_options import RequestedCollection, add_collection_options
from rank_k.cli.common_flags import add_flags, select_queries
from rank_k.data.collections.base import RunWithoutExcluded
from rank_k.data.collections.registry import DocumentStore
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunFile
from rank_k.errors import InputError
from rank_k.scale.shards import Shard
from rank_k.types import Candidate, PassageSource, Query


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the run, its queries and its documents."""
    add_flags(parser, "--run")
    add_collection_options(parser)
    add_flags(parser, "--limit", "--only")
    parser.add_argument(
        "--query-fields",
        metavar="NAMES",
        help="fields of the queries to show to the model, such as title,description,narrative (default: text)",
    )


class RunInput:
    """A first-stage run with its queries and documents.

    Args:
        args: The options of the command.
        shard: The part of the queries to rerank (default: all).

    Attributes:
        files: The files that are read.
        first_stage: The complete first-stage run.
        queries: The queries by id.
        all_query_ids: The ids of the run's queries that --limit and --only select.
        query_ids: The ids among them that belong to the shard.
        candidates: The candidates of these queries, without documents that the data set excludes.

    Raises:
        InputError: If a file cannot be read, or a query has no text.
    """

    def __init__(self, args: argparse.Namespace, shard: Shard | None = None) -> None:
        self._collection = RequestedCollection(args)
        run_file = self._collection.file("run")
        self.files: tuple[Path, ...] = (run_file, *self._collection.files)
        self.first_stage = RunFile(run_file)
        self.queries: Mapping[str, Query] = read_queries(self._collection.queries, args.query_fields)
        self.all_query_ids = _select_queries(args, self.first_stage, self.queries, self._collection.queries)
        self.query_ids = [query_id for query_id in self.all_query_ids if shard is None or shard.contains(query_id)]
        self.candidates = RunWithoutExcluded(
            _SelectedQueries(self.first_stage, self.query_ids), self._collection.excluded
        )

    def open_documents(self, depth: int, *, quiet: bool) -> DocumentStore:
        """Return a store of the documents. Raises `InputError` if a candidate up to rank `depth` has no text."""
        store = self._collection.open_store(quiet=quiet)
        try:
            _check_documents(self.candidates, store, depth)
        except BaseException:
            store.close()
            raise
        return store


class _SelectedQueries:
    """The part of a run with the given query ids. Like the run, it can be iterated more than once."""

    def __init__(self, run: RunFile, query_ids: Iterable[str]) -> None:
        self._run = run
        self._query_ids = frozenset(query_ids)

    def __iter__(self) -> Iterator[tuple[str, Sequence[Candidate]]]:
        return (pair for pair in self._run if pair[0] in self._query_ids)


def _select_queries(
    args: argparse.Namespace, first_stage: RunFile, queries: Mapping[str, Query], file: Path
) -> list[str]:
    """Return the ids of the run's queries that are to be reranked.

    Queries of the run without a text are left out if --limit or --only is given. Without these options they are an
    error, because the run and the queries probably do not belong together.
    """
    missing_ids = [query_id for query_id in first_stage.query_ids if query_id not in queries]
    is_part = "limit" in args or "only" in args
    if missing_ids and (not is_part or len(missing_ids) == len(first_stage)):
        raise InputError(
            f"{len(missing_ids)} of the run's {len(first_stage)} queries are not in {file}, for example"
            f" {', '.join(missing_ids[:3])}",
            "give the queries of the run, or rerank only some of them with --limit N or --only ID",
        )
    return select_queries(args, (query_id for query_id in first_stage.query_ids if query_id in queries))


def _check_documents(run: Iterable[tuple[str, Sequence[Candidate]]], store: PassageSource, depth: int) -> None:
    """Raise `InputError` if a candidate has no text, so that this error is reported before calls cost money."""
    for query_id, candidates in run:
        for candidate in candidates[:depth]:
            store.get(candidate.doc_id, query_id)
