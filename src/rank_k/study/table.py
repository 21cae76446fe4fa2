"""The main table of a study: the quality and the cost of each cell, compared with the baseline of its group.

The cells of a *group* can be compared query by query: they have the same judgments and first stages of the same name.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, product
from math import nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from rank_k.data.part_file import PartFile
from rank_k.data.trec import read_run
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.run_costs import QueryCost, RunCost
from rank_k.evaluation.significance import PairedDifference, bootstrap_interval, holm, paired_difference
from rank_k.journal import Journal
from rank_k.options import STUDY_OPTIONS
from rank_k.reports.figures import Point, pareto_set
from rank_k.study.cell_costs import read_cell_cost, waiting_seconds
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, CollectionAverage, Study
from rank_k.study.inputs import LoadedCollection
from rank_k.types import Run

COST_AXES = {
    "tokens": ("tokens_in", "tokens_reasoning", "tokens_answer"),
    "rounds": ("rounds",),
    "seconds": ("seconds",),
}
"""The kinds of cost that quality is plotted against. Each is the sum of some columns of the table."""

FIRST_STAGE = "first stage"


class Estimate(NamedTuple):
    """A mean over queries, its standard error (NaN for one query) and its 95% bootstrap interval."""

    mean: float
    error: float
    low: float
    high: float


def cost_columns(query: QueryCost) -> dict[str, float]:
    """Return the cost of a query by column. `seconds` assumes that all windows of a round are in flight together."""
    usage = query.usage
    return {
        "rounds": query.rounds,
        "windows": query.windows,
        "calls": query.calls,
        "tokens_in": usage.prompt_tokens,
        "tokens_cached": usage.cached_tokens,
        "tokens_reasoning": usage.reasoning_tokens,
        "tokens_answer": usage.completion_tokens - usage.reasoning_tokens,
        "seconds": waiting_seconds(query),
    }


@dataclass(frozen=True, slots=True)
class CellRow:
    """The results of one cell or of a first stage.

    Attributes:
        group: The SHA-256 checksum of the judgments, and the name of the first stage.
        collection: The name of the collection.
        first_stage: The name of the first stage.
        cell: The cell; None for the first stage itself, which costs nothing.
        values: The values of each query: measure -> query id -> value.
        quality: The mean of each measure.
        run_queries: The number of queries of the run.
        cost: The cost of the run.
        mean_cost: The mean of `cost_columns` over the queries of the run.
        difference: The difference from the baseline in the first measure; None for the baseline itself or without one.
        baseline: The name of the baseline; empty without one.
        corrected_p: The p value of the randomization test, corrected with Holm's method for all rows of the study.
        pareto_axes: The kinds of cost for which the cell is in the Pareto set.
    """

    group: tuple[str, str]
    collection: str
    first_stage: str
    cell: Cell | None
    values: Mapping[str, Mapping[str, float]]
    quality: Mapping[str, Estimate]
    run_queries: int
    cost: RunCost
    mean_cost: Mapping[str, float]
    difference: PairedDifference | None = None
    baseline: str = ""
    corrected_p: float = nan
    pareto_axes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.collection}.{self.first_stage}" if self.cell is None else self.cell.name

    @property
    def model(self) -> str:
        return "" if self.cell is None else self.cell.model

    @property
    def setting(self) -> str:
        return FIRST_STAGE if self.cell is None else self.cell.setting

    @property
    def primary_quality(self) -> Estimate:
        """The quality in the first measure."""
        return next(iter(self.quality.values()))

    @property
    def first_measure_values(self) -> Mapping[str, float]:
        return next(iter(self.values.values()))

    @property
    def unranked_share(self) -> float:
        """The fraction of the windows that kept their input order because no answer was usable."""
        windows = sum(query.windows for query in self.cost.queries.values())
        return self.cost.unranked / windows if windows else 0.0

    def axis_cost(self, axis: str) -> float:
        """Return the mean cost per query on one of `COST_AXES`."""
        return sum(self.mean_cost[column] for column in COST_AXES[axis])


# --- measuring -------------------------------------------------------------------------------------


def build_rows(
    study: Study,
    cells: Iterable[Cell],
    collections: Mapping[str, LoadedCollection],
    folder: StudyFolder,
    journal: Journal,
) -> list[CellRow]:
    """Return a row for every first stage and every cell, run by run. All cells must be finished."""
    rows: list[CellRow] = []
    for cell in cells:
        collection = collections[cell.collection]
        if not any((row.collection, row.first_stage) == (cell.collection, cell.first_stage) for row in rows):
            first_stage = collection.first_stage(cell.first_stage)
            rows.append(_build_row(study, collection, cell.first_stage, None, first_stage, RunCost()))
        cost = read_cell_cost(journal, folder.journal_run(cell))
        rows.append(_build_row(study, collection, cell.first_stage, cell, read_run(folder.run_file(cell)), cost))
    return mark_pareto_set(compare_rows(rows, study.baseline))


def _build_row(
    study: Study, collection: LoadedCollection, first_stage: str, cell: Cell | None, run: Run, cost: RunCost
) -> CellRow:
    values = evaluate(collection.qrels, run, study.measures).per_query
    run_queries = len(collection.runs[first_stage].query_ids)
    columns = [cost_columns(query) for query in cost.queries.values()]
    return CellRow(
        group=(collection.fingerprints["judgments"], first_stage),
        collection=collection.name,
        first_stage=first_stage,
        cell=cell,
        values=values,
        quality={measure: estimate_mean(list(by_query.values())) for measure, by_query in values.items()},
        run_queries=run_queries,
        cost=cost,
        mean_cost={name: sum(query[name] for query in columns) / run_queries for name in cost_columns(QueryCost())},
    )


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean of values over queries, its standard error and its interval."""
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else nan
    return Estimate(fmean(values), error, *bootstrap_interval(values))


def compare_rows(rows: Sequence[CellRow], baseline: str | None = None) -> list[CellRow]:
    """Return the rows, each cell compared with the baseline of its group.

    Args:
        rows: The rows.
        baseline: The name or the setting of the baselines. The default is the first cell of each group.

    Raises:
        InputError: If no row has that name or setting.
    """
    baselines = {
        row.group: row
        for row in reversed(rows)  # so that the first one of several in a group remains
        if baseline in (row.name, row.setting) or (baseline is None and row.cell is not None)
    }
    if rows and not baselines:
        settings = dict.fromkeys(row.setting for row in rows)
        raise InputError(
            f"no cell is called {baseline!r}", f"give one of {', '.join(settings)}, or the full name of a cell"
        )
    differences = {
        row.name: paired_difference(row.first_measure_values, baselines[row.group].first_measure_values)
        for row in rows
        if row.cell is not None and baselines.get(row.group, row) is not row
    }
    p_values = holm([difference.randomization_p for difference in differences.values()])
    corrected_ps = dict(zip(differences, p_values, strict=True))
    return [
        replace(
            row,
            difference=differences.get(row.name),
            baseline=baselines[row.group].name if row.name in differences or row is baselines.get(row.group) else "",
            corrected_p=corrected_ps.get(row.name, nan),
        )
        for row in rows
    ]


def mark_pareto_set(rows: Sequence[CellRow]) -> list[CellRow]:
    """Return the rows with `pareto_axes`, computed within each group. First stages, which cost nothing, have none."""
    axes_by_name: dict[str, set[str]] = defaultdict(set)
    for axis, group in product(cost_axes(rows), {row.group for row in rows}):
        members = [row for row in rows if row.group == group and row.cell is not None]
        points = [Point(row.name, row.axis_cost(axis), row.primary_quality.mean) for row in members]
        for row in compress(members, pareto_set(points)):
            axes_by_name[row.name].add(axis)
    return [replace(row, pareto_axes=frozenset(axes_by_name[row.name])) for row in rows]


def cost_axes(rows: Sequence[CellRow]) -> tuple[str, ...]:
    """Return the kinds of cost that are not zero in all rows. A simulated model, for example, takes no time."""
    return tuple(axis for axis in COST_AXES if any(row.axis_cost(axis) for row in rows))


def short_labels(rows: Sequence[CellRow]) -> dict[str, str]:
    """Return a short unique label for each row: its setting, preceded by the collection, run and model if they vary."""
    parts_by_name = {row.name: (row.collection, row.first_stage, row.model) for row in rows}
    varies = [len({*column} - {""}) > 1 for column in zip(*parts_by_name.values(), strict=True)]
    return {row.name: " ".join([*filter(None, compress(parts_by_name[row.name], varies)), row.setting]) for row in rows}


# --- averages --------------------------------------------------------------------------------------


class AverageRow(NamedTuple):
    """The mean of a measure over collections of equal weight.

    `error` is its standard error, computed from the standard errors of the collections.
    """

    average: str
    first_stage: str
    model: str
    setting: str
    mean: float
    error: float


def compute_averages(rows: Sequence[CellRow], averages: Sequence[CollectionAverage]) -> list[AverageRow]:
    """Return each average for every first stage, model and setting that has results in all of its collections."""
    estimates_by_kind: dict[tuple[str, str, str], dict[str, Estimate]] = defaultdict(dict)
    for row in rows:
        estimates_by_kind[row.first_stage, row.model, row.setting][row.collection] = row.primary_quality
    average_rows = []
    for average, (kind, by_collection) in product(averages, estimates_by_kind.items()):
        if by_collection.keys() >= {*average.collections}:
            estimates = [by_collection[name] for name in average.collections]
            error = sqrt(sum(estimate.error**2 for estimate in estimates)) / len(estimates)
            mean = fmean(estimate.mean for estimate in estimates)
            average_rows.append(AverageRow(average.name, *kind, mean, error))
    return average_rows


# --- files -----------------------------------------------------------------------------------------


def write_cells(path: Path, rows: Sequence[CellRow]) -> None:
    """Write a CSV file with a line per row: its settings, quality, cost and difference from the baseline."""
    _write_csv(path, [cell_to_dict(row) for row in rows])


def write_queries(path: Path, rows: Sequence[CellRow]) -> None:
    """Write a CSV file with a line per row and query."""
    _write_csv(path, [line for row in rows for line in _query_lines(row)])


def cell_to_dict(row: CellRow) -> dict[str, Any]:
    """Return a row of the table with the keys of CSV and JSON."""
    settings = {axis: getattr(row.cell, axis, None) for axis in _SETTING_COLUMNS}
    difference = row.difference
    return {
        "cell": row.name,
        "collection": row.collection,
        "first_stage": row.first_stage,
        "model": row.model,
        **{axis: "" if value is None else value for axis, value in settings.items()},
        "queries": len(row.first_measure_values),
        **{
            column: value
            for measure, quality in row.quality.items()
            for column, value in zip(
                (measure, f"{measure}_error", f"{measure}_low", f"{measure}_high"), quality, strict=True
            )
        },
        "baseline": row.baseline,
        "difference": "" if difference is None else difference.mean,
        "difference_error": "" if difference is None else difference.standard_error,
        "difference_low": "" if difference is None else difference.low,
        "difference_high": "" if difference is None else difference.high,
        "p_holm": "" if difference is None else row.corrected_p,
        "better": "" if difference is None else difference.better,
        "worse": "" if difference is None else difference.worse,
        **{column: value for column, value in row.mean_cost.items() if column != "seconds"},
        "tokens_estimated": int(row.cost.usage.estimated),
        "seconds": row.mean_cost["seconds"],
        "model_seconds": row.cost.model_seconds,
        "unranked_windows": row.cost.unranked,
        "retries_exhausted_windows": row.cost.repairs["retries_exhausted"],
        "repairs": " ".join(f"{kind}={count}" for kind, count in sorted(row.cost.repairs.items())),
        "pareto": " ".join(axis for axis in COST_AXES if axis in row.pareto_axes),
    }


_SETTING_COLUMNS = tuple(dict.fromkeys(("strategy", "reasoning", *STUDY_OPTIONS)))


def _query_lines(row: CellRow) -> Iterator[dict[str, Any]]:
    for query_id in row.first_measure_values:
        query = row.cost.queries.get(query_id, QueryCost())
        yield {
            "cell": row.name,
            "query_id": query_id,
            **{measure: values_by_query[query_id] for measure, values_by_query in row.values.items()},
            **cost_columns(query),
            "unranked_windows": query.unranked_windows,
        }


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    for line in lines:
        writer.writerow({key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()})
    with PartFile(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
