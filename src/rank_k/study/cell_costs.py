"""What a cell's queries cost and how long they take, from the journal alone: the same whether a call was made now or
found there. And the rankings one would have had by stopping after any round.

Seconds are those of the critical path: what a query takes when all windows of a round are asked at the same time.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from zlib import crc32

from rank_k.errors import JournalError
from rank_k.journal import Journal, WindowRecord
from rank_k.strategies.base import Strategy
from rank_k.types import Candidate, Ranking, Usage, WindowResult
from rank_k.window.listwise import ListwiseSettings

AGREEING_SAMPLES = ListwiseSettings().agreeing_samples
"""So many samples of a window are taken at once; the others at once after them."""


@dataclass(frozen=True, slots=True)
class CellQueryCost:
    """What one query came to. `seconds_by_round`: the seconds of each window, round by round."""

    query_id: str
    seconds_by_round: tuple[tuple[float, ...], ...]
    calls: int
    usage: Usage
    model_seconds: float
    unranked: int
    retries_exhausted: int
    repairs: Mapping[str, int]

    @property
    def windows(self) -> int:
        return sum(map(len, self.seconds_by_round))

    def seconds(self, concurrency: int | None = None) -> float:
        """Of the critical path, with `concurrency` windows at a time (None: as many as there are)."""
        return sum(makespan(windows, concurrency) for windows in self.seconds_by_round)


@dataclass(frozen=True, slots=True)
class CellCost:
    """What a cell cost: means per query; `model_seconds`, `unranked`, `retries_exhausted` and `repairs` are totals.

    `tokens` are those in and out together; `answer` is what came out after the reasoning. `seconds`: of the critical
    path. `estimated`: some server did not count its tokens.
    """

    queries: int = 0
    rounds: float = 0.0
    windows: float = 0.0
    calls: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0
    reasoning_tokens: float = 0.0
    answer_tokens: float = 0.0
    seconds: float = 0.0
    model_seconds: float = 0.0
    unranked: int = 0
    retries_exhausted: int = 0
    repairs: Mapping[str, int] = field(default_factory=Counter)
    estimated: bool = False

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.reasoning_tokens + self.answer_tokens


def mean_cost(query_costs: Sequence[CellQueryCost], queries: int) -> CellCost:
    """Over `queries`, those included that needed no window."""
    usage = sum((query.usage for query in query_costs), Usage())

    def per_query(total: float) -> float:
        return total / queries if queries else 0.0

    return CellCost(
        queries,
        per_query(sum(len(query.seconds_by_round) for query in query_costs)),
        per_query(sum(query.windows for query in query_costs)),
        per_query(sum(query.calls for query in query_costs)),
        per_query(usage.prompt_tokens),
        per_query(usage.cached_tokens),
        per_query(usage.reasoning_tokens),
        per_query(usage.completion_tokens - usage.reasoning_tokens),
        per_query(sum(query.seconds() for query in query_costs)),
        sum(query.model_seconds for query in query_costs),
        sum(query.unranked for query in query_costs),
        sum(query.retries_exhausted for query in query_costs),
        sum((Counter(query.repairs) for query in query_costs), Counter()),
        usage.estimated,
    )


def read_costs(journal: Journal, run: str) -> Iterator[CellQueryCost]:
    """What each query of a run came to, by query id."""
    for query_id, query_records in groupby(journal.windows(run), key=lambda record: record.query_id):
        records = list(query_records)
        responses = {key: journal.find_response(key) for record in records for key in record.call_keys}
        if None in responses.values():
            raise JournalError(f"journal {journal.path} lacks calls of its own windows", "delete it and ask again")
        known_responses = {key: response for key, response in responses.items() if response is not None}
        calls = [known_responses[key] for record in records for key in record.call_keys]
        yield CellQueryCost(
            query_id,
            tuple(
                tuple(
                    _measure_window(journal, record, {key: known_responses[key].seconds for key in record.call_keys})
                    for record in windows
                )
                for _, windows in groupby(records, key=lambda record: record.round)
            ),
            len(calls),
            sum((response.usage for response in calls), Usage()),
            sum(response.seconds for response in calls),
            sum(not any(order.is_valid for order in record.rankings) for record in records),
            sum(record.repairs.get("retries_exhausted", 0) for record in records),
            sum((Counter(record.repairs) for record in records), Counter()),
        )


def _measure_window(journal: Journal, record: WindowRecord, seconds: Mapping[str, float]) -> float:
    """How long the calls of one window take. Samples are told apart by the seeds that were sent; where none were, they
    count as if they had been taken one after another."""
    if len(seconds) < 2:
        return sum(seconds.values())
    query_hash = crc32(record.query_id.encode("utf-8", "surrogateescape"))
    calls = []
    for key in record.call_keys:
        seed = journal.find_request(key).get("seed")
        calls.append(((int(seed) - query_hash) % 2**31 if isinstance(seed, int) else 0, seconds[key]))
    return window_seconds(calls)


def window_seconds(calls: Sequence[tuple[int, float]], first_samples: int = AGREEING_SAMPLES) -> float:
    """(sample, seconds) of a window's calls -> seconds. The calls of a sample wait for each other, samples do not:
    the first `first_samples` are taken at once, then the others at once."""
    seconds_by_sample: Counter[int] = Counter()
    for sample, seconds in calls:
        seconds_by_sample[sample] += seconds  # type: ignore[assignment]
    first_seconds = (seconds for sample, seconds in seconds_by_sample.items() if sample < first_samples)
    later_seconds = (seconds for sample, seconds in seconds_by_sample.items() if sample >= first_samples)
    return max(first_seconds, default=0.0) + max(later_seconds, default=0.0)


def makespan(seconds: Sequence[float], concurrency: int | None = None) -> float:
    """Return how long calls that take `seconds` run at a concurrency of `concurrency`, started in the order given."""
    if concurrency is None or concurrency >= len(seconds):
        return max(seconds, default=0.0)
    finish_times = [0.0] * concurrency
    for duration in seconds:
        heapq.heapreplace(finish_times, finish_times[0] + duration)
    return max(finish_times)


# --- stopping early --------------------------------------------------------------------------------


def rankings_by_round(
    strategy: Strategy, candidates: Sequence[Candidate], seed: int, records: Sequence[WindowRecord]
) -> list[Ranking]:
    """The best ranking before the first round, after it, and so on, the last one being the final ranking: `strategy`
    run again on the outcomes in `records` (of one query, in the order asked). Pure, nothing is asked.

    Raises `JournalError` if the records are not of this strategy over these candidates.
    """
    records_by_round = {
        number: list(round_records) for number, round_records in groupby(records, key=lambda record: record.round)
    }
    steps = strategy(candidates, seed)
    rankings: list[Ranking] = []
    try:
        step = next(steps)
        for number in range(len(records_by_round)):
            rankings.append(step.ranking)
            if [record.window for record in records_by_round[number]] != list(step.windows):
                raise JournalError(
                    "the journal's windows are not those of this cell", "delete the journal and ask again"
                )
            step = steps.send([WindowResult(record.window, record.rankings) for record in records_by_round[number]])
    except StopIteration as stop:
        return [*rankings, stop.value]
    raise JournalError("the journal ends in the midst of a query", "give the same command again")


def query_seed(query_id: str) -> int:
    """The seed with which the engine runs a query's strategy."""
    return crc32(query_id.encode("utf-8", "surrogateescape"))
