"""An assessment for the terminal, for programs (JSON) and for spreadsheets (CSV)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rank_k.evaluation.run_comparison import ComparedRun, PairedComparison, RunComparison
    from rank_k.evaluation.run_costs import RunCost

_MOST_HURT = 5


def notes(assessment: RunComparison) -> Iterator[str]:
    """What one should know of the runs beside their figures."""
    for run in assessment.runs:
        evaluation, cost = run.evaluation, run.cost
        if evaluation.missing:
            named = ", ".join(evaluation.missing[:5])
            yield f"{run.name}: {len(evaluation.missing)} judged queries missing, counted as 0: {named}"
        if evaluation.unjudged:
            yield f"{run.name}: {len(evaluation.unjudged)} queries without judgments, not counted"
        if evaluation.tied:
            tied = f"{len(evaluation.tied)} queries with equal scores, taken in the order of the file"
            yield f"{run.name}: {tied}; --ties trec_eval puts them by descending id, as trec_eval does"
        if cost is not None and cost.others and not cost.exact:
            yield f"{run.name}: no run in {cost.journal} wrote a file of this name; its last run is taken"


# --- for the terminal ---


def lines(assessment: RunComparison) -> list[str]:
    """Tables with a blank line between them: means, and what else there is to say."""
    found = aligned(
        ["run", *assessment.measures],
        [
            [run.name, *(f"{run.evaluation.means[measure]:.4f}" for measure in assessment.measures)]
            for run in assessment.runs
        ],
    )
    if assessment.compared:
        found += ["", *_comparisons(assessment), "", *_hurt(assessment)]
    if assessment.compared or not any(measure.startswith("Judged") for measure in assessment.measures):
        shares = ", ".join(f"{run.name} {run.unjudged:.1%}" for run in assessment.runs)
        found += ["", f"unjudged among the first ten: {shares}"]
    if any(run.cost for run in assessment.runs):
        found += ["", *_costs(assessment)]
    return found


def _comparisons(assessment: RunComparison) -> list[str]:
    head = f"against {assessment.baseline}: {assessment.comparisons} comparisons, p values corrected for all (Holm)"
    columns = ["run", "measure", "difference", "95 % interval", "p (random.)", "p (t)", "gain", "stay", "lose"]
    body = []
    for run in assessment.compared:
        for measure, compared in run.against.items():
            paired = compared.paired
            body.append(
                [
                    *(run.name, measure, f"{paired.mean:+.4f}", f"{paired.low:+.4f} to {paired.high:+.4f}"),
                    *(f"{compared.randomization_p:.4f}", f"{compared.t_p:.4f}"),
                    *map(str, (paired.better, paired.equal, paired.worse)),
                ]
            )
    return [head, *aligned(columns, body, left=2)]


def _hurt(assessment: RunComparison) -> list[str]:
    measure = assessment.shown_measure
    body, commands = [], []
    for run in assessment.compared:
        for change in assessment.hurt(run, _MOST_HURT):
            body.append(
                [
                    *(run.name, change.query_id),
                    *(f"{change.before:.4f}", f"{change.after:.4f}", f"{change.difference:+.4f}"),
                    " to ".join("-" if share is None else f"{share:.0%}" for share in change.unjudged),
                ]
            )
            commands.append((run.cost.command(change.query_id) if run.cost else None) or "")
    if not body:
        return [f"no query lost {measure}"]
    columns = ["run", "query", "before", "after", "difference", "unjudged"]
    head, *rows = aligned(columns, body, left=2)
    shown = [f"{row}  {command}".rstrip() for row, command in zip(rows, commands, strict=True)]
    traces = ", and how to see their traces" if any(commands) else ""
    return [f"queries hurt worst in {measure}{traces}", head, *shown]


def _costs(assessment: RunComparison) -> list[str]:
    paid = [(run.name, run.cost) for run in assessment.runs if run.cost is not None]
    columns = ["cost", "queries", "calls", "rounds", "tokens in", "tokens out", "reasoning", "seconds"]
    with_money = any(cost.money is not None for _, cost in paid)
    body = []
    for name, cost in paid:
        usage, about = cost.usage, "~" if cost.usage.estimated else ""
        money = ["-" if cost.money is None else f"{cost.money:.4f}"] if with_money else []
        body.append(
            [
                *(name, f"{len(cost.queries):,}", f"{cost.calls:,}", f"{cost.rounds:.1f}"),
                *(f"{about}{usage.prompt_tokens:,}", f"{about}{usage.completion_tokens:,}"),
                *(f"{about}{usage.reasoning_tokens:,}", f"{cost.seconds:,.0f}", *money),
            ]
        )
    return aligned([*columns, *(["money"] if with_money else [])], body)


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table; the first `left` columns begin, the others end at the same place."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    widths = [width if place < left else max(width, 7) for place, width in enumerate(widths)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *body)
    ]


# --- for programs ---


def as_json(assessment: RunComparison) -> str:
    """An object per run. What cannot be computed is null."""
    return json.dumps(without_nan({run.name: _told(run, assessment) for run in assessment.runs}), indent=2)


def without_nan(told: Any) -> Any:
    """Errors that a single query does not have are null: JSON has no NaN."""
    if isinstance(told, dict):
        return {key: without_nan(value) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return [without_nan(value) for value in told]
    return None if told != told else told


def _told(run: ComparedRun, assessment: RunComparison) -> dict[str, Any]:
    evaluation, measures = run.evaluation, assessment.measures
    return {
        "mean": {measure: evaluation.means[measure] for measure in measures},
        "per_query": {measure: dict(evaluation.per_query[measure]) for measure in measures},
        "missing": list(evaluation.missing),
        "unjudged": list(evaluation.unjudged),
        "interval": {measure: list(ends) for measure, ends in run.intervals.items()},
        "unjudged_share_of_first_ten": run.unjudged,
        "baseline": assessment.baseline or None,
        "comparisons": assessment.comparisons,
        "against_baseline": {measure: _compared(compared) for measure, compared in run.against.items()},
        "largest_losses": [
            {
                "query_id": change.query_id,
                "measure": assessment.shown_measure,
                "before": change.before,
                "after": change.after,
                "trace": run.cost.command(change.query_id) if run.cost else None,
            }
            for change in (assessment.hurt(run) if run.against else ())
        ],
        "cost": None if run.cost is None else _cost(run.cost),
    }


def _compared(compared: PairedComparison) -> dict[str, Any]:
    paired = compared.paired
    return {
        "difference": paired.mean,
        "standard_error": paired.error,
        "interval": [paired.low, paired.high],
        "t_p": paired.t_p,
        "t_p_corrected": compared.t_p,
        "randomization_p": paired.randomization_p,
        "randomization_p_corrected": compared.randomization_p,
        "better": paired.better,
        "equal": paired.equal,
        "worse": paired.worse,
    }


def _cost(cost: RunCost) -> dict[str, Any]:
    return {
        "journal": str(cost.journal),
        "model": cost.model,
        "queries": len(cost.queries),
        "calls": cost.calls,
        "rounds_per_query": cost.rounds,
        "prompt_tokens": cost.usage.prompt_tokens,
        "cached_tokens": cost.usage.cached_tokens,
        "completion_tokens": cost.usage.completion_tokens,
        "reasoning_tokens": cost.usage.reasoning_tokens,
        "tokens_estimated": cost.usage.estimated,
        "seconds": cost.seconds,
        "unranked_windows": cost.unranked,
        "money": cost.money,
    }


# --- for spreadsheets ---


def rows(assessment: RunComparison) -> Iterator[list[Any]]:
    """A head, then a row for each run, measure and query. Without a baseline the last two columns are empty."""
    yield ["run", "measure", "query_id", "value", "baseline", "difference"]
    for run in assessment.runs:
        for measure in assessment.measures:
            before = {change.query_id: change.before for change in assessment.changes(run, measure)}
            for query_id, value in run.evaluation.per_query[measure].items():
                compared = [before[query_id], value - before[query_id]] if before else ["", ""]
                yield [run.name, measure, query_id, value, *compared]
