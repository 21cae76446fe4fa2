"""An assessment as one HTML page, for a browser, an appendix or a colleague: data in, page out."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rank_k.evaluation.run_comparison import Change, ComparedRun, PairedComparison, RunComparison
from rank_k.evaluation.significance import LEVEL, RESAMPLES, SEED
from rank_k.reports.figures import Point, bars, scatter
from rank_k.reports.html import format_integer, format_signed, render_template

SURE = 0.05
"""A corrected p value up to this is called a difference; the usual convention, not more."""

_LOGARITHMIC = 20
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
    assessment: RunComparison,
    made: ReportOrigin,
    queries: Mapping[str, str] | None = None,
    links: Sequence[tuple[str, str, bool]] = (),
) -> str:
    """The page. `queries`: the text of queries, by id, where it is known. `links`: to other pages, where it is one of
    several: path, title, and whether it is this one. Raises `MissingExtra`."""
    return render_template(
        "report.html.j2",
        title=_title(assessment),
        assessment=assessment,
        measure=assessment.shown_measure,
        level=f"{LEVEL:.0%}".replace("%", "\u00a0%"),
        sure=SURE,
        findings=[_Finding(run, run.against[assessment.shown_measure]) for run in assessment.compared],
        costs=_cost_figures(assessment),
        bars={run.name: _bars(assessment, run, _ends(assessment)) for run in assessment.compared},
        queries=queries or {},
        made=_facts(made, assessment),
        links=links,
    )


def _title(assessment: RunComparison) -> str:
    count = len(assessment.runs)
    return f"Evaluation of {count} runs" if count > 1 else f"Evaluation of {assessment.runs[0].name}"


@dataclass(frozen=True, slots=True)
class _Finding:
    """What can be said of a run in one sentence."""

    run: ComparedRun
    compared: PairedComparison

    @property
    def established(self) -> bool:
        return self.compared.randomization_p <= SURE

    @property
    def kind(self) -> str:
        """How it is marked."""
        return ("gain" if self.compared.paired.mean > 0 else "loss") if self.established else ""


def _cost_figures(assessment: RunComparison) -> list[Figure]:
    """Quality against what it cost, in each currency that was spent."""
    measure = assessment.shown_measure
    paid = [(run, run.cost) for run in assessment.runs if run.cost is not None]
    per_query = {
        "tokens per query, in and out": [cost.tokens / len(cost.queries) for _, cost in paid],
        "rounds per query": [cost.rounds for _, cost in paid],
        "model seconds per query": [cost.seconds / len(cost.queries) for _, cost in paid],
    }
    figures = []
    for label, spent in per_query.items():
        if not spent or max(spent) == 0:
            continue
        points = [
            Point(_short(run, assessment.runs), x, run.evaluation.means[measure], None, run.intervals.get(measure))
            for (run, _), x in zip(paid, spent, strict=True)
        ]
        logarithmic = min(spent) > 0 and max(spent) / min(spent) >= _LOGARITHMIC
        told = "; ".join(f"{point.name}: {format_integer(point.x)}, {point.y:.4f}" for point in points)
        svg = scatter(
            points,
            title=f"{measure} against {label}",
            description=told,
            x_label=label + (" (logarithmic)" if logarithmic else ""),
            y_label=measure,
            log_x=logarithmic,
        )
        figures.append(Figure(svg, f"{measure} against {label}."))
    return figures


def _ends(assessment: RunComparison) -> tuple[float, float]:
    """The largest loss and gain of any run: all are drawn on one scale."""
    differences = [change.difference for run in assessment.compared for change in assessment.changes(run)]
    return min(differences, default=0.0), max(differences, default=0.0)


def _bars(assessment: RunComparison, run: ComparedRun, ends: tuple[float, float]) -> Figure:
    changes = assessment.changes(run)
    measure, base = assessment.shown_measure, _short_name(assessment.baseline, assessment.runs)
    name = _short(run, assessment.runs)
    most, least = changes[0], changes[-1]
    svg = bars(
        [(change.query_id, change.difference) for change in changes],
        title=f"Gains and losses of {name} over {base}, query by query",
        description=f"{_counts(changes)}. From {format_signed(most.difference)} (query {most.query_id})"
        f" to {format_signed(least.difference)} (query {least.query_id}).",
        y_label=f"difference in {measure}",
        ends=ends,
    )
    return Figure(svg, f"{name}: {_counts(changes)}.")


def _counts(changes: Sequence[Change]) -> str:
    better = sum(change.difference > 0 for change in changes)
    worse = sum(change.difference < 0 for change in changes)
    return f"{better} of {len(changes)} queries gain, {worse} lose, {len(changes) - better - worse} stay"


def _short(run: ComparedRun, runs: Sequence[ComparedRun]) -> str:
    return _short_name(run.name, runs)


def _short_name(name: str, runs: Sequence[ComparedRun]) -> str:
    """The file's name without folders, where that is enough to tell the runs apart."""
    names = [run.name.rpartition("/")[2] for run in runs]
    short = name.rpartition("/")[2]
    return short if names.count(short) == 1 else name


def _facts(made: ReportOrigin, assessment: RunComparison) -> list[tuple[str, str]]:
    """What is needed to make the page again."""
    versions = [f"rank-k {_version('rank-k')}", f"Python {platform.python_version()}"]
    versions += [f"{name} {_version(name)}" for name in ("ir-measures", "pytrec-eval-terrier", "numpy", "scipy")]
    resampled = f"{RESAMPLES:,} resamples, seed {SEED}, level {LEVEL:.0%}".replace("%", "\u00a0%")
    return [
        ("Command", made.command),
        ("Judgments", f"{made.judgments}: {assessment.query_count:,} queries"),
        ("Measures", ", ".join(assessment.measures)),
        ("Intervals", f"percentile bootstrap over queries, {resampled}"),
        ("Tests", f"paired, two-sided: randomization of signs ({RESAMPLES:,} draws, seed {SEED}) and Student's t"),
        ("Correction", f"Holm, over {assessment.comparisons} comparisons" if assessment.comparisons else "none needed"),
        ("Versions", ", ".join(versions)),
    ]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed as a package)"
