"""The simulation of the lower bound (`benchmarks.ideal`) agrees with itself and with the fake model server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from benchmarks.ideal import simulate, simulate_dataset

from rank_k.strategies.base import StrategyGenerator
from rank_k.types import Ranking, Round, Window, WindowRanking
from tests.conftest import StartLoopback
from tests.fakes.model_server.client import DATASET, chat_body, open_session, send_chat
from tests.fakes.model_server.request_log import peak_concurrency

pytestmark = pytest.mark.integration


def test_peak_concurrency_counts_overlapping_spans() -> None:
    assert peak_concurrency([]) == 0
    assert peak_concurrency([(0.0, 1.0), (1.0, 2.0), (0.5, 1.5), (0.6, 0.7)]) == 3
    assert peak_concurrency([(0.0, 1.0), (1.0, 2.0)]) == 1


def make_strategy(query_name: str, rounds: list[int], log: list[str]) -> StrategyGenerator:
    """A query of so many windows in each round, that says when it begins and checks what it is sent."""
    log.append(query_name)
    remaining = sum(rounds)
    for number, window_count in enumerate(rounds):
        windows = tuple(Window((query_name, f"{number}.{place}"), (1, 1)) for place in range(window_count))
        results = yield Round(windows, Ranking.untied([query_name]), remaining)
        assert tuple(result_of_window.window for result_of_window in results) == windows
        remaining -= window_count
    return Ranking.untied([query_name])


def simulate_queries(queries: dict[str, list[int]], concurrency: int, seconds: dict[str, float]) -> Any:
    log: list[str] = []
    generators = (make_strategy(query_name, rounds, log) for query_name, rounds in queries.items())
    result = simulate(
        generators,
        concurrency,
        lambda _, window: seconds[window.doc_ids[0]],
        lambda _, window: WindowRanking.unranked(window),
    )
    return result, [(call.window.doc_ids[0], call.start, call.end) for call in result.calls]


def test_simulate_serves_the_longest_queue_first() -> None:
    result, calls = simulate_queries({"a": [1], "b": [1, 1], "c": [1]}, 1, {"a": 1.0, "b": 2.0, "c": 4.0})
    assert calls == [("b", 0.0, 2.0), ("a", 2.0, 3.0), ("b", 3.0, 5.0), ("c", 5.0, 9.0)]
    assert (result.makespan, result.busy, result.peak) == (9.0, 9.0, 1)
    assert [ranking.doc_ids for ranking in result.rankings] == [("a",), ("b",), ("c",)]


def test_simulate_starts_a_round_after_the_previous_one() -> None:
    result, calls = simulate_queries({"a": [3, 1]}, 2, {"a": 1.0})
    assert calls == [("a", 0.0, 1.0), ("a", 0.0, 1.0), ("a", 1.0, 2.0), ("a", 2.0, 3.0)]
    assert (result.makespan, result.peak) == (3.0, 2)


def test_simulate_opens_four_queries_per_slot_in_input_order() -> None:
    # The sixth query has most windows, but is not open before one of the first four is done.
    queries = {query_name: [1] for query_name in "abcde"} | {"f": [1] * 9}
    _, calls = simulate_queries(queries, 1, dict.fromkeys("abcdef", 1.0))
    assert "".join(query_name for query_name, _, _ in calls) == "ab" + "f" * 8 + "cdef"


def test_simulate_finishes_queries_without_windows_at_once() -> None:
    result, calls = simulate_queries({"a": [], "b": [0, 1], "c": []}, 4, {"b": 1.0})
    assert [query_name for query_name, _, _ in calls] == ["b"]
    assert len(result.rankings) == 3
    assert simulate_queries({}, 4, {})[0].makespan == 0.0


def test_simulate_dataset_sliding_meets_the_packing_bounds() -> None:
    for concurrency in (4, 64):
        result = simulate_dataset(DATASET, concurrency)
        assert len(result.calls) == 30 * 9
        chains: dict[int, float] = {}
        for call in result.calls:
            chains[call.query] = chains.get(call.query, 0.0) + call.end - call.start
        bound = max(result.busy / concurrency, max(chains.values()))
        assert bound <= result.makespan < bound * 1.1
        assert result.peak == min(concurrency, 30)
        for query, ranking in zip(DATASET.queries, result.rankings, strict=True):
            grades = DATASET.qrels[query.query_id]
            assert [grades[doc_id] for doc_id in ranking.doc_ids[:10]] == [3, 3, 2, 2, 2, 2, 1, 1, 1, 1]


def test_simulate_dataset_agrees_with_the_model_server(loopback: StartLoopback) -> None:
    """The windows that the simulation asked, asked for real one after the other, take as long as it says."""
    first_query_dataset = DATASET._replace(queries=DATASET.queries[:1])
    result = simulate_dataset(first_query_dataset, 1, first_token=0.02, per_token=0.0002)
    server = loopback(first_token=0.02, per_token=0.0002)

    async def main() -> None:
        async with open_session() as session:
            for call in result.calls:
                await send_chat(session, server.url, chat_body(list(call.window.doc_ids)))

    asyncio.run(main())
    calls = server.calls
    assert len(calls) == 9
    measured = (calls[-1].end or 0.0) - calls[0].start
    assert result.makespan - 0.005 <= measured < result.makespan * 1.3 + 0.1
