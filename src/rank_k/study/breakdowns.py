"""The tables that two of the questions are about: gains by difficulty of the query, and quality by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from statistics import fmean
from typing import NamedTuple

from rank_k.data.trec import read_run
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.significance import PairedDifference, paired_difference
from rank_k.journal import Journal
from rank_k.study.cell_costs import makespan, query_seed, rankings_by_round
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell
from rank_k.study.inputs import LoadedCollection
from rank_k.study.table import CellRow, Estimate, estimate_mean
from rank_k.types import Candidate, Ranking

THIRDS = ("hard", "middling", "easy")


class DifficultyRow(NamedTuple):
    """A cell over a third of the queries, compared with its baseline there. `criterion`: what made them hard; `low` and
    `high`: its range in this third. `baseline` and `quality`: means; `reasoning`: tokens per query."""

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
) -> list[DifficultyRow]:
    """For every compared cell. Queries are hard by the first stage's quality, which needs judgments, and by how little
    the baseline's first ten have in common with the first stage's, which needs none.

    Neither looks at the compared cell. The first does not look at the baseline's answers either; the second does, so
    that where these come from chance, a part of a difference may come from the choice of queries.
    """
    difficulty_rows: list[DifficultyRow] = []
    by_name = {row.name: row for row in rows}
    for row in rows:
        baseline = by_name.get(row.baseline)
        if row.cell is None or row.difference is None or baseline is None or baseline.cell is None:
            continue
        first_stage = by_name[f"{row.collection}.{row.first_stage}"]
        first_stage_run = collections[row.collection].first_stage(row.first_stage)
        baseline_run = read_run(folder.run_file(baseline.cell))
        measure = next(iter(row.quality))
        difficulty_by_criterion = {
            f"{measure} of the first stage": dict(first_stage.first_measure_values),
            "agreement of first stage and baseline": {
                query_id: average_overlap(
                    _document_ids(first_stage_run.get(query_id, ())), _document_ids(baseline_run.get(query_id, ()))
                )
                for query_id in row.first_measure_values
            },
        }
        reasoning_tokens = {query.query_id: query.usage.reasoning_tokens for query in row.query_costs}
        for criterion, difficulty in difficulty_by_criterion.items():
            for third, query_ids in zip(THIRDS, split_into_thirds(difficulty), strict=True):
                if query_ids:
                    cell_values = {query_id: row.first_measure_values[query_id] for query_id in query_ids}
                    baseline_values = {query_id: baseline.first_measure_values[query_id] for query_id in query_ids}
                    difficulty_rows.append(
                        DifficultyRow(
                            row.name,
                            criterion,
                            third,
                            difficulty[query_ids[0]],
                            difficulty[query_ids[-1]],
                            fmean(baseline_values.values()),
                            fmean(cell_values.values()),
                            paired_difference(cell_values, baseline_values),
                            fmean(reasoning_tokens.get(query_id, 0) for query_id in query_ids),
                        )
                    )
    return difficulty_rows


def split_into_thirds(values: Mapping[str, float]) -> list[list[str]]:
    """The ids in three groups, the lowest values first, of sizes that differ by one at most; equal values by id."""
    query_ids = sorted(values, key=lambda query_id: (values[query_id], query_id))
    boundaries = [round(len(query_ids) * n / 3) for n in range(4)]
    return [query_ids[start:end] for start, end in pairwise(boundaries)]


def average_overlap(first: Sequence[str], second: Sequence[str], depth: int = 10) -> float:
    """From 0 to 1: the mean, over the depths 1 to `depth`, of the share that two rankings have in common down to there
    (Fagin, Kumar and Sivakumar, SODA 2003)."""
    shares = []
    for cutoff in range(1, depth + 1):
        length = min(cutoff, max(len(first), len(second)))
        shares.append(len({*first[:cutoff]} & {*second[:cutoff]}) / length if length else 1.0)
    return fmean(shares)


def _document_ids(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.doc_id for candidate in candidates]


# --- stopping early --------------------------------------------------------------------------------

CONCURRENCY_LEVELS = (1, 4, 16, None)
"""Windows of one query in flight; None: all windows of a round."""


class RoundRow(NamedTuple):
    """What a cell would have been worth, had every query been stopped after so many rounds (0: the strategy's own
    beginning, the first stage's order). `seconds`: mean of the critical path until then."""

    name: str
    rounds: int
    seconds: float
    quality: Estimate


class LatencyRow(NamedTuple):
    """Mean seconds of a query that has the server to itself, with `concurrency` windows in flight."""

    name: str
    concurrency: int | None
    seconds: float


def evaluate_by_round(
    rows: Sequence[CellRow], collections: Mapping[str, LoadedCollection], folder: StudyFolder, journal: Journal
) -> list[RoundRow]:
    """For every cell that does not split its documents, by replay of the journal."""
    round_rows: list[RoundRow] = []
    for row in rows:
        if row.cell is None or row.cell.passage_split is not None:
            continue
        collection = collections[row.collection]
        measure = next(iter(row.quality))
        rankings_by_query = _replay_rankings(row.cell, collection, folder, journal)
        seconds = {
            query.query_id: [makespan(windows) for windows in query.seconds_by_round] for query in row.query_costs
        }
        for round_number in range(max(map(len, rankings_by_query.values()), default=1)):
            run = {
                query_id: _to_candidates(rankings[min(round_number, len(rankings) - 1)])
                for query_id, rankings in rankings_by_query.items()
            }
            values = evaluate(collection.qrels, run, [measure]).per_query[measure]
            mean_seconds = fmean(sum(seconds.get(query_id, [])[:round_number]) for query_id in rankings_by_query)
            round_rows.append(RoundRow(row.name, round_number, mean_seconds, estimate_mean(list(values.values()))))
    return round_rows


def latency_by_concurrency(rows: Sequence[CellRow]) -> list[LatencyRow]:
    """What waiting costs by the calls' own durations, as they were at the study's concurrency. Nothing is asked."""
    return [
        LatencyRow(
            row.name,
            concurrency,
            sum(query.seconds(concurrency) for query in row.query_costs) / (row.cost.queries or 1),
        )
        for row in rows
        if row.cell is not None
        for concurrency in CONCURRENCY_LEVELS
    ]


def _replay_rankings(
    cell: Cell, collection: LoadedCollection, folder: StudyFolder, journal: Journal
) -> dict[str, list[Ranking]]:
    """Query id -> its rankings after 0, 1, ... rounds, of all its candidates."""
    strategy = cell.make_strategy()
    records = journal.windows(folder.journal_run(cell))
    records_by_query = {
        query_id: list(query_records)
        for query_id, query_records in groupby(records, key=lambda record: record.query_id)
    }
    rankings_by_query: dict[str, list[Ranking]] = {}
    for query_id, candidates in collection.runs[cell.first_stage]:
        head, tail = candidates[: cell.depth], tuple(candidate.doc_id for candidate in candidates[cell.depth :])
        rankings = rankings_by_round(strategy, head, query_seed(query_id), records_by_query.get(query_id, ()))
        rankings_by_query[query_id] = [Ranking.untied((*ranking.doc_ids, *tail)) for ranking in rankings]
    return rankings_by_query


def _to_candidates(ranking: Ranking) -> list[Candidate]:
    return [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(ranking.doc_ids, 1)]
