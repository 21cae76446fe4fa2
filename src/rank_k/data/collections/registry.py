"""Collections by name: BEIR folders, BRIGHT, Python's documentation and ir_datasets."""

from __future__ import annotations

from rank_k.data.collections.base import NAME_FORMS, Collection, CollectionFiles
from rank_k.data.collections.beir import load_beir
from rank_k.errors import InputError


def find_collection(name: str) -> Collection:
    """The collection called `name`: files on disk (see `load_collection`), "python-docs" (Python's own documentation,
    which is on every machine), or else an id of ir_datasets.

    Raises `InputError` saying what is missing, what to get and where to put it; `MissingExtra`.
    """
    if ":" in name:
        return load_collection(name)
    if name == "python-docs":
        from rank_k.data.collections.demo import load_python_docs

        return load_python_docs()
    from rank_k.data.collections.ir_datasets import IrDataset

    return IrDataset(name)


def load_collection(name: str, split: str = "test") -> CollectionFiles:
    """The files of the collection called `name`.

    `beir:DIR`: see `rank_k.data.collections.beir`, which also explains `split`. `bright:SUBSET` and
    `bright:DIR/SUBSET`: see `rank_k.data.collections.bright`.

    Raises `InputError` naming what is missing and where it was looked for.
    """
    scheme, _, location = name.partition(":")
    if scheme == "bright" and location:
        from rank_k.data.collections.bright import load_bright

        return load_bright(location)
    if scheme == "beir" and location:
        return load_beir(location, split)
    raise InputError(f"dataset {name!r} is not understood", f"write {NAME_FORMS}")
