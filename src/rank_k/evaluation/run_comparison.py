"""Compare runs: the quality and the cost of each, and its difference from a baseline.

The tables, CSV and JSON of the command line and the report all come from `RunComparison`.
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
"""The measure of the share of unjudged documents."""


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """A difference, and its p values corrected by Holm for all comparisons."""

    paired: PairedDifference
    t_p: float
    randomization_p: float


@dataclass(frozen=True, slots=True)
class Change:
    """One query in the baseline (`before`) and in another run (`after`). `unjudged`: the share of the first ten
    documents without judgment in each; None for a run without the query."""

    query_id: str
    before: float
    after: float
    unjudged: tuple[float | None, float | None]

    @property
    def difference(self) -> float:
        """The difference; one that comes from rounding counts as none."""
        difference = self.after - self.before
        return 0.0 if abs(difference) < NO_DIFFERENCE else difference


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run. `intervals`: of each measure that is a mean over queries. `comparisons`: with the baseline, by measure;
    empty for the baseline itself or without one."""

    name: str
    evaluation: Evaluation
    intervals: Mapping[str, tuple[float, float]]
    cost: RunCost | None = None
    comparisons: Mapping[str, PairedComparison] = field(default_factory=dict)

    @property
    def unjudged_per_query(self) -> Mapping[str, float]:
        """The share of the first ten documents without judgment, by query, for judged queries that the run has."""
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
    """Compared runs. `measures`: in the order given, the most important first. `baseline`: the name of a run, or empty.
    `comparisons`: the number of comparisons for which p values are corrected."""

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
        """The measure whose gains and losses are shown query by query, which is the first measure of quality."""
        return next(iter(self.quality_measures), self.measures[0])

    @property
    def quality_measures(self) -> tuple[str, ...]:
        """All measures but Judged@k."""
        return _quality_measures(self.measures)

    def changes(self, run: ComparedRun, measure: str = "") -> list[Change]:
        """Return the change of each query from the baseline, the largest gain first; none without a baseline."""
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
        """Return the queries that lost, the worst first."""
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
    """Evaluate the runs, by name, and compare each with the baseline in every measure of quality.

    Judged@k shows how far the judgments reach, not how good a run is: it is measured, but not compared.

    Args:
        qrels: The judgments: query id -> document id -> grade.
        runs: The runs by name.
        measures: Names of measures, the most important first.
        baseline: The name of the run to compare with (default: no comparison).
        ties: How equal scores are ordered (default: as the run lists them).
        costs: The costs of runs, by name, where they are known.
        intervals: Compute bootstrap intervals. Without them, and without a baseline, only ir_measures is needed.

    Raises:
        InputError: As `evaluate` raises it, or there is nothing to compare.
        MissingExtra: ir_measures, numpy or scipy is not installed.
    """
    measure_names = canonical_names(measures)
    compared_measures = _quality_measures(measure_names)
    if baseline and len(runs) < 2:
        raise InputError(f"there is no run to compare with the baseline {baseline}", "name another run")
    if baseline and not compared_measures:
        raise InputError(f"{', '.join(measure_names)} cannot be compared", "add a measure of quality, such as nDCG@10")
    evaluations = {
        name: evaluate(qrels, run, [*measure_names, JUDGED_MEASURE], ties=ties) for name, run in runs.items()
    }
    differences = {
        (name, measure): paired_difference(evaluation.per_query[measure], evaluations[baseline].per_query[measure])
        for name, evaluation in evaluations.items()
        if baseline and name != baseline
        for measure in compared_measures
    }
    t_ps = holm([difference.t_p for difference in differences.values()])
    randomization_ps = holm([difference.randomization_p for difference in differences.values()])
    comparisons: dict[str, dict[str, PairedComparison]] = {name: {} for name in runs}
    for ((name, measure), difference), *p_values in zip(differences.items(), t_ps, randomization_ps, strict=True):
        comparisons[name][measure] = PairedComparison(difference, *p_values)
    return RunComparison(
        measures=measure_names,
        runs=tuple(
            ComparedRun(
                name,
                evaluation,
                _compute_intervals(evaluation, measure_names) if intervals else {},
                (costs or {}).get(name),
                comparisons[name],
            )
            for name, evaluation in evaluations.items()
        ),
        baseline=baseline,
        comparisons=len(differences),
    )


def _quality_measures(measures: Sequence[str]) -> tuple[str, ...]:
    return tuple(measure for measure in measures if not measure.startswith("Judged"))


def _compute_intervals(evaluation: Evaluation, measures: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the intervals of measures whose mean is that over queries: not of sums, such as NumRet."""
    return {
        measure: bootstrap_interval(values)
        for measure in measures
        if abs(fmean(values := list(evaluation.per_query[measure].values())) - evaluation.means[measure]) < 1e-6
    }
