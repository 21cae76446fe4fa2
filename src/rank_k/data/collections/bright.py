"""BRIGHT (Su et al., ICLR 2025) in its published layout: `documents/SUBSET*` and `examples/SUBSET*`, as parquet or
JSONL.

    documents   id, content
    examples    id, query, gold_ids, excluded_ids (documents that must not be ranked; "N/A" where there are none)

They lie in the folder that is named (`bright:DIR/SUBSET`), else in `BRIGHT` in the folder that RANK_K_DATA names
(`bright:SUBSET`), else in the Hugging Face cache or hub, with the package huggingface_hub. What the rest of Rank-K
reads as files is written to the cache, once for each state of these.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from glob import escape
from pathlib import Path
from typing import Any

from rank_k.data.cache_directory import cache_directory, write_cached
from rank_k.data.collections.registry import CollectionFiles
from rank_k.data.files import read_objects, trec_field
from rank_k.errors import FormatError, InputError, MissingExtra
from rank_k.optional_deps import load

REPOSITORY = "xlangai/BRIGHT"
SUBSETS = (
    *("biology", "earth_science", "economics", "psychology", "robotics", "stackoverflow", "sustainable_living"),
    *("leetcode", "pony", "aops", "theoremqa_questions", "theoremqa_theorems"),
)
"""Those that are published. A folder may hold others."""

_COLUMNS = {"documents": ("id", "content"), "examples": ("id", "query", "gold_ids", "excluded_ids")}


def load_bright(place: str) -> CollectionFiles:
    """The files of a subset: `SUBSET` or `DIR/SUBSET`.

    Raises `InputError` saying what to get and where to put it, `FormatError` for files of another layout,
    `MissingExtra` where there is parquet and nothing to read it with.
    """
    folder, _, subset = place.rpartition("/")
    if not subset:
        raise InputError(f"bright:{place} names no subset", f"write bright:{place}SUBSET, such as {SUBSETS[0]}")
    parts = _located(Path(folder or "/").expanduser() if "/" in place else None, subset)
    state = [(os.path.realpath(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(_all(parts))]
    kept = f"bright/{subset}-{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]}"
    examples = list(_rows(parts["examples"], "examples"))
    excluded = {row["id"]: frozenset(_ids(row, "excluded_ids")) for row in examples}
    return CollectionFiles(
        documents=_documents(parts["documents"], f"{kept}/corpus.jsonl"),
        queries=_kept(f"{kept}/queries.jsonl", (_json({"_id": row["id"], "text": row["query"]}) for row in examples)),
        qrels=_kept(f"{kept}/qrels.trec", (line for row in examples for line in _judgments(row))),
        excluded={query_id: doc_ids for query_id, doc_ids in excluded.items() if doc_ids},
    )


def _located(folder: Path | None, subset: str) -> dict[str, list[Path]]:
    """The files of each part. Asks the hub only if no folder is named and none on this machine has them."""
    data = os.environ.get("RANK_K_DATA")
    root = folder or (Path(data).expanduser() / "BRIGHT" if data else None)
    problem = "" if root is None else f"not in {root}"
    if root is not None and _all(parts := _parts(root, subset)):
        if missing := [part for part, paths in parts.items() if not paths]:
            raise InputError(f"{root} has no {missing[0]} of {subset}", _remedy(subset, root))
        return parts
    if folder is None and subset not in SUBSETS:
        raise InputError(
            f"BRIGHT has no subset {subset!r}", f"choose one of {', '.join(SUBSETS)}, or bright:DIR/SUBSET"
        )
    if folder is None:
        patterns = [f"{part}/{subset}-*" for part in _COLUMNS]
        try:
            hub = load("huggingface_hub")
            root = Path(hub.snapshot_download(REPOSITORY, repo_type="dataset", allow_patterns=patterns))
            parts = _parts(root, subset)
            if all(parts.values()):
                return parts
            why = "the copy in its cache is not whole"
        except MissingExtra as error:
            why = f"to download it, {error.remedy}"
        except Exception as error:  # whatever its HTTP client raises
            why = f"it cannot be downloaded: {type(error).__name__}"
        problem = f"{problem or 'RANK_K_DATA is not set'}; {why}"
    raise InputError(f"BRIGHT's {subset} is not on this machine ({problem})", _remedy(subset, folder))


def _remedy(subset: str, folder: Path | None) -> str:
    there = str(folder) if folder else "$RANK_K_DATA/BRIGHT, or into any folder DIR and name bright:DIR/" + subset
    return (
        f"get documents/{subset}-*.parquet and examples/{subset}-*.parquet of"
        f" https://huggingface.co/datasets/{REPOSITORY} and put them, in these two folders, into {there}"
    )


def _parts(root: Path, subset: str) -> dict[str, list[Path]]:
    shards = (
        f"{escape(subset)}{middle}{suffix}"
        for middle in ("", "-*-of-*")
        for suffix in (".parquet", ".jsonl", ".jsonl.*")
    )
    names = list(shards)
    return {part: sorted(p for name in names for p in (root / part).glob(name) if p.is_file()) for part in _COLUMNS}


def _all(parts: dict[str, list[Path]]) -> list[Path]:
    return [path for paths in parts.values() for path in paths]


def _documents(paths: list[Path], kept: str) -> Path:
    if len(paths) == 1 and paths[0].suffix != ".parquet":
        return paths[0]  # JSONL that can be read as it is
    return _kept(kept, (_json({"_id": row["id"], "text": row["content"]}) for row in _rows(paths, "documents")))


def _kept(name: str, lines: Iterable[bytes]) -> Path:
    path = cache_directory() / name
    return path if path.is_file() else write_cached(name, lines)


def _rows(paths: list[Path], part: str) -> Iterator[dict[str, Any]]:
    """The rows of a part, ids as strings; every row has the columns it must have."""
    for path in paths:
        for number, row in _parquet_rows(path, part) if path.suffix == ".parquet" else read_objects(path, part):
            for column in _COLUMNS[part][:2]:
                if not isinstance(row.get(column), str | int):
                    expected = f"the columns {', '.join(_COLUMNS[part])}"
                    raise FormatError(path, number, f"no {column}", expected)
            yield row | {"id": str(row["id"])}


def _parquet_rows(path: Path, part: str) -> Iterator[tuple[int, dict[str, Any]]]:
    parquet, pyarrow = load("pyarrow.parquet"), load("pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in _COLUMNS[part] if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise FormatError(path, 0, f"no parquet data ({error})", "a file as BRIGHT publishes it") from error


def _ids(row: dict[str, Any], column: str) -> list[str]:
    return [str(value) for value in row.get(column) or () if value not in (None, "", "N/A")]


def _judgments(row: dict[str, Any]) -> Iterator[bytes]:
    for doc_id in dict.fromkeys(_ids(row, "gold_ids")):
        yield b"%b 0 %b 1\n" % (trec_field("query id", row["id"]), trec_field("document id", doc_id))


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
