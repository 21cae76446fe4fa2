"""Render a comparison of runs as an HTML page."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import rank_k
from rank_k.evaluation.run_comparison import RunComparison
from rank_k.evaluation.significance import RESAMPLES, SEED
from rank_k.reports.figures import Figure, Point, bars, scatter
from rank_k.reports.html import INTERVALS, format_signed, render_template


@dataclass(frozen=True, slots=True)
class ReportOrigin:
    """The command that produces a page, and the name of the relevance judgments."""

    command: str
    judgments: str


def render_report(
    comparison: RunComparison,
    origin: ReportOrigin,
    queries: Mapping[str, str] | None = None,
    links: Sequence[tuple[str, str, bool]] = (),
) -> str:
    """Return the HTML page of a comparison.

    Args:
        comparison: The compared runs.
        origin: The command and the judgments, which the page shows.
        queries: The texts of queries by id (default: none).
        links: The navigation: for each link its path, its title, and whether it is this page (default: none).

    Raises:
        MissingExtra: If jinja2 or matplotlib is not installed.
    """
    count = len(comparison.runs)
    names = _short_names(comparison)
    return render_template(
        "report.html.j2",
        title=f"Evaluation of {count} runs" if count > 1 else f"Evaluation of {comparison.runs[0].name}",
        comparison=comparison,
        measure=comparison.primary_measure,
        cost_figures=_cost_figures(comparison, names),
        bar_figures=_bar_figures(comparison, names),
        queries=queries or {},
        page_facts=_reproduction_facts(origin, comparison),
        links=links,
    )


def _short_names(comparison: RunComparison) -> dict[str, str]:
    """Return a name for each run in figures: the file name, or the full path if two runs have the same file name."""
    base_names = {run.name: run.name.rpartition("/")[2] for run in comparison.runs}
    counts = Counter(base_names.values())
    return {name: base_name if counts[base_name] == 1 else name for name, base_name in base_names.items()}


def _cost_figures(comparison: RunComparison, names: Mapping[str, str]) -> list[Figure]:
    """Draw quality against each kind of cost, except kinds that are zero for all runs."""
    measure = comparison.primary_measure
    runs_with_cost = [(run, run.cost) for run in comparison.runs if run.cost is not None]
    costs_by_label = {
        "tokens per query, in and out": [cost.tokens / len(cost.queries) for _, cost in runs_with_cost],
        "rounds per query": [cost.rounds for _, cost in runs_with_cost],
        "model seconds per query": [cost.model_seconds / len(cost.queries) for _, cost in runs_with_cost],
    }
    return [
        scatter(
            [
                Point(names[run.name], x, run.evaluation.means[measure], run.intervals.get(measure), run.name)
                for (run, _), x in zip(runs_with_cost, costs, strict=True)
            ],
            title=f"{measure} against {label}",
            x_label=label,
            y_label=measure,
        )
        for label, costs in costs_by_label.items()
        if any(costs)
    ]


def _bar_figures(comparison: RunComparison, names: Mapping[str, str]) -> list[Figure]:
    """Draw the gains and losses of each compared run. All figures have the same scale."""
    compared_runs = [(run, names[run.name], comparison.changes(run)) for run in comparison.compared_runs]
    differences = [change.difference for _, _, changes in compared_runs for change in changes]
    figures = []
    for run, name, changes in compared_runs:
        paired = run.comparisons[comparison.primary_measure].paired
        counts = f"{paired.better} of {len(changes)} queries gain, {paired.worse} lose, {paired.equal} stay"
        best, worst = changes[0], changes[-1]
        figures.append(
            bars(
                [(change.query_id, change.difference) for change in changes],
                title=f"Gains and losses of {name} over {names[comparison.baseline]}, query by query",
                description=f"{counts}. From {format_signed(best.difference)} (query {best.query_id})"
                f" to {format_signed(worst.difference)} (query {worst.query_id}).",
                caption=f"{name}: {counts}.",
                y_label=f"difference in {comparison.primary_measure}",
                y_range=(min(differences), max(differences)),
            )
        )
    return figures


def _reproduction_facts(origin: ReportOrigin, comparison: RunComparison) -> list[tuple[str, str]]:
    """Return the names and values that are needed to reproduce the page."""
    packages = ("ir-measures", "pytrec-eval-terrier", "numpy", "scipy")
    versions = [
        f"Python {platform.python_version()}",
        f"rank-k {rank_k.__version__}",
        *(f"{name} {version(name)}" for name in packages),
    ]
    return [
        ("Command", origin.command),
        ("Judgments", f"{origin.judgments}: {comparison.query_count:,} queries"),
        ("Measures", ", ".join(comparison.measures)),
        ("Intervals", INTERVALS),
        ("Tests", f"paired and two-sided: randomization test ({RESAMPLES:,} draws, seed {SEED}) and Student's t test"),
        ("Correction", f"Holm, over {comparison.comparisons} comparisons" if comparison.comparisons else "none needed"),
        ("Versions", ", ".join(versions)),
    ]
