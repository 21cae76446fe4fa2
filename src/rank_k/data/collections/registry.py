"""Find collections by name: BEIR directories, BRIGHT, Python's documentation and the datasets of ir_datasets."""

from __future__ import annotations

from rank_k.data.collections.base import NAME_FORMS, CollectionFiles, CorpusFile
from rank_k.data.collections.beir import load_beir
from rank_k.data.collections.bright import load_bright
from rank_k.data.collections.demo import COLLECTION_NAME, load_python_docs
from rank_k.data.collections.ir_datasets import IrCorpus, IrDataset, IrStore
from rank_k.data.corpus_index import CorpusIndex
from rank_k.errors import InputError

Collection = CollectionFiles | IrDataset
"""A collection. Its queries, judgments and first-stage run are files; its corpus is a `Corpus`."""

Corpus = CorpusFile | IrCorpus
"""The documents of a collection: `passages` yields all, and `store` opens them for access by id."""

DocumentStore = CorpusIndex | IrStore
"""An open corpus, which must be closed. It is a `rank_k.types.PassageSource`."""


def find_collection(name: str) -> Collection:
    """Return a collection by its name.

    Args:
        name: `beir:DIR` for a directory, `bright:SUBSET` or `bright:DIR/SUBSET` for a subset of BRIGHT, `python-docs`
            for the documentation of the running Python, or an id of ir_datasets.

    Raises:
        InputError: If there is no such collection, or if it is not on this machine and cannot be downloaded. The
            message says which files to get and where to put them.
        MissingExtra: If the package that reads the collection is not installed.
    """
    scheme, _, location = name.partition(":")
    if scheme == "beir" and location:
        return load_beir(location)
    if scheme == "bright" and location:
        return load_bright(location)
    if name == COLLECTION_NAME:
        return load_python_docs()
    if ":" in name:
        raise InputError(f"dataset {name!r} is unknown", f"write {NAME_FORMS}")
    return IrDataset(name)
