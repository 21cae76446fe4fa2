"""BRIGHT (Su et al., ICLR 2025) in its published layout: `documents/SUBSET*` and `examples/SUBSET*`, Parquet or JSONL.

    documents   id, content
    examples    id, query, gold_ids, excluded_ids (documents that must not be ranked; "N/A" if there are none)

`bright:DIR/SUBSET` reads the files in DIR. `bright:SUBSET` reads them in the directory `BRIGHT` of RANK_K_DATA, or else
in the Hugging Face cache; if they are not there, huggingface_hub downloads them. The files are converted to formats
that the rest of Rank-K can read. The converted files are cached until the original ones change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any

from rank_k.data.cache_directory import cached_file
from rank_k.data.collections.base import CollectionFiles
from rank_k.data.lines import json_line, read_objects
from rank_k.data.trec import qrels_line
from rank_k.errors import FormatError, InputError, MissingExtra
from rank_k.optional_deps import load

REPOSITORY = "xlangai/BRIGHT"
SUBSETS = (
    *("biology", "earth_science", "economics", "psychology", "robotics", "stackoverflow", "sustainable_living"),
    *("leetcode", "pony", "aops", "theoremqa_questions", "theoremqa_theorems"),
)
"""The published subsets. A directory given by the user may contain different ones."""

_COLUMNS = {"documents": ("id", "content"), "examples": ("id", "query", "gold_ids", "excluded_ids")}


def load_bright(location: str) -> CollectionFiles:
    """Return the converted files of a subset.

    Args:
        location: `SUBSET` or `DIR/SUBSET`.

    Raises:
        InputError: If the subset is not on this machine and cannot be downloaded. The message says which files to get
            and where to put them.
        FormatError: If a file is malformed.
        MissingExtra: If the package that reads Parquet is not installed.
    """
    folder, _, subset = location.rpartition("/")
    if not subset:
        raise InputError(
            f"bright:{location} does not name a subset", f"write bright:{location}SUBSET, such as {SUBSETS[0]}"
        )
    paths_by_part = _find_files(Path(folder or "/").expanduser() if "/" in location else None, subset)
    state = [
        (os.path.realpath(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(_all_paths(paths_by_part))
    ]
    cache_folder = f"bright/{subset}-{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]}"
    examples = list(_read_rows(paths_by_part["examples"], "examples"))
    excluded = {row["id"]: frozenset(_list_ids(row, "excluded_ids")) for row in examples}
    return CollectionFiles(
        documents=_documents_file(paths_by_part["documents"], f"{cache_folder}/corpus.jsonl"),
        queries=cached_file(
            f"{cache_folder}/queries.jsonl", (json_line({"_id": row["id"], "text": row["query"]}) for row in examples)
        ),
        qrels=cached_file(
            f"{cache_folder}/qrels.trec",
            (
                qrels_line(row["id"], doc_id, 1)
                for row in examples
                for doc_id in dict.fromkeys(_list_ids(row, "gold_ids"))
            ),
        ),
        excluded={query_id: doc_ids for query_id, doc_ids in excluded.items() if doc_ids},
    )


def _find_files(folder: Path | None, subset: str) -> dict[str, list[Path]]:
    """Return the files of each part.

    Args:
        folder: The directory given by the user. Without one, the files may be downloaded.
        subset: The subset.
    """
    data_directory = os.environ.get("RANK_K_DATA")
    root = folder or (Path(data_directory).expanduser() / "BRIGHT" if data_directory else None)
    problem = "" if root is None else f"not in {root}"
    if root is not None and _all_paths(paths_by_part := _list_files(root, subset)):
        if missing_parts := [part for part, paths in paths_by_part.items() if not paths]:
            raise InputError(f"{root} has no {missing_parts[0]} of {subset}", _describe_remedy(subset, root))
        return paths_by_part
    if folder is None and subset not in SUBSETS:
        raise InputError(
            f"BRIGHT has no subset {subset!r}", f"choose one of {', '.join(SUBSETS)}, or bright:DIR/SUBSET"
        )
    if folder is None:
        patterns = [f"{part}/{subset}-*" for part in _COLUMNS]
        try:
            hub = load("huggingface_hub")
            root = Path(hub.snapshot_download(REPOSITORY, repo_type="dataset", allow_patterns=patterns))
            paths_by_part = _list_files(root, subset)
            if all(paths_by_part.values()):
                return paths_by_part
            reason = "the copy in its cache is incomplete"
        except MissingExtra as error:
            reason = f"to download it, {error.remedy}"
        except Exception as error:  # its HTTP client raises many kinds of errors
            reason = f"it cannot be downloaded: {type(error).__name__}"
        problem = f"{problem or 'RANK_K_DATA is not set'}; {reason}"
    raise InputError(f"BRIGHT's {subset} is not on this machine ({problem})", _describe_remedy(subset, folder))


def _describe_remedy(subset: str, folder: Path | None) -> str:
    destination = (
        str(folder) if folder else "$RANK_K_DATA/BRIGHT, or into a directory DIR and write bright:DIR/" + subset
    )
    return (
        f"get documents/{subset}-*.parquet and examples/{subset}-*.parquet from"
        f" https://huggingface.co/datasets/{REPOSITORY} and put both directories into {destination}"
    )


def _list_files(root: Path, subset: str) -> dict[str, list[Path]]:
    patterns = [
        f"{escape(subset)}{middle}{suffix}"
        for middle in ("", "-*-of-*")
        for suffix in (".parquet", ".jsonl", ".jsonl.*")
    ]
    return {
        part: sorted(path for pattern in patterns for path in (root / part).glob(pattern) if path.is_file())
        for part in _COLUMNS
    }


def _all_paths(paths_by_part: dict[str, list[Path]]) -> list[Path]:
    return list(chain.from_iterable(paths_by_part.values()))


def _documents_file(paths: list[Path], cache_name: str) -> Path:
    if len(paths) == 1 and paths[0].suffix != ".parquet":
        return paths[0]  # JSONL needs no conversion
    return cached_file(
        cache_name, (json_line({"_id": row["id"], "text": row["content"]}) for row in _read_rows(paths, "documents"))
    )


def _read_rows(paths: list[Path], part: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part. Ids become strings. Raises `FormatError` if a row lacks a required column."""
    for path in paths:
        for number, row in _read_parquet_rows(path, part) if path.suffix == ".parquet" else read_objects(path, part):
            for column in _COLUMNS[part][:2]:
                if not isinstance(row.get(column), str | int):
                    expected = f"the columns {', '.join(_COLUMNS[part])}"
                    raise FormatError(path, number, f"no {column}", expected)
            yield row | {"id": str(row["id"])}


def _read_parquet_rows(path: Path, part: str) -> Iterator[tuple[int, dict[str, Any]]]:
    parquet, pyarrow = load("pyarrow.parquet"), load("pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in _COLUMNS[part] if name in file.schema_arrow.names]
            batches = file.iter_batches(batch_size=1024, columns=columns)
            yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise FormatError(
            path, 0, f"not Parquet data ({error})", "a file in the format that BRIGHT publishes"
        ) from error


def _list_ids(row: dict[str, Any], column: str) -> list[str]:
    return [str(value) for value in row.get(column) or () if value not in (None, "", "N/A")]
