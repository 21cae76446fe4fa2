"""Collections by name: BEIR folders, BRIGHT, Python's documentation and ir_datasets."""

from __future__ import annotations

from rank_k.data.collections.base import NAME_FORMS, CollectionFiles, CorpusFile
from rank_k.data.collections.beir import load_beir
from rank_k.data.collections.bright import load_bright
from rank_k.data.collections.demo import COLLECTION_NAME, load_python_docs
from rank_k.data.collections.ir_datasets import IrCorpus, IrDataset, IrStore
from rank_k.data.corpus_index import CorpusIndex
from rank_k.errors import InputError

Collection = CollectionFiles | IrDataset
"""Queries, judgments and first stage are paths of files; the corpus is a `Corpus`."""

Corpus = CorpusFile | IrCorpus
"""All documents of a collection, one by one (`passages`) or by id (`store`)."""

DocumentStore = CorpusIndex | IrStore
"""An open corpus: a `rank_k.types.PassageSource` that must be closed."""


def find_collection(name: str) -> Collection:
    """Return the collection called `name`.

    `beir:DIR` is a folder, `bright:SUBSET` and `bright:DIR/SUBSET` are subsets of BRIGHT, `python-docs` is Python's own
    documentation, which is on every machine; any other name is an id of ir_datasets.

    Raises `InputError` saying what is missing, what to get and where to put it; `MissingExtra`.
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
