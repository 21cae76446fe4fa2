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

from rank_k.data.files import read_run
from rank_k.errors import InputError
from rank_k.evaluation.measures import evaluate
from rank_k.evaluation.significance import PairedDifference, holm, interval, paired_difference
from rank_k.journal import Journal
from rank_k.reports.figures import Point, pareto_set
from rank_k.study.cell_costs import CellCost, QueryCosts, mean_cost, read_costs
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Average, Cell, Published, Study
from rank_k.study.inputs import LoadedCollections
from rank_k.types import Run, Usage

AXES = ("tokens", "rounds", "seconds")
"""What quality is set against. Each is a property of `Cost`."""

FIRST_STAGE = "first stage"


class Estimate(NamedTuple):
    """A mean over queries, its standard error (NaN for one query) and its 95 % bootstrap interval."""

    mean: float
    error: float
    low: float
    high: float


class Group(NamedTuple):
    """`judgments`: what the queries are judged by (their sha256)."""

    judgments: str
    first_stage: str


@dataclass(frozen=True, slots=True)
class Row:
    """`cell` None: the first stage itself, which costs nothing here. `values`: measure -> query id -> value.
    `against`: the difference from the group's baseline in the first measure (None: this is it, or there is none);
    `p`: of its randomization test, corrected by Holm for all rows of the study. `on_set`: the axes on whose Pareto
    set it lies."""

    group: Group
    collection: str
    first_stage: str
    cell: Cell | None
    values: Mapping[str, Mapping[str, float]]
    quality: Mapping[str, Estimate]
    spent: tuple[QueryCosts, ...] = ()
    cost: CellCost = field(default_factory=CellCost)
    against: PairedDifference | None = None
    baseline: str = ""
    p: float = nan
    on_set: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.collection}.{self.first_stage}" if self.cell is None else self.cell.name

    @property
    def first(self) -> Estimate:
        """Of the first measure, the one that counts."""
        return next(iter(self.quality.values()))

    @property
    def first_values(self) -> Mapping[str, float]:
        return next(iter(self.values.values()))

    @property
    def setting(self) -> str:
        return FIRST_STAGE if self.cell is None else self.cell.setting


# --- measuring -------------------------------------------------------------------------------------


def rows_of(
    study: Study, cells: Iterable[Cell], opened: Mapping[str, LoadedCollections], folder: StudyFolder, journal: Journal
) -> list[Row]:
    """A row for every first stage and every cell, which must be finished, the rows of a run together."""
    rows: list[Row] = []
    known: set[tuple[str, str]] = set()
    for cell in cells:
        of = opened[cell.collection]
        if (cell.collection, cell.first_stage) not in known:
            known.add((cell.collection, cell.first_stage))
            rows.append(_row(study, of, cell.first_stage, None, of.first_stage(cell.first_stage), ()))
        spent = tuple(read_costs(journal, folder.run(cell)))
        rows.append(_row(study, of, cell.first_stage, cell, read_run(folder.output(cell)), spent))
    return with_pareto_set(compare_rows(rows, study.baseline))


def _row(
    study: Study,
    opened: LoadedCollections,
    first_stage: str,
    cell: Cell | None,
    run: Run,
    spent: tuple[QueryCosts, ...],
) -> Row:
    found = evaluate(opened.qrels, run, study.measures)
    values = {measure: found.per_query[measure] for measure in found.measures}
    return Row(
        Group(opened.fingerprints["judgments"], first_stage),
        opened.name,
        first_stage,
        cell,
        values,
        {measure: estimate(list(of_queries.values())) for measure, of_queries in values.items()},
        spent,
        mean_cost(spent, 0 if cell is None else len(opened.runs[first_stage].query_ids)),
    )


def estimate(values: Sequence[float]) -> Estimate:
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else nan
    return Estimate(fmean(values), error, *interval(values))


def compare_rows(rows: Sequence[Row], baseline: str | None = None) -> list[Row]:
    """The rows, each cell's compared with its group's baseline: the cell whose name or setting that is (or the first
    stage), by default the group's first cell. Raises `InputError` if no group has such a one."""
    baselines: dict[Group, Row] = {}
    for row in rows:
        if baseline in (row.name, row.setting) or (baseline is None and row.cell is not None):
            baselines.setdefault(row.group, row)
    if rows and not baselines:
        settings = dict.fromkeys(row.setting for row in rows)
        raise InputError(
            f"no cell is called {baseline!r}", f"write one of {', '.join(settings)}, or a cell's whole name"
        )
    found: list[Row] = []
    for row in rows:
        base = baselines.get(row.group)
        if row.cell is None or base is None or base is row:
            found.append(replace(row, baseline=row.name if base is row else ""))
        else:
            against = paired_difference(row.first_values, base.first_values)
            found.append(replace(row, against=against, baseline=base.name))
    corrected = iter(holm([row.against.randomization_p for row in found if row.against is not None]))
    return [row if row.against is None else replace(row, p=next(corrected)) for row in found]


def with_pareto_set(rows: Sequence[Row]) -> list[Row]:
    """The rows with `on_set` filled in, by group; first stages, which cost nothing, are left out of it."""
    found = list(rows)
    for group in dict.fromkeys(row.group for row in rows):
        for axis in axes_of(rows):
            members = [n for n, row in enumerate(found) if row.group == group and row.cell is not None]
            points = [Point(found[n].name, getattr(found[n].cost, axis), found[n].first.mean) for n in members]
            for n, best in zip(members, pareto_set(points), strict=True):
                if best:
                    found[n] = replace(found[n], on_set=found[n].on_set | {axis})
    return found


def axes_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Those of `AXES` that tell something: a simulated judge takes no time."""
    return tuple(axis for axis in AXES if any(getattr(row.cost, axis) for row in rows))


def labels_of(rows: Sequence[Row]) -> dict[str, str]:
    """Name -> the shortest that still tells the rows apart: of collection, first stage and model those that differ."""
    parts = {row.name: (row.collection, row.first_stage, "" if row.cell is None else row.cell.model) for row in rows}
    several = [len({part[n] for part in parts.values() if part[n]}) > 1 for n in range(3)]
    return {
        row.name: " ".join(
            [*(p for p, differ in zip(parts[row.name], several, strict=True) if differ and p), row.setting]
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


def averages_of(rows: Sequence[Row], averages: Sequence[Average]) -> list[AverageRow]:
    found: list[AverageRow] = []
    for average in averages:
        kinds: dict[tuple[str, str, str], dict[str, Estimate]] = {}
        for row in rows:
            model = "" if row.cell is None else row.cell.model
            of_kind = kinds.setdefault((row.first_stage, model, row.setting), {})
            of_kind[row.collection] = row.first
        for kind, by_collection in kinds.items():
            if all(name in by_collection for name in average.collections):
                some = [by_collection[name] for name in average.collections]
                error = sqrt(sum(one.error**2 for one in some)) / len(some)
                found.append(AverageRow(average.name, *kind, fmean(one.mean for one in some), error))
    return found


def published_for(row: Row, published: Sequence[Published]) -> Published | None:
    """What was published for the row's collection, first stage and model in the row's first measure."""
    model = "" if row.cell is None else row.cell.model
    where = (row.collection, row.first_stage, model, next(iter(row.quality)))
    return next((p for p in published if (p.collection, p.first_stage, p.model, p.measure) == where), None)


# --- files -----------------------------------------------------------------------------------------


def write_cells(path: Path, rows: Sequence[Row]) -> None:
    """A line per row: what the cell is, its quality and cost, and how it compares."""
    _write(path, map(cell_to_dict, rows))


def write_queries(path: Path, rows: Sequence[Row]) -> None:
    """A line per row and query, for analyses of one's own."""
    _write(path, (line for row in rows for line in _told_by_query(row)))


def cell_to_dict(row: Row) -> dict[str, Any]:
    cell, spent = row.cell, row.cost
    told: dict[str, Any] = {
        "cell": row.name,
        "collection": row.collection,
        "first_stage": row.first_stage,
        "model": "" if cell is None else cell.model,
    }
    for axis in _SETTINGS:
        value = "" if cell is None else getattr(cell, axis)
        told[axis] = "" if value is None else value
    told["queries"] = len(row.first_values)
    for measure, found in row.quality.items():
        told |= {measure: found.mean, f"{measure}_error": found.error}
        told |= {f"{measure}_low": found.low, f"{measure}_high": found.high}
    against = row.against
    told |= {
        "baseline": row.baseline,
        "difference": "" if against is None else against.mean,
        "difference_error": "" if against is None else against.error,
        "difference_low": "" if against is None else against.low,
        "difference_high": "" if against is None else against.high,
        "p_holm": "" if against is None else row.p,
        "better": "" if against is None else against.better,
        "worse": "" if against is None else against.worse,
        "rounds": spent.rounds,
        "windows": spent.windows,
        "calls": spent.calls,
        "tokens_in": spent.tokens_in,
        "tokens_cached": spent.cached,
        "tokens_reasoning": spent.reasoning,
        "tokens_answer": spent.answer,
        "tokens_estimated": int(spent.estimated),
        "seconds": spent.seconds,
        "model_seconds": spent.model_seconds,
        "unranked_windows": spent.unranked,
        "retries_exhausted_windows": spent.retries_exhausted,
        "repairs": " ".join(f"{kind}={count}" for kind, count in sorted(spent.repairs.items())),
        "pareto": " ".join(axis for axis in AXES if axis in row.on_set),
    }
    return told


_SETTINGS = (
    *("strategy", "reasoning", "samples", "depth", "window", "stride", "first_stage_weight"),
    *("passage_tokens", "maxp_tokens", "max_tokens", "temperature", "top_p", "constrained"),
)


def _told_by_query(row: Row) -> Iterator[dict[str, Any]]:
    spent = {query.query_id: query for query in row.spent}
    nothing = QueryCosts("", (), 0, Usage(), 0.0, 0, 0, {})
    for query_id in row.first_values:
        query = spent.get(query_id, nothing)
        yield {
            "cell": row.name,
            "query_id": query_id,
            **{measure: of_queries[query_id] for measure, of_queries in row.values.items()},
            "rounds": len(query.rounds),
            "windows": query.windows,
            "calls": query.calls,
            "tokens_in": query.usage.prompt_tokens,
            "tokens_cached": query.usage.cached_tokens,
            "tokens_reasoning": query.usage.reasoning_tokens,
            "tokens_answer": query.usage.completion_tokens - query.usage.reasoning_tokens,
            "seconds": query.seconds(),
            "unranked_windows": query.unranked,
        }


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for line in lines:
            if writer is None:
                writer = csv.DictWriter(file, list(line))
                writer.writeheader()
            writer.writerow(
                {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
            )
    part.replace(path)
