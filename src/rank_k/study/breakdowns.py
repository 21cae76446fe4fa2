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
from rank_k.study.cell_costs import makespan, rankings_by_round, seed_of
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, strategy_of
from rank_k.study.inputs import LoadedCollections
from rank_k.study.table import Estimate, Row, estimate
from rank_k.types import Candidate, Ranking

THIRDS = ("hard", "middling", "easy")


class ByDifficulty(NamedTuple):
    """A cell over a third of the queries, compared with its baseline there. `by`: what made them hard; `low` and
    `high`: its range in this third. `baseline` and `quality`: means; `reasoning`: tokens per query."""

    name: str
    by: str
    third: str
    low: float
    high: float
    baseline: float
    quality: float
    against: PairedDifference
    reasoning: float


def by_difficulty(
    rows: Sequence[Row], opened: Mapping[str, LoadedCollections], folder: StudyFolder
) -> list[ByDifficulty]:
    """For every compared cell. Queries are hard by the first stage's quality, which needs judgments, and by how little
    the baseline's first ten have in common with the first stage's, which needs none.

    Neither looks at the compared cell. The first does not look at the baseline's answers either; the second does, so
    that where these come from chance, a part of a difference may come from the choice of queries.
    """
    found: list[ByDifficulty] = []
    by_name = {row.name: row for row in rows}
    for row in rows:
        base = by_name.get(row.baseline)
        if row.cell is None or row.against is None or base is None or base.cell is None:
            continue
        first_stage = by_name[f"{row.collection}.{row.first_stage}"]
        before = opened[row.collection].first_stage(row.first_stage)
        after = read_run(folder.output(base.cell))
        measure = next(iter(row.quality))
        kinds = {
            f"{measure} of the first stage": dict(first_stage.first_values),
            "agreement of first stage and baseline": {
                query_id: average_overlap(_ids(before.get(query_id, ())), _ids(after.get(query_id, ())))
                for query_id in row.first_values
            },
        }
        reasoning = {query.query_id: query.usage.reasoning_tokens for query in row.spent}
        for by, difficulty in kinds.items():
            for third, queries in zip(THIRDS, thirds(difficulty), strict=True):
                if queries:
                    ours = {query_id: row.first_values[query_id] for query_id in queries}
                    theirs = {query_id: base.first_values[query_id] for query_id in queries}
                    found.append(
                        ByDifficulty(
                            row.name,
                            by,
                            third,
                            difficulty[queries[0]],
                            difficulty[queries[-1]],
                            fmean(theirs.values()),
                            fmean(ours.values()),
                            paired_difference(ours, theirs),
                            fmean(reasoning.get(query_id, 0) for query_id in queries),
                        )
                    )
    return found


def thirds(values: Mapping[str, float]) -> list[list[str]]:
    """The ids in three groups, the lowest values first, of sizes that differ by one at most; equal values by id."""
    ids = sorted(values, key=lambda query_id: (values[query_id], query_id))
    cuts = [round(len(ids) * n / 3) for n in range(4)]
    return [ids[start:end] for start, end in pairwise(cuts)]


def average_overlap(one: Sequence[str], other: Sequence[str], depth: int = 10) -> float:
    """From 0 to 1: the mean, over the depths 1 to `depth`, of the share that two rankings have in common down to there
    (Fagin, Kumar and Sivakumar, SODA 2003)."""
    shares = []
    for cut in range(1, depth + 1):
        length = min(cut, max(len(one), len(other)))
        shares.append(len({*one[:cut]} & {*other[:cut]}) / length if length else 1.0)
    return fmean(shares)


def _ids(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.doc_id for candidate in candidates]


# --- stopping early --------------------------------------------------------------------------------

SLOTS = (1, 4, 16, None)
"""Windows of one query asked at a time; None: all of a round."""


class AfterRound(NamedTuple):
    """What a cell would have been worth, had every query been stopped after so many rounds (0: the strategy's own
    beginning, the first stage's order). `seconds`: mean of the critical path until then."""

    name: str
    rounds: int
    seconds: float
    quality: Estimate


class WithSlots(NamedTuple):
    """Mean seconds of a query that has the server's slots to itself, so many at a time."""

    name: str
    slots: int | None
    seconds: float


def by_round(
    rows: Sequence[Row], opened: Mapping[str, LoadedCollections], folder: StudyFolder, journal: Journal
) -> list[AfterRound]:
    """For every cell that does not split its documents, by replay of the journal."""
    found: list[AfterRound] = []
    for row in rows:
        if row.cell is None or row.cell.passages is not None:
            continue
        of = opened[row.collection]
        measure = next(iter(row.quality))
        replayed = _replayed(row.cell, of, folder, journal)
        seconds = {query.query_id: [makespan(windows) for windows in query.rounds] for query in row.spent}
        for number in range(max(map(len, replayed.values()), default=1)):
            run = {
                query_id: _candidates(rankings[min(number, len(rankings) - 1)])
                for query_id, rankings in replayed.items()
            }
            values = evaluate(of.qrels, run, [measure]).per_query[measure]
            waited = fmean(sum(seconds.get(query_id, [])[:number]) for query_id in replayed)
            found.append(AfterRound(row.name, number, waited, estimate(list(values.values()))))
    return found


def with_slots(rows: Sequence[Row]) -> list[WithSlots]:
    """What waiting costs by the calls' own durations, as they were at the study's concurrency. Nothing is asked."""
    return [
        WithSlots(row.name, slots, sum(query.seconds(slots) for query in row.spent) / (row.cost.queries or 1))
        for row in rows
        if row.cell is not None
        for slots in SLOTS
    ]


def _replayed(cell: Cell, opened: LoadedCollections, folder: StudyFolder, journal: Journal) -> dict[str, list[Ranking]]:
    """Query id -> its rankings after 0, 1, ... rounds, of all its candidates."""
    strategy = strategy_of(cell)
    records = journal.windows(folder.run(cell))
    windows = {query_id: list(some) for query_id, some in groupby(records, key=lambda record: record.query_id)}
    found: dict[str, list[Ranking]] = {}
    for query_id, candidates in opened.runs[cell.first_stage]:
        head, tail = candidates[: cell.depth], tuple(c.doc_id for c in candidates[cell.depth :])
        rankings = rankings_by_round(strategy, head, seed_of(query_id), windows.get(query_id, ()))
        found[query_id] = [Ranking.of((*ranking.doc_ids, *tail)) for ranking in rankings]
    return found


def _candidates(ranking: Ranking) -> list[Candidate]:
    return [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(ranking.doc_ids, 1)]
