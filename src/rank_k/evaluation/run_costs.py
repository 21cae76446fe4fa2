"""What a run cost, from the journal in which its calls are kept."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rank_k.errors import InputError
from rank_k.journal import Journal, QueryCost, RunRecord
from rank_k.types import Usage


@dataclass(frozen=True)
class RunCost:
    """What the calls behind one run file came to. `queries`: by id, those that needed a call.

    `run`: its name in the journal, empty where it is the last one there, which needs no name. `others`: how many
    more runs the journal holds. `wrote_file`: the journal says that this run wrote the file; otherwise its last run
    was taken. `money`: what it came to, where prices are known.
    """

    journal: Path
    run: str
    other_runs: int
    wrote_file: bool
    model: str
    queries: Mapping[str, QueryCost]
    money: float | None = None

    @cached_property
    def usage(self) -> Usage:
        return sum((query.usage for query in self.queries.values()), Usage())

    @property
    def tokens(self) -> int:
        """In and out together."""
        return self.usage.prompt_tokens + self.usage.completion_tokens

    @property
    def calls(self) -> int:
        return sum(query.calls for query in self.queries.values())

    @property
    def rounds(self) -> float:
        """Mean per query: how often one had to wait for an answer before asking on."""
        return sum(query.rounds for query in self.queries.values()) / len(self.queries)

    @property
    def seconds(self) -> float:
        """The calls' own durations, added up; calls at the same time make the wait shorter."""
        return sum(query.seconds for query in self.queries.values())

    @property
    def unranked(self) -> int:
        """Windows without a usable answer."""
        return sum(query.unranked_windows for query in self.queries.values())

    def trace_command(self, query_id: str) -> str | None:
        """The command that shows all that was asked and thought about a query; None if nothing was."""
        if query_id not in self.queries:
            return None
        run_option = ["--run", self.run] if self.run else []
        query_option = ["--query", query_id] if not query_id.startswith("-") else [f"--query={query_id}"]
        return shlex.join(["rank-k", "journal", "show", str(self.journal), *run_option, *query_option])


def find_journal(run_file: Path) -> Path | None:
    """Where `rank-k rerank` keeps the journal of the run it writes, if there is one."""
    journal_file = run_file.with_name(run_file.name + ".journal.sqlite")
    return journal_file if journal_file.is_file() else None


def read_run_cost(journal_file: Path, run_file: Path) -> RunCost | None:
    """What `run_file` cost. A journal may hold several runs: the one that wrote a file of this name, the last of
    those, or else the last of all. None if that asked nothing.

    Raises `InputError` if there is no such file, `JournalError` if it is no journal.
    """
    if not journal_file.is_file():
        raise InputError(f"there is no journal {journal_file}", "name the file that rank-k rerank --journal wrote")
    with closing(Journal(journal_file, read_only=True)) as journal:
        runs = journal.runs()
        if not runs:
            return None
        writers = [record for record in runs if _wrote_file(record, run_file)]
        record = (writers or runs)[0]
        queries = {query.query_id: query for query in journal.query_costs(record.run)}
        if not queries:
            return None
        return RunCost(
            journal_file,
            "" if record == runs[0] else record.run,
            len(runs) - 1,
            bool(writers),
            journal.model_of_run(record.run),
            queries,
        )


def _wrote_file(record: RunRecord, run_file: Path) -> bool:
    """By the file's name: the folder may have been moved, or the command run elsewhere."""
    return Path(str(record.settings.get("output", ""))).name == run_file.name
