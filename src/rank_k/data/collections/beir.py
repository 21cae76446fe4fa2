"""Folders in the layout of BEIR (Thakur et al. 2021)."""

from __future__ import annotations

from pathlib import Path

from rank_k.data.collections.base import CollectionFiles
from rank_k.errors import InputError

_SUFFIXES = ("", ".gz", ".zst")


def load_beir(directory: str, split: str = "test") -> CollectionFiles:
    """The files of a folder: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

    Judgments may also be `qrels.<split>.trec`, or `qrels.trec` for the split "test", and `queries.<split>.jsonl` goes
    before `queries.jsonl`. Each may be compressed (`.gz`, `.zst`). Nothing is read or downloaded.

    Raises `InputError` naming what is missing and where it was looked for.
    """
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise InputError(f"dataset beir:{directory}: {folder} is no folder", "name the one that holds corpus.jsonl")
    qrels_names = [f"qrels/{split}.tsv", f"qrels.{split}.trec", *(["qrels.trec"] if split == "test" else [])]
    qrels = _first_present_file(folder, qrels_names)
    if qrels is None and (splits := _judged_splits(folder)):
        raise InputError(
            f"dataset beir:{directory} has no judgments for the split {split!r} (looked for {', '.join(qrels_names)})",
            f"choose one of the splits {', '.join(splits)}",
        )
    return CollectionFiles(
        documents=_required_file(folder, ["corpus.jsonl"], "documents"),
        queries=_required_file(folder, [f"queries.{split}.jsonl", "queries.jsonl"], "queries"),
        qrels=qrels,
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


def _judged_splits(folder: Path) -> list[str]:
    tsv_splits = {path.name.partition(".tsv")[0] for path in folder.glob("qrels/*.tsv*")}
    trec_splits = {path.name.split(".")[1] for path in folder.glob("qrels.*.trec*")}
    default_split = {"test"} if _first_present_file(folder, ["qrels.trec"]) else set()
    return sorted(tsv_splits | trec_splits | default_split)
