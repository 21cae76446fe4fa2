"""A study's report as one HTML file: what was found, in tables and plots, and how it was made."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rank_k
from rank_k.evaluation.significance import CONFIDENCE_LEVEL, RESAMPLES, SEED, SIGNIFICANCE_LEVEL
from rank_k.reports.evaluation_report import Figure
from rank_k.reports.figures import Point, bars, scatter
from rank_k.reports.html import format_integer, format_signed, render_template
from rank_k.study.breakdowns import DifficultyRow
from rank_k.study.results import StudyResults
from rank_k.study.table import CellRow

_COST_LABELS = {
    "tokens": "tokens per query, in and out",
    "rounds": "rounds per query",
    "seconds": "seconds per query, all windows of a round at a time",
}

_LOGARITHMIC_FROM_RATIO = 20
"""From so many times between the cheapest and the dearest, costs are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class _RunSection:
    """A run and a model: the cells' rows, the first stage's first, and their plots."""

    heading: str
    rows: Sequence[CellRow]
    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class _DifficultySection:
    """Cells over the thirds of the queries, by one kind of difficulty and against one baseline."""

    criterion: str
    baseline: str
    rows: Sequence[DifficultyRow]
    figures: Sequence[Figure]


def write_study_report(path: Path, results: StudyResults, command: str = "") -> None:
    """`command`: how the study was asked for. Raises `MissingExtra`."""
    labels = results.labels
    page = render_template(
        "study.html.j2",
        title=results.study.title,
        results=results,
        labels=labels,
        measure=results.study.measures[0],
        confidence=f"{CONFIDENCE_LEVEL:.0%}".replace("%", "\u00a0%"),
        significance_level=SIGNIFICANCE_LEVEL,
        significant_rows=[
            row for row in results.rows if row.difference is not None and row.corrected_p <= SIGNIFICANCE_LEVEL
        ],
        comparisons=sum(row.difference is not None for row in results.rows),
        sections=[
            _RunSection(heading, rows, _cost_figures(results, heading, rows)) for heading, rows in results.by_run()
        ],
        difficulty_sections=[
            _DifficultySection(criterion, labels[baseline], rows, _difficulty_figures(results, criterion, rows))
            for (criterion, baseline), rows in results.difficulty_tables()
        ],
        round_figures=_round_figures(results),
        page_facts=_reproduction_facts(results, command),
    )
    partial = path.with_name(path.name + ".part")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def _cost_figures(results: StudyResults, heading: str, rows: Sequence[CellRow]) -> list[Figure]:
    """Quality against each cost, with intervals; cells of one strategy look alike."""
    figures = []
    cells = [(row, row.cell) for row in rows if row.cell is not None]
    for axis in results.axes:
        points = [
            Point(
                row.setting,
                row.axis_cost(axis),
                row.primary_quality.mean,
                None,
                (row.primary_quality.low, row.primary_quality.high),
                cell.strategy,
            )
            for row, cell in cells
        ]
        pareto_mask = [axis in row.pareto_axes for row, _ in cells]
        figures.append(
            _scatter_figure(
                points, results.study.measures[0], _COST_LABELS[axis], f"{heading}: quality", pareto_mask=pareto_mask
            )
        )
    return figures


def _scatter_figure(
    points: Sequence[Point],
    measure: str,
    cost_label: str,
    title: str,
    connect_series: bool = False,
    pareto_mask: Sequence[bool] | None = None,
) -> Figure:
    costs = [point.x for point in points]
    logarithmic = min(costs) > 0 and max(costs) / min(costs) >= _LOGARITHMIC_FROM_RATIO
    caption = f"{measure} against {cost_label}"
    svg = scatter(
        points,
        title=f"{title} against {cost_label}",
        description="; ".join(
            f"{point.name or point.series}: {format_integer(point.x)}, {point.y:.4f}" for point in points
        ),
        x_label=cost_label + (" (logarithmic)" if logarithmic else ""),
        y_label=measure,
        log_x=logarithmic,
        connect_series=connect_series,
        pareto_mask=pareto_mask,
    )
    return Figure(svg, f"{caption}.")


def _difficulty_figures(results: StudyResults, criterion: str, rows: Sequence[DifficultyRow]) -> list[Figure]:
    """A bar for each third, cell by cell, all on one scale."""
    labels = results.labels
    differences = [row.against.mean for row in rows]
    figures: list[Figure] = []
    if not any(differences):
        return figures
    for name in dict.fromkeys(row.name for row in rows):
        cell_rows = [row for row in rows if row.name == name]
        svg = bars(
            [(row.third, row.against.mean) for row in cell_rows],
            title=f"Gains of {labels[name]} by {criterion}",
            description="; ".join(f"{row.third}: {format_signed(row.against.mean)}" for row in cell_rows),
            y_label=f"difference in {results.study.measures[0]}",
            y_range=(min(differences), max(differences)),
        )
        figures.append(Figure(svg, f"{labels[name]}, queries by {criterion}."))
    return figures


def _round_figures(results: StudyResults) -> list[Figure]:
    """Quality by the moment of stopping, run by run; the last point of each cell is the whole of it."""
    figures = []
    axis = "seconds" if results.has_timings else "rounds"
    cell_names = {round_row.name for round_row in results.round_rows}
    for heading, rows in results.by_run():
        points = []
        for row in rows:
            cell_rounds = [
                round_row for round_row in results.round_rows if round_row.name == row.name and row.name in cell_names
            ]
            for round_row in cell_rounds:
                x = round_row.seconds if results.has_timings else float(round_row.rounds)
                name = row.setting if round_row is cell_rounds[-1] else ""
                quality = round_row.quality
                points.append(Point(name, x, quality.mean, None, (quality.low, quality.high), row.setting))
        if points:
            label = "seconds waited, or less" if axis == "seconds" else "rounds waited for, or less"
            figures.append(
                _scatter_figure(points, results.study.measures[0], label, f"{heading}: quality when stopped", True)
            )
    return figures


def _reproduction_facts(results: StudyResults, command: str) -> list[tuple[str, str]]:
    """What is needed to make the page again."""
    resampling = f"{RESAMPLES:,} resamples, seed {SEED}, level {CONFIDENCE_LEVEL:.0%}".replace("%", "\u00a0%")
    comparisons = sum(row.difference is not None for row in results.rows)
    facts = [
        ("Command", command),
        ("Measures", ", ".join(results.study.measures)),
        ("Intervals", f"percentile bootstrap over queries, {resampling}"),
        ("Test", "paired, two-sided randomization of signs"),
        ("Correction", f"Holm, over {comparisons} comparisons" if comparisons else "none needed"),
        *((f"Model {model.name}", model.serve) for model in results.study.models if model.serve and not model.simulate),
        ("Versions", f"rank-k {rank_k.__version__}, Python {platform.python_version()}"),
    ]
    return [(name, value) for name, value in facts if value]
