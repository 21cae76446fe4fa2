"""Read the cost of queries and runs from the journal that contains their calls."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from rank_k.errors import InputError
from rank_k.journal import Journal, WindowRecord
from rank_k.types import CallTotals


@dataclass(slots=True)
class QueryCost(CallTotals):
    """The cost of one query of a run: the totals of its calls, and the seconds of each window by round.

    `unranked_windows` counts windows without any usable sample. They kept their input order.
    """

    query_id: str = ""
    unranked_windows: int = 0
    seconds_by_round: list[list[float]] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        return len(self.seconds_by_round)

    @property
    def windows(self) -> int:
        return sum(map(len, self.seconds_by_round))


@dataclass(slots=True)
class RunCost(CallTotals):
    """The cost of a run: the totals of its calls, and the cost of each query with calls.

    Attributes:
        queries: The cost of each query with calls, by query id.
        journal: The journal with the calls.
        run: The name of the run in the journal; empty for the last run, which is the default of all commands.
        other_runs: The number of other runs in the journal.
        wrote_file: Whether a run of the journal wrote the evaluated file. If not, the costs are those of the last run.
        model: The name of the model.
        money: The cost in money, if prices are known.
    """

    queries: dict[str, QueryCost] = field(default_factory=dict)
    journal: Path = Path()
    run: str = ""
    other_runs: int = 0
    wrote_file: bool = True
    model: str = ""
    money: float | None = None

    def add(self, queries: Iterable[QueryCost]) -> None:
        """Add the costs of queries."""
        for query in queries:
            self.queries[query.query_id] = query
            self += query

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.usage.prompt_tokens + self.usage.completion_tokens

    @property
    def rounds(self) -> float:
        """The mean number of rounds per query with calls."""
        return sum(query.rounds for query in self.queries.values()) / len(self.queries)

    @property
    def unranked(self) -> int:
        """The number of windows without a usable answer."""
        return sum(query.unranked_windows for query in self.queries.values())

    def trace_command(self, query_id: str) -> str | None:
        """Return the command that shows all prompts and answers of a query; None if the query has no calls."""
        if query_id not in self.queries:
            return None
        run_option = ["--run", self.run] if self.run else []
        query_option = ["--query", query_id] if not query_id.startswith("-") else [f"--query={query_id}"]
        return shlex.join(["rank-k", "journal", "show", str(self.journal), *run_option, *query_option])


def read_query_costs(
    journal: Journal,
    run: str,
    measure_window: Callable[[WindowRecord, Mapping[str, float]], float] = lambda _, seconds: sum(seconds.values()),
) -> Iterator[QueryCost]:
    """Yield the cost of each query with calls of a run, ordered by query id.

    Args:
        journal: The journal.
        run: The name of the run.
        measure_window: Returns the seconds of a window, given the seconds of its calls by key (default: their sum).
    """
    for query_id, query_records in groupby(journal.windows(run), key=lambda record: record.query_id):
        cost = QueryCost(query_id=query_id)
        for _, round_records in groupby(query_records, key=lambda record: record.round):
            cost.seconds_by_round.append([])
            for record in round_records:
                seconds: dict[str, float] = {}
                for key in record.call_keys:
                    if (response := journal.find_response(key)) is not None:
                        seconds[key] = response.seconds
                        cost.usage += response.usage
                cost.model_seconds += sum(seconds.values())
                cost.calls += len(record.call_keys)
                cost.repairs.update(record.repairs)
                cost.unranked_windows += not any(ranking.is_valid for ranking in record.rankings)
                cost.seconds_by_round[-1].append(measure_window(record, seconds))
        yield cost


def find_journal(run_file: Path) -> Path | None:
    """Return the journal next to a run file, where `rank-k rerank` writes it by default; None if there is none."""
    journal_file = run_file.with_name(run_file.name + ".journal.sqlite")
    return journal_file if journal_file.is_file() else None


def read_run_cost(journal_file: Path, run_file: Path) -> RunCost | None:
    """Return the cost of the run in `run_file`; None if it has no calls.

    If the journal has several runs, this is the last one that wrote a file of this name, or else the last run.

    Raises:
        InputError: If there is no such journal.
        JournalError: If the file is not a journal.
    """
    if not journal_file.is_file():
        raise InputError(f"there is no journal {journal_file}", "give the file that rank-k rerank --journal wrote")
    with closing(Journal(journal_file, read_only=True)) as journal:
        runs = journal.runs()
        if not runs:
            return None
        writers = [  # compares only the name of the file, because its folder may have been moved since
            record for record in runs if Path(str(record.settings.get("output", ""))).name == run_file.name
        ]
        record = (writers or runs)[0]
        cost = RunCost(
            journal=journal_file,
            run="" if record == runs[0] else record.run,
            other_runs=len(runs) - 1,
            wrote_file=bool(writers),
            model=journal.model_of_run(record.run),
        )
        cost.add(read_query_costs(journal, record.run))
        return cost if cost.queries else None
