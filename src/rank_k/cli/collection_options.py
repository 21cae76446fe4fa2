"""The collection that a command uses: --dataset, or files for its parts."""

from __future__ import annotations

import argparse
from pathlib import Path

from rank_k.cli.common_flags import DATASET_HELP, add_flags
from rank_k.cli.progress import progress_bar
from rank_k.data.collections.base import CorpusFile, ExcludedDocuments
from rank_k.data.collections.registry import Corpus, DocumentStore, find_collection
from rank_k.errors import InputError


def add_collection_options(parser: argparse.ArgumentParser) -> None:
    """Add --dataset, --queries and --documents."""
    group = parser.add_argument_group("collection", "files may be compressed; see docs/how-to/collections.md")
    add_flags(group, "--dataset", "--queries", "--documents")


class RequestedCollection:
    """The data set given with --dataset. Files given with other options replace parts of it, or all of it.

    Each part is loaded when it is first used, because ir_datasets may have to download it.

    Args:
        args: The options of the command. Commands may lack some of the options of a collection.

    Raises:
        InputError: If --dataset names an unknown data set.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._options = vars(args)
        self.name: str | None = args.dataset
        self._dataset = find_collection(args.dataset) if args.dataset else None

    @property
    def excluded(self) -> ExcludedDocuments:
        """The documents that are excluded from the rankings of a query, by query id."""
        return {} if self._dataset is None else self._dataset.excluded

    @property
    def queries(self) -> Path:
        """The file with the queries. Raises `InputError` if there is none."""
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
        """The files that the command reads, which it must not overwrite."""
        return (self.queries, *self.corpus.files)

    def open_store(self, *, quiet: bool = False) -> DocumentStore:
        """Return a store of the documents, which the caller closes. Shows the progress of indexing, unless `quiet`."""
        with progress_bar("indexing the documents", quiet=quiet) as update:
            return self.corpus.store(update)

    def find_file(self, option: str) -> Path | None:
        """Return the file that the user gave for `option`, or else the file of the data set; None if there is neither.

        Args:
            option: "queries", "qrels" or "run".
        """
        attribute = "first_stage" if option == "run" else option
        file: Path | None = self._options.get(option)
        if file is None and self._dataset is not None:
            file = getattr(self._dataset, attribute)
        return file

    def file(self, option: str) -> Path:
        """Return the file for `option`, as `find_file` does. Raises `InputError` if there is none."""
        if (file := self.find_file(option)) is None:
            raise self._missing_part_error(option)
        return file

    def _missing_part_error(self, option: str) -> InputError:
        note = f" ({self.name} has none)" if self.name else ""
        alternative = "" if self.name else f", or --dataset with {DATASET_HELP}"
        if option == "run":
            run_files = getattr(self._dataset, "runs", ())
            alternative = f", such as {run_files[0]}" if run_files else ", or create one with rank-k retrieve"
        return InputError(f"--{option} is missing{note}", f"give --{option} FILE{alternative}")
