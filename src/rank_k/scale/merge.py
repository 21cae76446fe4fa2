"""Merge the shards of a run: their TREC files into one run, and their journals into one journal.

The journal of each shard contains the number of the shard, the number of shards, and the ids of all queries of the run
in the order of its input (`Journal.store_shard`). This module therefore detects missing shards and shards that do not
match.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NoReturn

from rank_k.data.lines import decode, read_lines
from rank_k.data.part_file import PartFile
from rank_k.errors import InputError, JournalError
from rank_k.journal import Journal
from rank_k.journal.runs import ShardRecord
from rank_k.scale.shards import Shard, shard_number

_RUN_FORMAT = "the TREC run of a shard"


@dataclass(frozen=True, slots=True)
class MergedRun:
    """The number of shards that were merged, and the number of queries in all shards."""

    shards: int
    queries: int


@dataclass(frozen=True, slots=True)
class _Part:
    """The output of a shard: its run, its journal, and the shard's record in the journal."""

    run_file: Path
    journal: Path
    record: ShardRecord


def merge_shards(output: Path, journal: Path, run_files: Sequence[Path], journals: Sequence[Path]) -> MergedRun:
    """Merge the runs of all shards to one run, in the order of the input, and their journals to one journal.

    Merging again produces the same files. The journal is merged first: if the merged run exists, the merged journal is
    complete, too.

    Args:
        output: The file of the merged run.
        journal: The merged journal, which is created if it does not exist.
        run_files: The run of each shard, in any order.
        journals: The journal of each shard, in the order of `run_files`.

    Raises:
        InputError: If a shard is missing, is given twice, is incomplete, or belongs to a different run.
    """
    parts = [_read_part(run_file, path) for run_file, path in zip(run_files, journals, strict=True)]
    part_of_number = _check_parts(parts)
    record = parts[0].record
    with closing(Journal(journal)) as merged_journal:
        for number in sorted(part_of_number):
            merged_journal.merge_run(part_of_number[number].journal, record.run, record.query_ids)
        with PartFile(output) as file:
            for lines in _merged_lines(merged_journal, record, part_of_number):
                file.write(lines)
    return MergedRun(len(parts), len(record.query_ids))


def _read_part(run_file: Path, journal: Path) -> _Part:
    for path, kind in ((run_file, "run"), (journal, "journal")):
        if not path.is_file():
            raise InputError(
                f"the {kind} {path} does not exist",
                "run that shard (again)" if kind == "run" else "move it next to its run, or give it with --journals",
            )
    with closing(Journal(journal, read_only=True)) as opened:
        records = opened.shards()
    if not records:
        raise InputError(
            f"journal {journal} is not the journal of a shard", "merge the outputs of rank-k rerank --shard"
        )
    return _Part(run_file, journal, records[0])


def _check_parts(parts: Sequence[_Part]) -> Mapping[int, _Part]:
    """Return the parts by shard number. Raises `InputError` unless they are all the shards of one run."""
    first = parts[0]
    part_of_number: dict[int, _Part] = {}
    for part in parts:
        record = part.record
        if record.count != first.record.count:
            raise InputError(
                f"{part.run_file} is one of {record.count} shards, but {first.run_file} is one of {first.record.count}",
                "give shards that were made with the same COUNT in --shard NUMBER/COUNT",
            )
        if (record.run, record.query_ids) != (first.record.run, first.record.query_ids):
            raise InputError(
                f"{part.run_file} and {first.run_file} belong to different runs, or were made with different options",
                "run all shards with the same command",
            )
        if record.number in part_of_number:
            other = part_of_number[record.number].run_file
            raise InputError(f"{part.run_file} and {other} are both shard {record.number}", "omit one of them")
        part_of_number[record.number] = part
    missing = [number for number in range(1, first.record.count + 1) if number not in part_of_number]
    if missing:
        names = ", ".join(f"{number}/{first.record.count}" for number in missing[:8])
        dots = ", ..." if len(missing) > 8 else ""
        raise InputError(f"shards are missing: {names}{dots}", "run them, and also give their outputs")
    return part_of_number


def _merged_lines(journal: Journal, record: ShardRecord, part_of_number: Mapping[int, _Part]) -> Iterator[bytes]:
    """Yield the lines of each query from the run of its shard. Only one query of each shard is in memory at a time."""
    groups = {number: _read_groups(part.run_file) for number, part in part_of_number.items()}
    next_group = {number: next(rest, None) for number, rest in groups.items()}
    for position, query_id in enumerate(record.query_ids):
        number = shard_number(query_id, record.count)
        group = next_group[number]
        if group is not None and group[0] == query_id:
            yield group[1]
            next_group[number] = next(groups[number], None)
            continue
        ranking = journal.find_ranking(record.run, position)
        if ranking is None or ranking.doc_ids:  # a query without candidates has no lines
            _reject(part_of_number[number], f"query {query_id} is missing or out of order")
    for number, group in next_group.items():
        if group is not None:
            _reject(part_of_number[number], f"query {group[0]} does not belong to this shard, or is repeated")


def _reject(part: _Part, problem: str) -> NoReturn:
    raise InputError(
        f"{part.run_file} does not have the queries of shard {part.record.number}/{part.record.count} in the order of"
        f" the input: {problem}",
        "run that shard again",
    )


def _read_groups(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (query id, lines) for each query of a TREC run. An empty file is the run of a shard without queries."""
    if not path.stat().st_size:
        return
    lines = (line for _, line in read_lines(path, _RUN_FORMAT))
    for query_id, group in groupby(lines, key=lambda line: line.split(maxsplit=1)[0]):
        yield decode(query_id), b"".join(line.rstrip(b"\r\n") + b"\n" for line in group)


def check_shard(journal: Journal, shard: Shard, run: str, query_ids: Sequence[str]) -> None:
    """Check that the journal does not belong to a different shard of this run, and store the shard in it.

    Raises:
        JournalError: If the journal belongs to a shard of this run with a different number or count.
    """
    for record in journal.shards():
        if record.run == run and (record.number, record.count) != (shard.number, shard.count):
            raise JournalError(
                f"journal {journal.path} belongs to shard {record.number}/{record.count}, not to {shard}",
                "give each shard its own journal",
            )
    journal.store_shard(ShardRecord(run, shard.number, shard.count, tuple(query_ids)))
