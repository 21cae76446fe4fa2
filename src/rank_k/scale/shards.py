"""Divide the queries of a run among processes. This module does no I/O.

A hash of the query id determines the shard of a query. Each process therefore knows its queries without communicating
with other processes, and a query always belongs to the same shard.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rank_k.errors import InputError

_EXPECTED = "write NUMBER/COUNT, such as 3/16 for the third of 16 shards, or slurm in a Slurm job array"


@dataclass(frozen=True, slots=True)
class Shard:
    """The shard `number` (from 1) of `count` shards."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> Shard:
        """Return the shard that `text` describes.

        Args:
            text: "3/16": the third of 16 shards. "slurm": the shard that corresponds to this task in a Slurm job array.
                "slurm/16": the same with a given count, for job arrays that repeat only some tasks, such as
                `--array=3,7`.
            environment: The environment variables. Slurm sets `SLURM_ARRAY_TASK_ID`, `SLURM_ARRAY_TASK_COUNT` and
                `SLURM_ARRAY_TASK_MIN`.

        Raises:
            InputError: If `text` has a different format, or Slurm's variables are missing or do not describe a shard.
        """
        if match := re.fullmatch(r"slurm(?:/(\d{1,6}))?", text):
            return cls._of_slurm_task(match[1], environment)
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"the shard is {text!r}", _EXPECTED)
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def _of_slurm_task(cls, fixed_count: str | None, environment: Mapping[str, str]) -> Shard:
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")
        values = [environment.get(name, "") for name in names]
        if not all(value.isdecimal() for value in values):
            raise InputError(f"this is not a task of a Slurm job array: {names[0]} is not set", _EXPECTED)
        task, task_count, first_task = map(int, values)
        if fixed_count is None:
            number, count = task - first_task + 1, task_count
        else:
            number, count = task, int(fixed_count)
        if not 1 <= number <= count:
            raise InputError(
                f"task {task} of the Slurm job array is not one of {count} shards",
                f"start the job with --array=1-{count}; to repeat single tasks, add the count: --shard slurm/{count}",
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def contains(self, query_id: str) -> bool:
        """Return whether the query belongs to this shard."""
        return shard_number(query_id, self.count) == self.number

    def path(self, path: Path) -> Path:
        """Return the path for this shard: `reranked.trec` becomes `reranked.03of16.trec`. Names sort by number."""
        number = str(self.number).zfill(len(str(self.count)))
        return path.with_name(f"{path.stem}.{number}of{self.count}{path.suffix}")


def shard_number(query_id: str, count: int) -> int:
    """Return the number (from 1) of the shard that a query belongs to if there are `count` shards."""
    digest = hashlib.sha256(query_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % count + 1
