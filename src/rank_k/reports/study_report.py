"""A study's report as one HTML file: what was found, in tables and plots, and how it was made."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rank_k
from rank_k.evaluation.significance import LEVEL, RESAMPLES, SEED
from rank_k.reports.evaluation_report import SURE, Figure
from rank_k.reports.figures import Point, bars, scatter
from rank_k.reports.html import format_integer, format_signed, render_template
from rank_k.study.breakdowns import ByDifficulty
from rank_k.study.results import StudyResults
from rank_k.study.table import Row

_LABELS = {
    "tokens": "tokens per query, in and out",
    "rounds": "rounds per query",
    "seconds": "seconds per query, all windows of a round at a time",
}

_LOGARITHMIC = 20
"""From so many times between the cheapest and the dearest, costs are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A run and a model: the cells' rows, the first stage's first, and their plots."""

    heading: str
    rows: Sequence[Row]
    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class _Thirds:
    """Cells over the thirds of the queries, by one kind of difficulty and against one baseline."""

    by: str
    baseline: str
    rows: Sequence[ByDifficulty]
    figures: Sequence[Figure]


def write_page(path: Path, answer: StudyResults, command: str = "") -> None:
    """`command`: how the study was asked for. Raises `MissingExtra`."""
    labels = answer.labels
    page = render_template(
        "study.html.j2",
        title=answer.study.title,
        answer=answer,
        labels=labels,
        measure=answer.study.measures[0],
        level=f"{LEVEL:.0%}".replace("%", "\u00a0%"),
        sure=SURE,
        found=[row for row in answer.rows if row.against is not None and row.p <= SURE],
        comparisons=sum(row.against is not None for row in answer.rows),
        parts=[_Part(heading, rows, _costs(answer, heading, rows)) for heading, rows in answer.by_run()],
        thirds=[
            _Thirds(by, labels[baseline], rows, _thirds(answer, by, rows))
            for (by, baseline), rows in answer.difficulty_tables()
        ],
        rounds=_rounds(answer),
        made=_facts(answer, command),
    )
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)


def _costs(answer: StudyResults, heading: str, rows: Sequence[Row]) -> list[Figure]:
    """Quality against each cost, with intervals; cells of one strategy look alike."""
    figures = []
    cells = [(row, row.cell) for row in rows if row.cell is not None]
    for axis in answer.axes:
        points = [
            Point(
                row.setting,
                getattr(row.cost, axis),
                row.first.mean,
                None,
                (row.first.low, row.first.high),
                cell.strategy,
            )
            for row, cell in cells
        ]
        best = [axis in row.on_set for row, _ in cells]
        figures.append(_scatter(points, answer.study.measures[0], _LABELS[axis], f"{heading}: quality", best=best))
    return figures


def _scatter(
    points: Sequence[Point],
    measure: str,
    label: str,
    what: str,
    joined: bool = False,
    best: Sequence[bool] | None = None,
) -> Figure:
    spent = [point.x for point in points]
    logarithmic = min(spent) > 0 and max(spent) / min(spent) >= _LOGARITHMIC
    caption = f"{measure} against {label}"
    svg = scatter(
        points,
        title=f"{what} against {label}",
        description="; ".join(
            f"{point.name or point.series}: {format_integer(point.x)}, {point.y:.4f}" for point in points
        ),
        x_label=label + (" (logarithmic)" if logarithmic else ""),
        y_label=measure,
        log_x=logarithmic,
        joined=joined,
        best=best,
    )
    return Figure(svg, f"{caption}.")


def _thirds(answer: StudyResults, by: str, rows: Sequence[ByDifficulty]) -> list[Figure]:
    """A bar for each third, cell by cell, all on one scale."""
    labels = answer.labels
    differences = [row.against.mean for row in rows]
    figures: list[Figure] = []
    if not any(differences):
        return figures
    for name in dict.fromkeys(row.name for row in rows):
        some = [row for row in rows if row.name == name]
        svg = bars(
            [(row.third, row.against.mean) for row in some],
            title=f"Gains of {labels[name]} by {by}",
            description="; ".join(f"{row.third}: {format_signed(row.against.mean)}" for row in some),
            y_label=f"difference in {answer.study.measures[0]}",
            ends=(min(differences), max(differences)),
        )
        figures.append(Figure(svg, f"{labels[name]}, queries by {by}."))
    return figures


def _rounds(answer: StudyResults) -> list[Figure]:
    """Quality by the moment of stopping, run by run; the last point of each cell is the whole of it."""
    figures = []
    axis = "seconds" if answer.timed else "rounds"
    names = {one.name for one in answer.rounds}
    for heading, rows in answer.by_run():
        points = []
        for row in rows:
            some = [one for one in answer.rounds if one.name == row.name and row.name in names]
            for one in some:
                x = one.seconds if answer.timed else float(one.rounds)
                name = row.setting if one is some[-1] else ""
                quality = one.quality
                points.append(Point(name, x, quality.mean, None, (quality.low, quality.high), row.setting))
        if points:
            label = "seconds waited, or less" if axis == "seconds" else "rounds waited for, or less"
            figures.append(_scatter(points, answer.study.measures[0], label, f"{heading}: quality when stopped", True))
    return figures


def _facts(answer: StudyResults, command: str) -> list[tuple[str, str]]:
    """What is needed to make the page again."""
    resampled = f"{RESAMPLES:,} resamples, seed {SEED}, level {LEVEL:.0%}".replace("%", "\u00a0%")
    comparisons = sum(row.against is not None for row in answer.rows)
    facts = [
        ("Command", command),
        ("Measures", ", ".join(answer.study.measures)),
        ("Intervals", f"percentile bootstrap over queries, {resampled}"),
        ("Test", "paired, two-sided randomization of signs"),
        ("Correction", f"Holm, over {comparisons} comparisons" if comparisons else "none needed"),
        *((f"Model {model.name}", model.serve) for model in answer.study.models if model.serve and not model.simulate),
        ("Versions", f"rank-k {rank_k.__version__}, Python {platform.python_version()}"),
    ]
    return [(name, told) for name, told in facts if told]
