"""Runs beside each other: what each is worth, what it cost, and how it differs from a baseline.

Values in, values out; the command line's tables, its CSV and JSON, and the report are made from these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rank_k.errors import InputError
from rank_k.evaluation.measures import Evaluation, Ties, canonical_names, evaluate
from rank_k.evaluation.run_costs import RunCost
from rank_k.evaluation.significance import NO_DIFFERENCE, PairedDifference, bootstrap_interval, holm, paired_difference
from rank_k.types import Run

JUDGED_MEASURE = "Judged@10"
"""By what the share of unjudged documents is told."""


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """A difference, and its p values corrected by Holm for all comparisons that were made."""

    paired: PairedDifference
    t_p: float
    randomization_p: float


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one query. `unjudged`: share of the first ten without judgment, before and after; None for a
    run that has nothing for the query."""

    query_id: str
    before: float
    after: float
    unjudged: tuple[float | None, float | None]

    @property
    def difference(self) -> float:
        """What rounding leaves counts as none."""
        difference = self.after - self.before
        return 0.0 if abs(difference) < NO_DIFFERENCE else difference


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run. `intervals`: of the mean of each measure that is a mean over queries. `against`: by measure, empty
    for the baseline itself or without one."""

    name: str
    evaluation: Evaluation
    intervals: Mapping[str, tuple[float, float]]
    cost: RunCost | None = None
    comparisons: Mapping[str, PairedComparison] = field(default_factory=dict)

    @property
    def unjudged_per_query(self) -> Mapping[str, float]:
        """Per judged query that the run answers, the share of its first ten documents without judgment."""
        missing = set(self.evaluation.missing)
        values = self.evaluation.per_query[JUDGED_MEASURE]
        return {query_id: 1 - value for query_id, value in values.items() if query_id not in missing}

    @property
    def unjudged(self) -> float:
        """The mean of `unjudged_per_query`."""
        shares = self.unjudged_per_query.values()
        return fmean(shares) if shares else 0.0


@dataclass(frozen=True, slots=True)
class RunComparison:
    """`measures`: as asked for, the one that counts most first. `comparisons`: how many were made, over which p
    values are corrected. `baseline`: the name of a run, or empty."""

    measures: tuple[str, ...]
    runs: tuple[ComparedRun, ...]
    baseline: str
    comparisons: int

    @property
    def compared_runs(self) -> tuple[ComparedRun, ...]:
        return tuple(run for run in self.runs if run.comparisons)

    @property
    def query_count(self) -> int:
        return len(next(iter(self.runs[0].evaluation.per_query.values())))

    @property
    def primary_measure(self) -> str:
        """The measure whose queries are looked at one by one: the first that says something of quality."""
        return next((measure for measure in self.measures if not _is_judged_measure(measure)), self.measures[0])

    def changes(self, run: ComparedRun, measure: str = "") -> list[Change]:
        """What became of each query since the baseline, the largest gain first; empty without a baseline."""
        baseline = next((other for other in self.runs if other.name == self.baseline), None)
        if baseline is None:
            return []
        measure = measure or self.primary_measure
        before, after = baseline.evaluation.per_query[measure], run.evaluation.per_query[measure]
        unjudged = baseline.unjudged_per_query, run.unjudged_per_query
        changes = [
            Change(query_id, before[query_id], value, (unjudged[0].get(query_id), unjudged[1].get(query_id)))
            for query_id, value in after.items()
        ]
        return sorted(changes, key=lambda change: (-change.difference, change.query_id))

    def largest_losses(self, run: ComparedRun, limit: int = 10) -> list[Change]:
        """The queries that lost, the worst first."""
        losses = [change for change in self.changes(run) if change.difference < 0]
        return sorted(losses, key=lambda change: (change.difference, change.query_id))[:limit]


def compare_runs(
    qrels: Mapping[str, Mapping[str, int]],
    runs: Mapping[str, Run],
    measures: Sequence[str],
    *,
    baseline: str = "",
    ties: Ties = "file",
    costs: Mapping[str, RunCost | None] | None = None,
    intervals: bool = True,
) -> RunComparison:
    """Evaluate the runs, by name, and compare each with the one called `baseline` in every measure of quality.

    Judged@k says how far the judgments reach, not how good a run is: it is measured, but not compared.
    `ties`: as `evaluate` takes it. Without `intervals`, and without a baseline, only ir_measures is needed.

    Raises `InputError` as `evaluate` does, or if there is nothing to compare; `MissingExtra`.
    """
    measure_names = canonical_names(measures)
    compared_measures = [measure for measure in measure_names if not _is_judged_measure(measure)] if baseline else []
    if baseline and len(runs) < 2:
        raise InputError(f"there is no run to compare with the baseline {baseline}", "name another run")
    if baseline and not compared_measures:
        raise InputError(f"{', '.join(measure_names)} cannot be compared", "add a measure of quality, such as nDCG@10")
    evaluations = {
        name: evaluate(qrels, run, [*measure_names, JUDGED_MEASURE], ties=ties) for name, run in runs.items()
    }
    comparisons = _compare_with_baseline(evaluations, baseline, compared_measures)
    return RunComparison(
        measures=measure_names,
        runs=tuple(
            ComparedRun(
                name,
                evaluation,
                _compute_intervals(evaluation, measure_names) if intervals else {},
                (costs or {}).get(name),
                comparisons.get(name, {}),
            )
            for name, evaluation in evaluations.items()
        ),
        baseline=baseline,
        comparisons=sum(map(len, comparisons.values())),
    )


def _is_judged_measure(measure: str) -> bool:
    return measure.startswith("Judged")


def _compute_intervals(evaluation: Evaluation, measures: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Of the measures whose mean is that over queries: not of sums, such as NumRet."""
    return {
        measure: bootstrap_interval(values)
        for measure in measures
        if abs(fmean(values := list(evaluation.per_query[measure].values())) - evaluation.means[measure]) < 1e-6
    }


def _compare_with_baseline(
    evaluations: Mapping[str, Evaluation], baseline: str, measures: Sequence[str]
) -> dict[str, dict[str, PairedComparison]]:
    others = [name for name in evaluations if name != baseline]
    differences = [
        (
            name,
            measure,
            paired_difference(evaluations[name].per_query[measure], evaluations[baseline].per_query[measure]),
        )
        for name in (others if baseline else ())
        for measure in measures
    ]
    t_ps = holm([difference.t_p for _, _, difference in differences])
    randomization_ps = holm([difference.randomization_p for _, _, difference in differences])
    comparisons: dict[str, dict[str, PairedComparison]] = {}
    for (name, measure, difference), t_p, randomization_p in zip(differences, t_ps, randomization_ps, strict=True):
        comparisons.setdefault(name, {})[measure] = PairedComparison(difference, t_p, randomization_p)
    return comparisons
