"""The options that name a collection, shared by the commands that need one."""

from __future__ import annotations

import argparse
from pathlib import Path

from rank_k.cli.progress import progress_bar
from rank_k.data.collections.base import CorpusFile, ExcludedDocuments
from rank_k.data.collections.registry import Corpus, DocumentStore, find_collection
from rank_k.errors import InputError

DATASET_HELP = "beir:DIR, bright:SUBSET, python-docs or an ir_datasets id"


def add_collection_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "collection", "files may be compressed (.gz, .zst); see docs/how-to/collections.md"
    )
    group.add_argument(
        "--dataset", metavar="NAME", help=f"{DATASET_HELP}; stands for queries, documents and qrels together"
    )
    group.add_argument("--queries", type=Path, metavar="FILE", help="JSONL (_id, text), TSV or TREC topics")
    group.add_argument("--documents", type=Path, metavar="FILE", help="JSONL (_id, title, text) or TSV")


class RequestedCollection:
    """The data set that --dataset names, with files that replace its parts, or files alone.

    A part is looked up when it is used; ir_datasets downloads it only then.

    Args:
        args: The options of the command. Those that the command does not have count as not given.

    Raises:
        InputError: If there is no such data set.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._options = vars(args)
        self.name: str | None = args.dataset
        self._dataset = find_collection(args.dataset) if args.dataset else None

    @property
    def excluded(self) -> ExcludedDocuments:
        """The documents that must not be ranked."""
        return {} if self._dataset is None else self._dataset.excluded

    @property
    def queries(self) -> Path:
        """The queries. Raises `InputError` if there are none."""
        return self.file("queries")

    @property
    def corpus(self) -> Corpus:
        """The documents. Raises `InputError` if there are none."""
        if (file := self._options["documents"]) is not None:
            return CorpusFile(file)
        if self._dataset is None:
            raise self._missing_part_error("documents")
        return self._dataset.corpus

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's files that are read and must not be overwritten."""
        return (self.queries, *self.corpus.files)

    def open_store(self, *, quiet: bool = False) -> DocumentStore:
        """Return the documents by id, which must be closed. Shows how far they are indexed, unless `quiet`."""
        with progress_bar("indexing the documents", quiet=quiet) as update:
            return self.corpus.store(update)

    def find_file(self, option: str) -> Path | None:
        """Return the file that `option` (queries, qrels or run) names, or else the data set's own.

        Returns:
            The file; None if there is neither.
        """
        attribute = "first_stage" if option == "run" else option
        file: Path | None = self._options.get(option)
        if file is None and self._dataset is not None:
            file = getattr(self._dataset, attribute)
        return file

    def file(self, option: str) -> Path:
        """Return what `find_file` returns. Raises `InputError` if there is no file."""
        if (file := self.find_file(option)) is None:
            raise self._missing_part_error(option)
        return file

    def _missing_part_error(self, option: str) -> InputError:
        note = f" ({self.name} has none)" if self.name else ""
        alternative = "" if self.name else f", or --dataset with {DATASET_HELP}"
        if option == "run":
            run_files = getattr(self._dataset, "runs", ())
            alternative = f", such as {run_files[0]}" if run_files else "; rank-k retrieve makes one"
        return InputError(f"--{option} is missing{note}", f"give --{option} FILE{alternative}")
