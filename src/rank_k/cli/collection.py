"""The options that name a collection, shared by the verbs that need one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rank_k.data.collections import CollectionFiles


def add_collection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("collection")
    group.add_argument("--dataset", metavar="NAME", help="beir:DIR; stands for queries, documents and qrels together")
    group.add_argument("--queries", type=Path, metavar="FILE", help="JSONL (_id, text) or TSV; .gz as it is")
    group.add_argument("--documents", type=Path, metavar="FILE", help="JSONL (_id, title, text) or TSV; .gz as it is")


def named_files(args: argparse.Namespace) -> tuple[Path, Path]:
    """The files of (queries, documents). Raises `InputError` if one is not named."""
    from rank_k.errors import InputError

    queries, documents = args.queries, args.documents
    if args.dataset:
        files = collection(args.dataset)
        queries, documents = queries or files.queries, documents or files.documents
    for name, value in (("--queries", queries), ("--documents", documents)):
        if value is None:
            raise InputError(f"{name} is missing", f"give {name} FILE, or --dataset beir:DIR")
    return queries, documents


def collection(name: str) -> CollectionFiles:
    from rank_k.data.collections import load_collection

    return load_collection(name)
