"""Two tables of a study: gains by the difficulty of queries, and quality after each round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from statistics import fmean
from typing import NamedTuple

from rank_k.data.trec import read_run
from rank_k.errors import JournalError
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.significance import PairedDifference, paired_difference
from rank_k.journal import Journal, WindowRecord
from rank_k.simulation.replay import run_strategy
from rank_k.strategies.base import Strategy
from rank_k.study.cell_costs import waiting_seconds
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell
from rank_k.study.inputs import LoadedCollection
from rank_k.study.table import CellRow, Estimate, estimate_mean
from rank_k.types import Candidate, Ranking, Round, Run, WindowResult

THIRDS = ("hard", "middling", "easy")


class DifficultyRow(NamedTuple):
    """A cell compared with its baseline on one third of the queries.

    Attributes:
        name: The name of the cell.
        criterion: The measure of difficulty.
        third: The third, one of `THIRDS`.
        low: The lowest value of the criterion in this third.
        high: The highest value of the criterion in this third.
        baseline: The mean quality of the baseline.
        quality: The mean quality of the cell.
        against: The difference from the baseline, paired by query.
        reasoning: Reasoning tokens per query.
    """

    name: str
    criterion: str
    third: str
    low: float
    high: float
    baseline: float
    quality: float
    against: PairedDifference
    reasoning: float


def compare_by_difficulty(
    rows: Sequence[CellRow], collections: Mapping[str, LoadedCollection], folder: StudyFolder
) -> Iterator[DifficultyRow]:
    """Yield three rows for every compared cell and each of two criteria of difficulty.

    The criteria are the quality of the first stage, and the average overlap between the top 10 of the first stage and
    the top 10 of the baseline. The second one needs no judgments. Neither depends on the compared cell. The second one
    depends on the answers of the baseline, so part of a difference may come from the selection of queries.
    """
    by_name = {row.name: row for row in rows}
    for row in rows:
        baseline = by_name.get(row.baseline)
        if row.difference is None or baseline is None or baseline.cell is None:
            continue
        first_stage = by_name[f"{row.collection}.{row.first_stage}"]
        first_stage_run = collections[row.collection].first_stage(row.first_stage)
        baseline_run = read_run(folder.run_file(baseline.cell))
        criteria = {
            f"{next(iter(row.quality))} of the first stage": first_stage.first_measure_values,
            "agreement of first stage and baseline": {
                query_id: average_overlap(
                    _document_ids(first_stage_run, query_id), _document_ids(baseline_run, query_id)
                )
                for query_id in row.first_measure_values
            },
        }
        for criterion, difficulty in criteria.items():
            for third, query_ids in zip(THIRDS, split_into_thirds(difficulty), strict=True):
                if not query_ids:
                    continue
                values, baseline_values = (
                    {query_id: compared.first_measure_values[query_id] for query_id in query_ids}
                    for compared in (row, baseline)
                )
                costs = [row.cost.queries[query_id] for query_id in query_ids if query_id in row.cost.queries]
                yield DifficultyRow(
                    row.name,
                    criterion,
                    third,
                    difficulty[query_ids[0]],
                    difficulty[query_ids[-1]],
                    fmean(baseline_values.values()),
                    fmean(values.values()),
                    paired_difference(values, baseline_values),
                    sum(cost.usage.reasoning_tokens for cost in costs) / len(query_ids),
                )


def split_into_thirds(values: Mapping[str, float]) -> list[list[str]]:
    """Return the query ids in three groups by value, lowest first, whose sizes differ by at most one.

    Queries with equal values are ordered by id.
    """
    query_ids = sorted(values, key=lambda query_id: (values[query_id], query_id))
    boundaries = [round(len(query_ids) * n / 3) for n in range(4)]
    return [query_ids[start:end] for start, end in pairwise(boundaries)]


def average_overlap(first: Sequence[str], second: Sequence[str], depth: int = 10) -> float:
    """Return the average overlap of two rankings (Fagin, Kumar and Sivakumar, SODA 2003).

    This is the mean, over the cutoffs 1 to `depth`, of the fraction of documents that both rankings contain above the
    cutoff: 1 for equal rankings, 0 for rankings without common documents.
    """
    longest = max(len(first), len(second), 1)
    shared = (len({*first[:cutoff]} & {*second[:cutoff]}) / min(cutoff, longest) for cutoff in range(1, depth + 1))
    return fmean(shared) if first or second else 1.0


def _document_ids(run: Run, query_id: str) -> list[str]:
    return [candidate.doc_id for candidate in run.get(query_id, ())]


# --- stopping early --------------------------------------------------------------------------------

CONCURRENCY_LEVELS = (1, 4, 16, None)
"""Numbers of windows in flight for a query that runs alone. None means all windows of a round."""


class RoundRow(NamedTuple):
    """The quality of a cell if every query stops after `rounds` rounds, and the mean seconds until then.

    Zero rounds leave the order of the first stage.
    """

    name: str
    rounds: int
    seconds: float
    quality: Estimate


def evaluate_by_round(
    rows: Sequence[CellRow], collections: Mapping[str, LoadedCollection], folder: StudyFolder, journal: Journal
) -> Iterator[RoundRow]:
    """Yield a row for every round of every cell by replaying the journal. Cells that split documents are left out."""
    for row in rows:
        if row.cell is None or row.cell.passage_split is not None:
            continue
        collection = collections[row.collection]
        measure = next(iter(row.quality))
        stages_by_query = _replay_rounds(row.cell, collection, folder, journal)
        seconds = [list(accumulate(map(max, cost.seconds_by_round), initial=0.0)) for cost in row.cost.queries.values()]
        for number in range(max(map(len, stages_by_query.values()))):
            run = {query_id: stages[min(number, len(stages) - 1)] for query_id, stages in stages_by_query.items()}
            values = evaluate(collection.qrels, run, [measure]).per_query[measure]
            mean_seconds = sum(spent[min(number, len(spent) - 1)] for spent in seconds) / len(run)
            yield RoundRow(row.name, number, mean_seconds, estimate_mean(list(values.values())))


def latency_by_concurrency(rows: Sequence[CellRow]) -> dict[str, list[float]]:
    """Return, for each cell, the mean seconds of a query that runs alone, for each concurrency level."""
    return {
        row.name: [
            sum(waiting_seconds(query, concurrency) for query in row.cost.queries.values()) / row.run_queries
            for concurrency in CONCURRENCY_LEVELS
        ]
        for row in rows
        if row.cell is not None
    }


def _replay_rounds(
    cell: Cell, collection: LoadedCollection, folder: StudyFolder, journal: Journal
) -> dict[str, list[list[Candidate]]]:
    """Return the rankings of all candidates of each query after 0, 1, ... rounds."""
    strategy = cell.make_strategy()
    records_by_query = {
        query_id: list(records)
        for query_id, records in groupby(journal.windows(folder.journal_run(cell)), key=lambda record: record.query_id)
    }
    stages_by_query = {}
    for query_id, candidates in collection.runs[cell.first_stage]:
        records = records_by_query.get(query_id, ())
        rankings = rankings_by_round(strategy, candidates[: cell.depth], query_id, records)
        tail_ids = [candidate.doc_id for candidate in candidates[cell.depth :]]
        stages_by_query[query_id] = [
            [Candidate(doc_id, -rank) for rank, doc_id in enumerate([*ranking.doc_ids, *tail_ids])]
            for ranking in rankings
        ]
    return stages_by_query


def rankings_by_round(
    strategy: Strategy, candidates: Sequence[Candidate], query_id: str, records: Sequence[WindowRecord]
) -> list[Ranking]:
    """Return the best ranking before each round of a query, and the final ranking, by replaying a strategy.

    Args:
        strategy: The strategy that ranked the windows.
        candidates: The candidates that the strategy ranked.
        query_id: The query.
        records: The windows of the query, by round.

    Raises:
        JournalError: If windows are missing, or belong to a different strategy or different candidates.
    """
    recorded_rounds = (
        [WindowResult(record.window, record.rankings) for record in round_records]
        for _, round_records in groupby(records, key=lambda record: record.round)
    )

    def recorded_results(current: Round) -> list[WindowResult]:
        results = next(recorded_rounds, None)
        if results is None:
            raise JournalError("the journal ends in the middle of a query", "run the same command again")
        if [result.window for result in results] != list(current.windows):
            raise JournalError(
                "the windows in the journal differ from those of this cell",
                "delete the journal and run the study again",
            )
        return results

    rounds, ranking = run_strategy(strategy, candidates, query_id, recorded_results)
    return [*(current.ranking for current in rounds), ranking]
