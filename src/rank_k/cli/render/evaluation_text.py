"""An assessment for the terminal, for programs (JSON) and for spreadsheets (CSV)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rank_k.evaluation.run_comparison import ComparedRun, PairedComparison, RunComparison
from rank_k.evaluation.run_costs import RunCost

_MAX_LOSSES = 5


def notes(comparison: RunComparison) -> Iterator[str]:
    """What one should know of the runs beside their figures."""
    for run in comparison.runs:
        evaluation, cost = run.evaluation, run.cost
        if evaluation.missing:
            examples = ", ".join(evaluation.missing[:5])
            yield f"{run.name}: {len(evaluation.missing)} judged queries missing, counted as 0: {examples}"
        if evaluation.unjudged:
            yield f"{run.name}: {len(evaluation.unjudged)} queries without judgments, not counted"
        if evaluation.tied:
            tied_text = f"{len(evaluation.tied)} queries with equal scores, taken in the order of the file"
            yield f"{run.name}: {tied_text}; --ties trec_eval puts them by descending id, as trec_eval does"
        if cost is not None and cost.other_runs and not cost.wrote_file:
            yield f"{run.name}: no run in {cost.journal} wrote a file of this name; its last run is taken"


# --- for the terminal ---


def lines(comparison: RunComparison) -> list[str]:
    """Tables with a blank line between them: means, and what else there is to say."""
    output = align_table(
        ["run", *comparison.measures],
        [
            [run.name, *(f"{run.evaluation.means[measure]:.4f}" for measure in comparison.measures)]
            for run in comparison.runs
        ],
    )
    if comparison.compared_runs:
        output += ["", *_comparison_lines(comparison), "", *_largest_losses(comparison)]
    if comparison.compared_runs or not any(measure.startswith("Judged") for measure in comparison.measures):
        shares = ", ".join(f"{run.name} {run.unjudged:.1%}" for run in comparison.runs)
        output += ["", f"unjudged among the first ten: {shares}"]
    if any(run.cost for run in comparison.runs):
        output += ["", *_cost_lines(comparison)]
    return output


def _comparison_lines(comparison: RunComparison) -> list[str]:
    caption = f"against {comparison.baseline}: {comparison.comparisons} comparisons, p values corrected for all (Holm)"
    columns = ["run", "measure", "difference", "95 % interval", "p (random.)", "p (t)", "gain", "stay", "lose"]
    rows = []
    for run in comparison.compared_runs:
        for measure, paired_comparison in run.comparisons.items():
            difference = paired_comparison.paired
            rows.append(
                [
                    *(run.name, measure, f"{difference.mean:+.4f}", f"{difference.low:+.4f} to {difference.high:+.4f}"),
                    *(f"{paired_comparison.randomization_p:.4f}", f"{paired_comparison.t_p:.4f}"),
                    *map(str, (difference.better, difference.equal, difference.worse)),
                ]
            )
    return [caption, *align_table(columns, rows, left_columns=2)]


def _largest_losses(comparison: RunComparison) -> list[str]:
    measure = comparison.primary_measure
    rows, commands = [], []
    for run in comparison.compared_runs:
        for change in comparison.largest_losses(run, _MAX_LOSSES):
            rows.append(
                [
                    *(run.name, change.query_id),
                    *(f"{change.before:.4f}", f"{change.after:.4f}", f"{change.difference:+.4f}"),
                    " to ".join("-" if share is None else f"{share:.0%}" for share in change.unjudged),
                ]
            )
            commands.append((run.cost.trace_command(change.query_id) if run.cost else None) or "")
    if not rows:
        return [f"no query lost {measure}"]
    columns = ["run", "query", "before", "after", "difference", "unjudged"]
    header, *table_rows = align_table(columns, rows, left_columns=2)
    lines = [f"{row}  {command}".rstrip() for row, command in zip(table_rows, commands, strict=True)]
    traces = ", and how to see their traces" if any(commands) else ""
    return [f"queries hurt worst in {measure}{traces}", header, *lines]


def _cost_lines(comparison: RunComparison) -> list[str]:
    costs = [(run.name, run.cost) for run in comparison.runs if run.cost is not None]
    columns = ["cost", "queries", "calls", "rounds", "tokens in", "tokens out", "reasoning", "seconds"]
    has_money = any(cost.money is not None for _, cost in costs)
    rows = []
    for name, cost in costs:
        usage, prefix = cost.usage, "~" if cost.usage.estimated else ""
        money = ["-" if cost.money is None else f"{cost.money:.4f}"] if has_money else []
        rows.append(
            [
                *(name, f"{len(cost.queries):,}", f"{cost.calls:,}", f"{cost.rounds:.1f}"),
                *(f"{prefix}{usage.prompt_tokens:,}", f"{prefix}{usage.completion_tokens:,}"),
                *(f"{prefix}{usage.reasoning_tokens:,}", f"{cost.model_seconds:,.0f}", *money),
            ]
        )
    return align_table([*columns, *(["money"] if has_money else [])], rows)


def align_table(header: Sequence[str], rows: Sequence[Sequence[str]], left_columns: int = 1) -> list[str]:
    """Lines of a table; the first `left` columns begin, the others end at the same place."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    widths = [width if index < left_columns else max(width, 7) for index, width in enumerate(widths)]
    return [
        "  ".join(
            cell.ljust(width) if index < left_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


# --- for programs ---


def as_json(comparison: RunComparison) -> str:
    """An object per run. What cannot be computed is null."""
    return json.dumps(without_nan({run.name: _run_to_dict(run, comparison) for run in comparison.runs}), indent=2)


def without_nan(value: Any) -> Any:
    """Errors that a single query does not have are null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if value != value else value


def _run_to_dict(run: ComparedRun, comparison: RunComparison) -> dict[str, Any]:
    evaluation, measures = run.evaluation, comparison.measures
    return {
        "mean": {measure: evaluation.means[measure] for measure in measures},
        "per_query": {measure: dict(evaluation.per_query[measure]) for measure in measures},
        "missing": list(evaluation.missing),
        "unjudged": list(evaluation.unjudged),
        "interval": {measure: list(bounds) for measure, bounds in run.intervals.items()},
        "unjudged_share_of_first_ten": run.unjudged,
        "baseline": comparison.baseline or None,
        "comparisons": comparison.comparisons,
        "against_baseline": {
            measure: _comparison_to_dict(paired_comparison) for measure, paired_comparison in run.comparisons.items()
        },
        "largest_losses": [
            {
                "query_id": change.query_id,
                "measure": comparison.primary_measure,
                "before": change.before,
                "after": change.after,
                "trace": run.cost.trace_command(change.query_id) if run.cost else None,
            }
            for change in (comparison.largest_losses(run) if run.comparisons else ())
        ],
        "cost": None if run.cost is None else _cost_to_dict(run.cost),
    }


def _comparison_to_dict(comparison: PairedComparison) -> dict[str, Any]:
    difference = comparison.paired
    return {
        "difference": difference.mean,
        "standard_error": difference.standard_error,
        "interval": [difference.low, difference.high],
        "t_p": difference.t_p,
        "t_p_corrected": comparison.t_p,
        "randomization_p": difference.randomization_p,
        "randomization_p_corrected": comparison.randomization_p,
        "better": difference.better,
        "equal": difference.equal,
        "worse": difference.worse,
    }


def _cost_to_dict(cost: RunCost) -> dict[str, Any]:
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
        "seconds": cost.model_seconds,
        "unranked_windows": cost.unranked,
        "money": cost.money,
    }


# --- for spreadsheets ---


def rows(comparison: RunComparison) -> Iterator[list[Any]]:
    """A head, then a row for each run, measure and query. Without a baseline the last two columns are empty."""
    yield ["run", "measure", "query_id", "value", "baseline", "difference"]
    for run in comparison.runs:
        for measure in comparison.measures:
            baseline_values = {change.query_id: change.before for change in comparison.changes(run, measure)}
            for query_id, value in run.evaluation.per_query[measure].items():
                columns = (
                    [baseline_values[query_id], value - baseline_values[query_id]] if baseline_values else ["", ""]
                )
                yield [run.name, measure, query_id, value, *columns]
