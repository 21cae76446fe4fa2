"""The cost of queries, from a journal. `tests/cli/test_evaluate.py` finds the journals of runs."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from rank_k.evaluation.run_costs import RunCost, read_query_costs
from rank_k.journal import Journal
from rank_k.types import Response, Usage, WindowRanking
from tests.journal.records import make_window


def test_read_query_costs_sums_the_calls_of_each_query() -> None:
    with closing(Journal()) as journal:
        run = journal.begin_run({})
        for key in "kl":
            journal.store_call(key, "m", "ask", {}, Response("", usage=Usage(10, 2), seconds=0.5))
        for number, keys in enumerate((("k",), ("k", "l"), ("missing",))):
            journal.store_window(run, make_window("a", round_number=number // 2, position=number % 2, call_keys=keys))
        journal.store_window(run, make_window("b", call_keys=("l",)))
        first, second = read_query_costs(journal, run)
        [counts, _] = read_query_costs(journal, run, lambda record, seconds: len(record.call_keys))
    assert (first.query_id, first.rounds, first.windows, first.calls, first.unranked_windows) == ("a", 2, 3, 4, 0)
    assert (first.usage, first.model_seconds, first.repairs) == (Usage(30, 6), 1.5, {"missing": 3})
    assert first.seconds_by_round == [[0.5, 1.0], [0]]
    assert counts.seconds_by_round == [[1, 2], [1]]
    assert (second.query_id, second.calls, second.usage) == ("b", 1, Usage(10, 2))

    cost = RunCost()
    cost.add([first, second])
    assert (cost.calls, cost.tokens, cost.model_seconds, cost.rounds, cost.unranked) == (5, 48, 2.0, 1.5, 0)
    assert cost.repairs == first.repairs + second.repairs
    assert list(cost.queries) == ["a", "b"]


def test_unranked_windows_are_those_without_any_usable_sample() -> None:
    with closing(Journal()) as journal:
        run = journal.begin_run({})
        window = make_window("a")
        usable, unusable = window.rankings[0], WindowRanking.unranked(window.window)
        samples = [(usable, unusable, unusable), (unusable, unusable), (unusable,), (usable,)]
        for number, rankings in enumerate(samples):
            journal.store_window(run, replace(make_window("a", round_number=number), rankings=rankings))
        [cost] = read_query_costs(journal, run)
    assert (cost.windows, cost.unranked_windows) == (4, 2)
