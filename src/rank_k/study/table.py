"""What a study found: a row per cell with quality and cost, compared within its group, and the Pareto set.

A *group* is what can be compared query by query: the same judgments, the same kind of first stage.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from rank_k.data.trec import read_run
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.significance import PairedDifference, bootstrap_interval, holm, paired_difference
from rank_k.journal import Journal
from rank_k.options import STUDY_OPTIONS
from rank_k.reports.figures import Point, pareto_set
from rank_k.study.cell_costs import CellCost, CellQueryCost, mean_cost, read_costs
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, CollectionAverage, PublishedResult, Study
from rank_k.study.inputs import LoadedCollection
from rank_k.types import Run, Usage

COST_AXES = ("tokens", "rounds", "seconds")
"""What quality is set against. Each is a property of `CellCost`."""

FIRST_STAGE = "first stage"


class Estimate(NamedTuple):
    """A mean over queries, its standard error (NaN for one query) and its 95 % bootstrap interval."""

    mean: float
    error: float
    low: float
    high: float


class ComparisonGroup(NamedTuple):
    """`judgments`: what the queries are judged by (their sha256)."""

    judgments: str
    first_stage: str


@dataclass(frozen=True, slots=True)
class CellRow:
    """`cell` None: the first stage itself, which costs nothing here. `values`: measure -> query id -> value.
    `difference`: that from the group's baseline in the first measure (None: this is it, or there is none);
    `corrected_p`: of its randomization test, corrected by Holm for all rows of the study. `pareto_axes`: the axes on
    whose Pareto set it lies."""

    group: ComparisonGroup
    collection: str
    first_stage: str
    cell: Cell | None
    values: Mapping[str, Mapping[str, float]]
    quality: Mapping[str, Estimate]
    query_costs: tuple[CellQueryCost, ...] = ()
    cost: CellCost = field(default_factory=CellCost)
    difference: PairedDifference | None = None
    baseline: str = ""
    corrected_p: float = nan
    pareto_axes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.collection}.{self.first_stage}" if self.cell is None else self.cell.name

    @property
    def primary_quality(self) -> Estimate:
        """Of the first measure, the one that counts."""
        return next(iter(self.quality.values()))

    @property
    def first_measure_values(self) -> Mapping[str, float]:
        return next(iter(self.values.values()))

    @property
    def setting(self) -> str:
        return FIRST_STAGE if self.cell is None else self.cell.setting


# --- measuring -------------------------------------------------------------------------------------


def build_rows(
    study: Study,
    cells: Iterable[Cell],
    collections: Mapping[str, LoadedCollection],
    folder: StudyFolder,
    journal: Journal,
) -> list[CellRow]:
    """A row for every first stage and every cell, which must be finished, the rows of a run together."""
    rows: list[CellRow] = []
    measured_runs: set[tuple[str, str]] = set()
    for cell in cells:
        collection = collections[cell.collection]
        if (cell.collection, cell.first_stage) not in measured_runs:
            measured_runs.add((cell.collection, cell.first_stage))
            rows.append(
                _build_row(study, collection, cell.first_stage, None, collection.first_stage(cell.first_stage), ())
            )
        query_costs = tuple(read_costs(journal, folder.journal_run(cell)))
        rows.append(_build_row(study, collection, cell.first_stage, cell, read_run(folder.run_file(cell)), query_costs))
    return mark_pareto_set(compare_rows(rows, study.baseline))


def _build_row(
    study: Study,
    collection: LoadedCollection,
    first_stage: str,
    cell: Cell | None,
    run: Run,
    query_costs: tuple[CellQueryCost, ...],
) -> CellRow:
    evaluation = evaluate(collection.qrels, run, study.measures)
    values = {measure: evaluation.per_query[measure] for measure in evaluation.measures}
    return CellRow(
        ComparisonGroup(collection.fingerprints["judgments"], first_stage),
        collection.name,
        first_stage,
        cell,
        values,
        {measure: estimate_mean(list(values_by_query.values())) for measure, values_by_query in values.items()},
        query_costs,
        mean_cost(query_costs, 0 if cell is None else len(collection.runs[first_stage].query_ids)),
    )


def estimate_mean(values: Sequence[float]) -> Estimate:
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else nan
    return Estimate(fmean(values), error, *bootstrap_interval(values))


def compare_rows(rows: Sequence[CellRow], baseline: str | None = None) -> list[CellRow]:
    """The rows, each cell's compared with its group's baseline: the cell whose name or setting that is (or the first
    stage), by default the group's first cell. Raises `InputError` if no group has such a one."""
    baselines: dict[ComparisonGroup, CellRow] = {}
    for row in rows:
        if baseline in (row.name, row.setting) or (baseline is None and row.cell is not None):
            baselines.setdefault(row.group, row)
    if rows and not baselines:
        settings = dict.fromkeys(row.setting for row in rows)
        raise InputError(
            f"no cell is called {baseline!r}", f"write one of {', '.join(settings)}, or a cell's whole name"
        )
    compared_rows: list[CellRow] = []
    for row in rows:
        baseline_row = baselines.get(row.group)
        if row.cell is None or baseline_row is None or baseline_row is row:
            compared_rows.append(replace(row, baseline=row.name if baseline_row is row else ""))
        else:
            difference = paired_difference(row.first_measure_values, baseline_row.first_measure_values)
            compared_rows.append(replace(row, difference=difference, baseline=baseline_row.name))
    corrected_ps = iter(holm([row.difference.randomization_p for row in compared_rows if row.difference is not None]))
    return [row if row.difference is None else replace(row, corrected_p=next(corrected_ps)) for row in compared_rows]


def mark_pareto_set(rows: Sequence[CellRow]) -> list[CellRow]:
    """The rows with `pareto_axes` filled in, by group; first stages, which cost nothing, are left out of it."""
    marked_rows = list(rows)
    for group in dict.fromkeys(row.group for row in rows):
        for axis in cost_axes(rows):
            member_indexes = [
                index for index, row in enumerate(marked_rows) if row.group == group and row.cell is not None
            ]
            points = [
                Point(
                    marked_rows[index].name,
                    getattr(marked_rows[index].cost, axis),
                    marked_rows[index].primary_quality.mean,
                )
                for index in member_indexes
            ]
            for index, on_pareto_set in zip(member_indexes, pareto_set(points), strict=True):
                if on_pareto_set:
                    marked_rows[index] = replace(
                        marked_rows[index], pareto_axes=marked_rows[index].pareto_axes | {axis}
                    )
    return marked_rows


def cost_axes(rows: Sequence[CellRow]) -> tuple[str, ...]:
    """Those of `COST_AXES` that tell something: a simulated judge takes no time."""
    return tuple(axis for axis in COST_AXES if any(getattr(row.cost, axis) for row in rows))


def short_labels(rows: Sequence[CellRow]) -> dict[str, str]:
    """Name -> the shortest that still tells the rows apart: of collection, first stage and model those that differ."""
    names_by_row = {
        row.name: (row.collection, row.first_stage, "" if row.cell is None else row.cell.model) for row in rows
    }
    varies = [len({names[position] for names in names_by_row.values() if names[position]}) > 1 for position in range(3)]
    return {
        row.name: " ".join(
            [
                *(part for part, varies in zip(names_by_row[row.name], varies, strict=True) if varies and part),
                row.setting,
            ]
        )
        for row in rows
    }


# --- averages and published figures ----------------------------------------------------------------


class AverageRow(NamedTuple):
    """The mean of a measure over collections, all weighing the same; `error` from those of the collections, whose
    queries are others."""

    average: str
    first_stage: str
    model: str
    setting: str
    mean: float
    error: float


def compute_averages(rows: Sequence[CellRow], averages: Sequence[CollectionAverage]) -> list[AverageRow]:
    average_rows: list[AverageRow] = []
    for average in averages:
        estimates_by_kind: dict[tuple[str, str, str], dict[str, Estimate]] = {}
        for row in rows:
            model = "" if row.cell is None else row.cell.model
            estimates = estimates_by_kind.setdefault((row.first_stage, model, row.setting), {})
            estimates[row.collection] = row.primary_quality
        for kind, by_collection in estimates_by_kind.items():
            if all(name in by_collection for name in average.collections):
                averaged = [by_collection[name] for name in average.collections]
                error = sqrt(sum(estimate.error**2 for estimate in averaged)) / len(averaged)
                average_rows.append(
                    AverageRow(average.name, *kind, fmean(estimate.mean for estimate in averaged), error)
                )
    return average_rows


def find_published(row: CellRow, published: Sequence[PublishedResult]) -> PublishedResult | None:
    """What was published for the row's collection, first stage and model in the row's first measure."""
    model = "" if row.cell is None else row.cell.model
    key = (row.collection, row.first_stage, model, next(iter(row.quality)))
    return next(
        (
            figure
            for figure in published
            if (figure.collection, figure.first_stage, figure.model, figure.measure) == key
        ),
        None,
    )


# --- files -----------------------------------------------------------------------------------------


def write_cells(path: Path, rows: Sequence[CellRow]) -> None:
    """A line per row: what the cell is, its quality and cost, and how it compares."""
    _write_csv(path, map(cell_to_dict, rows))


def write_queries(path: Path, rows: Sequence[CellRow]) -> None:
    """A line per row and query, for analyses of one's own."""
    _write_csv(path, (line for row in rows for line in _query_rows(row)))


def cell_to_dict(row: CellRow) -> dict[str, Any]:
    cell, cost = row.cell, row.cost
    columns: dict[str, Any] = {
        "cell": row.name,
        "collection": row.collection,
        "first_stage": row.first_stage,
        "model": "" if cell is None else cell.model,
    }
    for axis in _SETTING_COLUMNS:
        value = "" if cell is None else getattr(cell, axis)
        columns[axis] = "" if value is None else value
    columns["queries"] = len(row.first_measure_values)
    for measure, quality in row.quality.items():
        columns |= {measure: quality.mean, f"{measure}_error": quality.error}
        columns |= {f"{measure}_low": quality.low, f"{measure}_high": quality.high}
    difference = row.difference
    columns |= {
        "baseline": row.baseline,
        "difference": "" if difference is None else difference.mean,
        "difference_error": "" if difference is None else difference.standard_error,
        "difference_low": "" if difference is None else difference.low,
        "difference_high": "" if difference is None else difference.high,
        "p_holm": "" if difference is None else row.corrected_p,
        "better": "" if difference is None else difference.better,
        "worse": "" if difference is None else difference.worse,
        "rounds": cost.rounds,
        "windows": cost.windows,
        "calls": cost.calls,
        "tokens_in": cost.prompt_tokens,
        "tokens_cached": cost.cached_tokens,
        "tokens_reasoning": cost.reasoning_tokens,
        "tokens_answer": cost.answer_tokens,
        "tokens_estimated": int(cost.estimated),
        "seconds": cost.seconds,
        "model_seconds": cost.model_seconds,
        "unranked_windows": cost.unranked,
        "retries_exhausted_windows": cost.retries_exhausted,
        "repairs": " ".join(f"{kind}={count}" for kind, count in sorted(cost.repairs.items())),
        "pareto": " ".join(axis for axis in COST_AXES if axis in row.pareto_axes),
    }
    return columns


_SETTING_COLUMNS = tuple(dict.fromkeys(("strategy", "reasoning", *STUDY_OPTIONS)))


def _query_rows(row: CellRow) -> Iterator[dict[str, Any]]:
    costs_by_query = {query_cost.query_id: query_cost for query_cost in row.query_costs}
    no_cost = CellQueryCost("", (), 0, Usage(), 0.0, 0, 0, {})
    for query_id in row.first_measure_values:
        query_cost = costs_by_query.get(query_id, no_cost)
        yield {
            "cell": row.name,
            "query_id": query_id,
            **{measure: values_by_query[query_id] for measure, values_by_query in row.values.items()},
            "rounds": len(query_cost.seconds_by_round),
            "windows": query_cost.windows,
            "calls": query_cost.calls,
            "tokens_in": query_cost.usage.prompt_tokens,
            "tokens_cached": query_cost.usage.cached_tokens,
            "tokens_reasoning": query_cost.usage.reasoning_tokens,
            "tokens_answer": query_cost.usage.completion_tokens - query_cost.usage.reasoning_tokens,
            "seconds": query_cost.seconds(),
            "unranked_windows": query_cost.unranked,
        }


def _write_csv(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for line in lines:
            if writer is None:
                writer = csv.DictWriter(file, list(line))
                writer.writeheader()
            writer.writerow(
                {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
            )
    partial.replace(path)
