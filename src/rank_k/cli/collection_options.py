"""The options that name a collection, shared by the verbs that need one."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rank_k.data.collections.base import Collection, Corpus, ExcludedDocuments
    from rank_k.data.corpus_index import OnProgress

DATASET_HELP = "beir:DIR, bright:SUBSET, python-docs or an ir_datasets id"


def add_collection_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("collection", "files may be compressed (.gz, .zst); see docs/collections.md")
    dataset_help = f"{DATASET_HELP}; stands for queries, documents and qrels together"
    group.add_argument("--dataset", metavar="NAME", help=dataset_help)
    group.add_argument("--queries", type=Path, metavar="FILE", help="JSONL (_id, text), TSV or TREC topics")
    group.add_argument("--documents", type=Path, metavar="FILE", help="JSONL (_id, title, text) or TSV")


@dataclass(frozen=True, slots=True)
class ResolvedCollection:
    """What the options name: a collection, or the files that stand in for its parts."""

    queries: Path
    corpus: Corpus
    collection: Collection | None

    @property
    def excluded(self) -> ExcludedDocuments:
        return {} if self.collection is None else self.collection.excluded

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read, and must not be written over."""
        return (self.queries, *self.corpus.files)

    def find_run_file(self, file: Path | None) -> Path:
        """The run to rerank: `file`, or else the collection's own. Raises `InputError` if there is none."""
        from rank_k.errors import InputError

        default_run = self.collection.first_stage if file is None and self.collection is not None else None
        if (run_file := file or default_run) is None:
            run_files = getattr(self.collection, "runs", ())
            suggestion = f", such as {run_files[0]}" if run_files else "; rank-k retrieve makes one"
            raise InputError("--run is missing", f"give --run FILE{suggestion}")
        return run_file


def resolve_collection(args: argparse.Namespace) -> ResolvedCollection:
    """What --dataset, --queries and --documents name. Raises `InputError` if one is not named."""
    from rank_k.data.collections.base import CorpusFile
    from rank_k.errors import InputError

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
    from rank_k.data.collections.registry import find_collection

    return find_collection(name)


def index_progress(quiet: bool) -> OnProgress | None:
    """Shows how far the making of an index has come, to people only."""
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        line = f"indexing the documents: {done / max(total, 1):.0%}" if done < total else ""
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return show
