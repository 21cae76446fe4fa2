"""The cost of a cell and the latency of its queries, computed from the durations of calls in the journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from rank_k.errors import JournalError
from rank_k.evaluation.run_costs import QueryCost, RunCost, read_query_costs
from rank_k.journal import Journal, WindowRecord
from rank_k.simulation.call_times import PendingRound, makespan
from rank_k.window.listwise import ListwiseSettings

AGREEING_SAMPLES = ListwiseSettings().agreeing_samples
"""The number of samples of a window that are requested concurrently first. The others are requested after them."""


def read_cell_cost(journal: Journal, run: str) -> RunCost:
    """Return the cost of a run. Raises `JournalError` if the journal lacks calls of its windows."""
    cost = RunCost()
    cost.add(read_query_costs(journal, run, partial(_measure_window, journal)))
    return cost


def _measure_window(journal: Journal, record: WindowRecord, seconds: Mapping[str, float]) -> float:
    """Return the seconds that the calls of a window take.

    The seed of a request identifies the sample of a call. Calls without seeds count as sequential.
    """
    if not seconds.keys() >= {*record.call_keys}:
        raise JournalError(
            f"the journal {journal.path} has windows whose calls are missing", "delete it and run the study again"
        )
    if len(seconds) < 2:
        return sum(seconds.values())
    seeds = {key: call.request.get("seed") for key in seconds if (call := journal.find_call(key)) is not None}
    first_seed = min((seed for seed in seeds.values() if isinstance(seed, int)), default=0)  # that of sample 0
    return window_seconds(
        [(seed - first_seed if isinstance(seed, int) else 0, seconds[key]) for key, seed in seeds.items()]
    )


def window_seconds(calls: Sequence[tuple[int, float]], first_samples: int = AGREEING_SAMPLES) -> float:
    """Return the seconds that a window takes.

    Args:
        calls: The sample number and the seconds of each call. The calls of one sample are sequential.
        first_samples: The number of samples that start first and run concurrently. The other samples start when these
            have finished, and also run concurrently.
    """
    seconds_by_sample: Counter[int] = Counter()
    for sample, seconds in calls:
        seconds_by_sample[sample] += seconds  # type: ignore[assignment]
    first = [seconds for sample, seconds in seconds_by_sample.items() if sample < first_samples]
    later = [seconds for sample, seconds in seconds_by_sample.items() if sample >= first_samples]
    return max(first, default=0.0) + max(later, default=0.0)


def waiting_seconds(query: QueryCost, concurrency: int | None = None) -> float:
    """Return the seconds that a single query takes with `concurrency` windows in flight.

    The default, None, means that all windows of a round are in flight.
    """
    if concurrency is None:
        concurrency = max(map(len, query.seconds_by_round), default=1)
    return makespan([map(PendingRound, query.seconds_by_round)], concurrency)
