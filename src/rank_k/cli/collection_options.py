"""The options that name a collection, shared by the commands that need one."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from rank_k.data.collections.base import CorpusFile, ExcludedDocuments
from rank_k.data.collections.registry import Collection, Corpus, find_collection
from rank_k.data.corpus_index import OnProgress
from rank_k.errors import InputError

DATASET_HELP = "beir:DIR, bright:SUBSET, python-docs or an ir_datasets id"


def add_collection_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("collection", "files may be compressed (.gz, .zst); see docs/collections.md")
    dataset_help = f"{DATASET_HELP}; stands for queries, documents and qrels together"
    group.add_argument("--dataset", metavar="NAME", help=dataset_help)
    group.add_argument("--queries", type=Path, metavar="FILE", help="JSONL (_id, text), TSV or TREC topics")
    group.add_argument("--documents", type=Path, metavar="FILE", help="JSONL (_id, title, text) or TSV")


@dataclass(frozen=True, slots=True)
class ResolvedCollection:
    """The collection that the options name. Single files replace parts of it, or are all there is of it."""

    queries: Path
    corpus: Corpus
    collection: Collection | None

    @property
    def excluded(self) -> ExcludedDocuments:
        return {} if self.collection is None else self.collection.excluded

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's files that are read and must not be overwritten."""
        return (self.queries, *self.corpus.files)

    def find_run_file(self, file: Path | None) -> Path:
        """Return the run to rerank: `file`, or else the collection's own. Raises `InputError` if there is none."""
        run_file = file or (self.collection.first_stage if self.collection is not None else None)
        if run_file is None:
            run_files = getattr(self.collection, "runs", ())
            suggestion = f", such as {run_files[0]}" if run_files else "; rank-k retrieve makes one"
            raise InputError("--run is missing", f"give --run FILE{suggestion}")
        return run_file


def resolve_collection(args: argparse.Namespace) -> ResolvedCollection:
    """Return the collection of --dataset, --queries and --documents. Raises `InputError` if a part is missing."""
    collection = find_named_collection(args.dataset) if args.dataset else None
    queries: Path | None = args.queries
    corpus: Corpus | None = None if args.documents is None else CorpusFile(args.documents)
    if collection is not None:
        queries, corpus = queries or collection.queries, corpus or collection.corpus
    if queries is None or corpus is None:
        option = "--queries" if queries is None else "--documents"
        raise InputError(f"{option} is missing", f"give {option} FILE, or --dataset with {DATASET_HELP}")
    return ResolvedCollection(queries, corpus, collection)


def find_named_collection(name: str) -> Collection:
    """Return the collection that --dataset names. Raises `InputError`."""
    return find_collection(name)


def index_progress(quiet: bool) -> OnProgress | None:
    """Return the function that shows the progress of an index in a terminal; None if there is nothing to show it."""
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        line = f"indexing the documents: {done / max(total, 1):.0%}" if done < total else ""
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return show
