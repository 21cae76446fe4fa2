"""The kinds of steps that a golden case consists of. `tests.golden.cases` has the cases themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Content = Literal["none", "run", "json", "jsonl", "csv", "table", "rows", "exists"]
"""How an output is recorded. `run`: the rankings of a TREC run. `table`: of a text table, the numbers of every line
that holds a decimal. `rows`: the numbers of every line but the first. `exists`: only that it is not empty."""

Answer = Literal["json", "events", "metrics", "status"]


@dataclass(frozen=True)
class Command:
    """A `rank-k` command line. Placeholders: `{data}` and `{work}` are folders, `{server:TYPE}` and
    `{server:TYPE/BEHAVIOR+BEHAVIOR}` are URLs of the fake model server.

    `stdout`: how standard output is recorded. `files`: file names in `{work}`, and how each is recorded. `tolerance`:
    by how much numbers of resampled text tables may differ. `columns`: record the first N numbers of a row (negative:
    all but the last ones). `drop`: keys and columns that are not recorded.
    """

    argv: str
    stdout: Content = "none"
    files: Mapping[str, Content] = field(default_factory=dict)
    tolerance: float = 0.0
    columns: int | None = None
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Http:
    """A request to `rank-k serve`. `{run}` in `path`: the last run's name in an answer. `body`: JSON, or raw bytes."""

    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    answer: Answer = "json"


@dataclass(frozen=True)
class Serving:
    """A `rank-k serve` command line, and the requests sent to the server."""

    argv: str
    requests: tuple[Http, ...]


@dataclass(frozen=True)
class Session:
    """A `rank-k mcp` command line, and the JSON-RPC messages written to its standard input. Each is answered by one
    line before the next is sent, unless it is a notification."""

    argv: str
    messages: tuple[Mapping[str, Any], ...]


Step = Command | Serving | Session


@dataclass(frozen=True)
class Case:
    """A named list of steps. `embedded`: the embedded model's requests go to the fake model server. `files`: written to
    `{work}` first; placeholders in them are replaced too."""

    name: str
    steps: tuple[Step, ...]
    embedded: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
