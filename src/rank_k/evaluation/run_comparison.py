"""Compare the quality and the cost of runs, and test their differences from a baseline.

The tables, CSV and JSON of the command line and the HTML report are made from `RunComparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rank_k.errors import InputError
from rank_k.evaluation.measures import Evaluation, Ties, evaluate, parse_measures
from rank_k.evaluation.run_costs import RunCost
from rank_k.evaluation.significance import NO_DIFFERENCE, PairedDifference, bootstrap_interval, holm, paired_difference
from rank_k.types import Run

JUDGED_MEASURE = "Judged@10"
"""The measure from which the fraction of unjudged documents is computed."""


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """A difference, and its p values corrected with Holm's method for all comparisons."""

    paired: PairedDifference
    t_p: float
    randomization_p: float


@dataclass(frozen=True, slots=True)
class Change:
    """The change in the value of one query from the baseline to a different run.

    Attributes:
        query_id: The query.
        before: The value in the baseline.
        after: The value in the other run.
        unjudged: The fraction of unjudged documents among the first ten, in the baseline and in the other run; None if
            the run lacks the query.
    """

    query_id: str
    before: float
    after: float
    unjudged: tuple[float | None, float | None]

    @property
    def difference(self) -> float:
        """The difference; 0 if it is as small as rounding errors."""
        difference = self.after - self.before
        return 0.0 if abs(difference) < NO_DIFFERENCE else difference


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        name: Its name.
        evaluation: Its measures.
        intervals: The bootstrap interval of each measure that is a mean over queries.
        cost: Its cost, if it is known.
        comparisons: Its difference from the baseline in each measure; empty for the baseline itself or without one.
    """

    name: str
    evaluation: Evaluation
    intervals: Mapping[str, tuple[float, float]]
    cost: RunCost | None = None
    comparisons: Mapping[str, PairedComparison] = field(default_factory=dict)

    @property
    def unjudged_per_query(self) -> Mapping[str, float]:
        """The fraction of unjudged documents among the first ten, for each judged query that the run contains."""
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
    """A comparison of runs.

    Attributes:
        measures: The measures, the most important first.
        runs: The runs.
        baseline: The name of the baseline; empty without one.
        comparisons: The number of comparisons that the p values are corrected for.
        omitted_queries: The number of judged queries that are left out of all averages because a run lacks them.
    """

    measures: tuple[str, ...]
    runs: tuple[ComparedRun, ...]
    baseline: str
    comparisons: int
    omitted_queries: int = 0

    @property
    def compared_runs(self) -> tuple[ComparedRun, ...]:
        return tuple(run for run in self.runs if run.comparisons)

    @property
    def query_count(self) -> int:
        return len(next(iter(self.runs[0].evaluation.per_query.values())))

    @property
    def primary_measure(self) -> str:
        """The first measure of quality, whose gains and losses are reported query by query."""
        return next(iter(self.quality_measures), self.measures[0])

    @property
    def quality_measures(self) -> tuple[str, ...]:
        """All measures except Judged@k."""
        return _quality_measures(self.measures)

    def changes(self, run: ComparedRun, measure: str = "") -> list[Change]:
        """Return the change of each query from the baseline, the largest gain first; empty without a baseline."""
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
        """Return at most `limit` queries with the largest losses (default: 10), the worst first."""
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
    common_queries: bool = False,
) -> RunComparison:
    """Evaluate runs and compare each with the baseline in every measure of quality.

    Judged@k describes the judgments rather than the quality of a run, so it is reported but not compared.

    Args:
        qrels: The judgments: query id -> document id -> grade.
        runs: The runs by name.
        measures: Names of measures, the most important first.
        baseline: The name of the run to compare with (default: no comparison).
        ties: The order of equal scores (default: that of the run).
        costs: The costs of runs, by name, where they are known.
        intervals: Compute bootstrap intervals (default: True). Otherwise, and without a baseline, numpy and scipy are
            not needed.
        common_queries: Average only over the judged queries that all runs contain (default: False, which means over all
            judged queries; queries that a run lacks count as 0).

    Raises:
        InputError: If `evaluate` raises it, or there is nothing to compare.
        MissingExtra: If ir_measures, numpy or scipy is not installed.
    """
    measure_names = tuple(parse_measures(measures))
    compared_measures = _quality_measures(measure_names)
    if baseline and len(runs) < 2:
        raise InputError(f"there is no run to compare with the baseline {baseline}", "give a second run")
    if baseline and not compared_measures:
        raise InputError(f"{', '.join(measure_names)} cannot be compared", "add a measure of quality, such as nDCG@10")
    all_judged = len(qrels)
    if common_queries:
        missing_ids = {query_id for query_id in qrels if not all(run.get(query_id) for run in runs.values())}
        qrels = {query_id: grades for query_id, grades in qrels.items() if query_id not in missing_ids}
        runs = {name: {q: ranking for q, ranking in run.items() if q not in missing_ids} for name, run in runs.items()}
        if not qrels:
            raise InputError("no judged query is in all of the runs", "compare runs of the same queries")
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
        omitted_queries=all_judged - len(qrels),
    )


def _quality_measures(measures: Sequence[str]) -> tuple[str, ...]:
    return tuple(measure for measure in measures if not measure.startswith("Judged"))


def _compute_intervals(evaluation: Evaluation, measures: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the bootstrap intervals of all measures that are means over queries. NumRet, for example, is a sum."""
    return {
        measure: bootstrap_interval(values)
        for measure in measures
        if abs(fmean(values := list(evaluation.per_query[measure].values())) - evaluation.means[measure]) < 1e-6
    }
