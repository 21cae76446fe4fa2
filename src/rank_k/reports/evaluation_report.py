"""An assessment as one HTML page, for a browser, an appendix or a colleague: data in, page out."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rank_k.evaluation.run_comparison import Change, ComparedRun, PairedComparison, RunComparison
from rank_k.evaluation.significance import CONFIDENCE_LEVEL, RESAMPLES, SEED, SIGNIFICANCE_LEVEL
from rank_k.reports.figures import Point, bars, scatter
from rank_k.reports.html import format_integer, format_signed, render_template

_LOGARITHMIC_FROM_RATIO = 20
"""From so many times between the cheapest and the dearest, costs are drawn on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class ReportOrigin:
    """How a page came about: the command, and what the runs were judged by."""

    command: str
    judgments: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot as SVG, and what is said below it."""

    svg: str
    caption: str


def render_report(
    comparison: RunComparison,
    origin: ReportOrigin,
    queries: Mapping[str, str] | None = None,
    links: Sequence[tuple[str, str, bool]] = (),
) -> str:
    """The page. `queries`: the text of queries, by id, where it is known. `links`: to other pages, where it is one of
    several: path, title, and whether it is this one. Raises `MissingExtra`."""
    return render_template(
        "report.html.j2",
        title=_page_title(comparison),
        comparison=comparison,
        measure=comparison.primary_measure,
        confidence=f"{CONFIDENCE_LEVEL:.0%}".replace("%", "\u00a0%"),
        significance_level=SIGNIFICANCE_LEVEL,
        findings=[_Finding(run, run.comparisons[comparison.primary_measure]) for run in comparison.compared_runs],
        cost_figures=_cost_figures(comparison),
        bar_figures={
            run.name: _bar_figure(comparison, run, _difference_range(comparison)) for run in comparison.compared_runs
        },
        queries=queries or {},
        page_facts=_reproduction_facts(origin, comparison),
        links=links,
    )


def _page_title(comparison: RunComparison) -> str:
    count = len(comparison.runs)
    return f"Evaluation of {count} runs" if count > 1 else f"Evaluation of {comparison.runs[0].name}"


@dataclass(frozen=True, slots=True)
class _Finding:
    """What can be said of a run in one sentence."""

    run: ComparedRun
    comparison: PairedComparison

    @property
    def is_significant(self) -> bool:
        return self.comparison.randomization_p <= SIGNIFICANCE_LEVEL

    @property
    def css_class(self) -> str:
        """How it is marked."""
        return ("gain" if self.comparison.paired.mean > 0 else "loss") if self.is_significant else ""


def _cost_figures(comparison: RunComparison) -> list[Figure]:
    """Quality against what it cost, in each currency that was spent."""
    measure = comparison.primary_measure
    runs_with_cost = [(run, run.cost) for run in comparison.runs if run.cost is not None]
    per_query = {
        "tokens per query, in and out": [cost.tokens / len(cost.queries) for _, cost in runs_with_cost],
        "rounds per query": [cost.rounds for _, cost in runs_with_cost],
        "model seconds per query": [cost.model_seconds / len(cost.queries) for _, cost in runs_with_cost],
    }
    figures = []
    for label, costs in per_query.items():
        if not costs or max(costs) == 0:
            continue
        points = [
            Point(
                _short_run_name(run, comparison.runs),
                x,
                run.evaluation.means[measure],
                None,
                run.intervals.get(measure),
            )
            for (run, _), x in zip(runs_with_cost, costs, strict=True)
        ]
        logarithmic = min(costs) > 0 and max(costs) / min(costs) >= _LOGARITHMIC_FROM_RATIO
        description = "; ".join(f"{point.name}: {format_integer(point.x)}, {point.y:.4f}" for point in points)
        svg = scatter(
            points,
            title=f"{measure} against {label}",
            description=description,
            x_label=label + (" (logarithmic)" if logarithmic else ""),
            y_label=measure,
            log_x=logarithmic,
        )
        figures.append(Figure(svg, f"{measure} against {label}."))
    return figures


def _difference_range(comparison: RunComparison) -> tuple[float, float]:
    """The largest loss and gain of any run: all are drawn on one scale."""
    differences = [change.difference for run in comparison.compared_runs for change in comparison.changes(run)]
    return min(differences, default=0.0), max(differences, default=0.0)


def _bar_figure(comparison: RunComparison, run: ComparedRun, y_range: tuple[float, float]) -> Figure:
    changes = comparison.changes(run)
    measure, baseline = comparison.primary_measure, _short_name(comparison.baseline, comparison.runs)
    name = _short_run_name(run, comparison.runs)
    best, worst = changes[0], changes[-1]
    svg = bars(
        [(change.query_id, change.difference) for change in changes],
        title=f"Gains and losses of {name} over {baseline}, query by query",
        description=f"{_describe_counts(changes)}. From {format_signed(best.difference)} (query {best.query_id})"
        f" to {format_signed(worst.difference)} (query {worst.query_id}).",
        y_label=f"difference in {measure}",
        y_range=y_range,
    )
    return Figure(svg, f"{name}: {_describe_counts(changes)}.")


def _describe_counts(changes: Sequence[Change]) -> str:
    better = sum(change.difference > 0 for change in changes)
    worse = sum(change.difference < 0 for change in changes)
    return f"{better} of {len(changes)} queries gain, {worse} lose, {len(changes) - better - worse} stay"


def _short_run_name(run: ComparedRun, runs: Sequence[ComparedRun]) -> str:
    return _short_name(run.name, runs)


def _short_name(name: str, runs: Sequence[ComparedRun]) -> str:
    """The file's name without folders, where that is enough to tell the runs apart."""
    names = [run.name.rpartition("/")[2] for run in runs]
    base_name = name.rpartition("/")[2]
    return base_name if names.count(base_name) == 1 else name


def _reproduction_facts(origin: ReportOrigin, comparison: RunComparison) -> list[tuple[str, str]]:
    """What is needed to make the page again."""
    versions = [f"rank-k {_installed_version('rank-k')}", f"Python {platform.python_version()}"]
    versions += [
        f"{name} {_installed_version(name)}" for name in ("ir-measures", "pytrec-eval-terrier", "numpy", "scipy")
    ]
    resampling = f"{RESAMPLES:,} resamples, seed {SEED}, level {CONFIDENCE_LEVEL:.0%}".replace("%", "\u00a0%")
    return [
        ("Command", origin.command),
        ("Judgments", f"{origin.judgments}: {comparison.query_count:,} queries"),
        ("Measures", ", ".join(comparison.measures)),
        ("Intervals", f"percentile bootstrap over queries, {resampling}"),
        ("Tests", f"paired, two-sided: randomization of signs ({RESAMPLES:,} draws, seed {SEED}) and Student's t"),
        ("Correction", f"Holm, over {comparison.comparisons} comparisons" if comparison.comparisons else "none needed"),
        ("Versions", ", ".join(versions)),
    ]


def _installed_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed as a package)"
