"""Collections in the directory layout of BEIR (Thakur et al., 2021)."""

from __future__ import annotations

from pathlib import Path

from rank_k.data.collections.base import CollectionFiles
from rank_k.errors import InputError

_SUFFIXES = ("", ".gz", ".zst")


def load_beir(directory: str) -> CollectionFiles:
    """Return the files of a collection. They are neither read nor downloaded.

    The documents are in `corpus.jsonl`. The queries are in `queries.test.jsonl` or else `queries.jsonl`. The judgments
    are in `qrels/test.tsv`, or else `qrels.test.trec` or `qrels.trec`. Files may be compressed (`.gz`, `.zst`).

    Args:
        directory: The directory. `~` stands for the home directory.

    Raises:
        InputError: If the directory does not exist, or has no documents or no queries.
    """
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        problem = f"dataset beir:{directory}: {folder} is not a directory"
        raise InputError(problem, "give the directory that contains corpus.jsonl")
    return CollectionFiles(
        documents=_required_file(folder, ["corpus.jsonl"], "documents"),
        queries=_required_file(folder, ["queries.test.jsonl", "queries.jsonl"], "queries"),
        qrels=_first_present_file(folder, ["qrels/test.tsv", "qrels.test.trec", "qrels.trec"]),
        runs=tuple(sorted(path for suffix in _SUFFIXES for path in folder.glob(f"run.*.trec{suffix}"))),
    )


def _first_present_file(folder: Path, names: list[str]) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in _SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _required_file(folder: Path, names: list[str], description: str) -> Path:
    path = _first_present_file(folder, names)
    if path is None:
        raise InputError(f"{folder} has no {description}", f"put {' or '.join(names)} (or .gz, .zst) there")
    return path
