"""The report of a study as one HTML file: tables, plots and how to reproduce them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import rank_k
from rank_k.data.part_file import PartFile
from rank_k.evaluation.significance import SIGNIFICANCE_LEVEL
from rank_k.reports.figures import Figure, Point, bars, scatter
from rank_k.reports.html import INTERVALS, format_signed, render_template
from rank_k.study.breakdowns import DifficultyRow
from rank_k.study.results import StudyResults
from rank_k.study.table import CellRow

_COST_LABELS = {
    "tokens": "tokens per query, in and out",
    "rounds": "rounds per query",
    "seconds": "seconds per query, all windows of a round in flight",
}


def write_study_report(path: Path, results: StudyResults, command: str = "") -> None:
    """Write the report to `path`.

    Args:
        path: The HTML file.
        results: The results.
        command: The command that ran the study, which the report shows (default: none).

    Raises:
        MissingExtra: If jinja2 or matplotlib is not installed.
    """
    labels = results.labels
    comparisons = sum(row.difference is not None for row in results.rows)
    page = render_template(
        "study.html.j2",
        title=results.study.title,
        results=results,
        labels=labels,
        measure=results.study.measures[0],
        significant_rows=[
            row for row in results.rows if row.difference is not None and row.corrected_p <= SIGNIFICANCE_LEVEL
        ],
        comparisons=comparisons,
        sections=[
            {"heading": heading, "rows": rows, "figures": _cost_figures(results, heading, rows)}
            for heading, rows in results.by_run()
        ],
        difficulty_sections=[
            {
                "criterion": criterion,
                "baseline": labels[baseline],
                "rows": rows,
                "figures": _difficulty_figures(results, criterion, rows),
            }
            for (criterion, baseline), rows in results.difficulty_tables()
        ],
        round_figures=_round_figures(results),
        page_facts=_reproduction_facts(results, command, comparisons),
    )
    with PartFile(path) as file:
        file.write(page.encode())


def _cost_figures(results: StudyResults, heading: str, rows: Sequence[CellRow]) -> list[Figure]:
    """Draw quality against each kind of cost, with intervals. Cells of the same strategy have the same color."""
    measure = results.study.measures[0]
    cells = [(row, row.cell) for row in rows if row.cell is not None]
    return [
        scatter(
            [
                Point(
                    row.setting,
                    row.axis_cost(axis),
                    row.primary_quality.mean,
                    (row.primary_quality.low, row.primary_quality.high),
                    cell.strategy,
                )
                for row, cell in cells
            ],
            title=f"{heading}: quality against {_COST_LABELS[axis]}",
            x_label=_COST_LABELS[axis],
            y_label=measure,
            pareto_mask=[axis in row.pareto_axes for row, _ in cells],
        )
        for axis in results.axes
    ]


def _difficulty_figures(results: StudyResults, criterion: str, rows: Sequence[DifficultyRow]) -> list[Figure]:
    """Draw a figure per cell with a bar for each third. All figures have the same scale."""
    labels = results.labels
    differences = [row.against.mean for row in rows]
    if not any(differences):
        return []
    rows_by_cell = ((name, list(cell_rows)) for name, cell_rows in groupby(rows, key=lambda row: row.name))
    return [
        bars(
            [(row.third, row.against.mean) for row in cell_rows],
            title=f"Gains of {labels[name]} by {criterion}",
            description="; ".join(f"{row.third}: {format_signed(row.against.mean)}" for row in cell_rows),
            caption=f"{labels[name]}, queries by {criterion}.",
            y_label=f"difference in {results.study.measures[0]}",
            y_range=(min(differences), max(differences)),
        )
        for name, cell_rows in rows_by_cell
    ]


def _round_figures(results: StudyResults) -> list[Figure]:
    """Draw quality after each round, with a figure per run. The last point of a cell is its complete run."""
    measure = results.study.measures[0]
    label = "seconds until stopping" if results.has_timings else "rounds until stopping"
    last_rounds = {row.name: row for row in results.round_rows}
    figures = []
    for heading, rows in results.by_run():
        settings = {row.name: row.setting for row in rows}
        points = [
            Point(
                settings[row.name] if row is last_rounds[row.name] else "",
                row.seconds if results.has_timings else float(row.rounds),
                row.quality.mean,
                (row.quality.low, row.quality.high),
                settings[row.name],
            )
            for row in results.round_rows
            if row.name in settings
        ]
        if points:
            figures.append(
                scatter(
                    points,
                    title=f"{heading}: quality when stopped against {label}",
                    caption=f"{heading}.",
                    x_label=label,
                    y_label=measure,
                    connect_series=True,
                )
            )
    return figures


def _reproduction_facts(results: StudyResults, command: str, comparisons: int) -> list[tuple[str, str]]:
    """Return the names and values that are needed to reproduce the page."""
    facts = [
        ("Command", command),
        ("Measures", ", ".join(results.study.measures)),
        ("Intervals", INTERVALS),
        ("Test", "paired, two-sided randomization of signs"),
        ("Correction", f"Holm, over {comparisons} comparisons" if comparisons else "none needed"),
        *((f"Model {model.name}", model.serve) for model in results.study.models if model.serve and not model.simulate),
        ("Versions", f"rank-k {rank_k.__version__}, Python {platform.python_version()}"),
    ]
    return [(name, value) for name, value in facts if value]
