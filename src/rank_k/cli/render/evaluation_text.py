"""A comparison of runs as tables, as JSON, and as rows of CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rank_k.cli.render.tables import Table
from rank_k.cli.render.words import count_noun
from rank_k.evaluation.run_comparison import ComparedRun, RunComparison
from rank_k.evaluation.run_costs import RunCost

_MAX_LOSSES = 5


def notes(comparison: RunComparison) -> Iterator[str]:
    """Yield notes on missing queries, queries without judgments, queries with tied scores, and journals."""
    for run in comparison.runs:
        evaluation, cost = run.evaluation, run.cost
        messages = {
            f"{count_noun(len(evaluation.missing), 'judged query')} missing, counted as 0: "
            f"{', '.join(evaluation.missing[:5])} (--common-queries leaves them out)": (evaluation.missing),
            f"{count_noun(len(evaluation.unjudged), 'query')} without judgments, not counted": evaluation.unjudged,
            f"{count_noun(len(evaluation.tied), 'query')} with equal scores, which keep the order of the file;"
            " --ties trec_eval orders them by descending id, as trec_eval does": evaluation.tied,
            f"no run in {cost and cost.journal} wrote a file of this name; the cost is that of its last run": (
                cost and cost.other_runs and not cost.wrote_file
            ),
        }
        yield from (f"{run.name}: {message}" for message, applies in messages.items() if applies)


# --- for the terminal ---


def tables(comparison: RunComparison) -> Iterator[Table | str]:
    """Yield the means, the differences from the baseline, the largest losses, unjudged documents and costs."""
    measures = comparison.measures
    yield Table(
        ["run", *measures],
        [[run.name, *(f"{run.evaluation.means[measure]:.4f}" for measure in measures)] for run in comparison.runs],
    )
    if comparison.compared_runs:
        yield _differences_table(comparison)
        yield _losses_table(comparison)
    if comparison.compared_runs or comparison.quality_measures == measures:
        shares = ", ".join(f"{run.name} {run.unjudged:.1%}" for run in comparison.runs)
        yield f"share of unjudged documents among the first ten: {shares}"
    costs = [(run.name, run.cost) for run in comparison.runs if run.cost is not None]
    if costs:
        yield _cost_table(costs)


def _differences_table(comparison: RunComparison) -> Table:
    return Table(
        ["run", "measure", "difference", "95% interval", "p (random.)", "p (t)", "gain", "stay", "lose"],
        [
            [
                *(run.name, measure),
                *(f"{paired.mean:+.4f}", f"{paired.low:+.4f} to {paired.high:+.4f}"),
                *(f"{compared.randomization_p:.4f}", f"{compared.t_p:.4f}"),
                *(paired.better, paired.equal, paired.worse),
            ]
            for run in comparison.compared_runs
            for measure, compared in run.comparisons.items()
            for paired in [compared.paired]
        ],
        align="ll",
        title=f"compared with {comparison.baseline}: {count_noun(comparison.comparisons, 'comparison')},"
        " p values corrected for all of them (Holm)",
    )


def _losses_table(comparison: RunComparison) -> Table | str:
    rows = [
        [
            *(run.name, change.query_id),
            *(f"{change.before:.4f}", f"{change.after:.4f}", f"{change.difference:+.4f}"),
            " to ".join("-" if share is None else f"{share:.0%}" for share in change.unjudged),
            (run.cost.trace_command(change.query_id) if run.cost else None) or "",
        ]
        for run in comparison.compared_runs
        for change in comparison.largest_losses(run, _MAX_LOSSES)
    ]
    measure = comparison.primary_measure
    if not rows:
        return f"no query has a lower {measure}"
    traces = ", and the commands that show their traces" if any(row[-1] for row in rows) else ""
    columns = ["run", "query", "before", "after", "difference", "unjudged", ""]
    return Table(columns, rows, align="llrrrrl", title=f"queries with the largest losses in {measure}{traces}")


def _cost_table(costs: Sequence[tuple[str, RunCost]]) -> Table:
    columns = ["cost", "queries", "calls", "rounds", "tokens in", "tokens out", "reasoning", "seconds"]
    has_money = any(cost.money is not None for _, cost in costs)
    rows = []
    for name, cost in costs:
        usage, prefix = cost.usage, "~" if cost.usage.estimated else ""
        reasoning_prefix = "~" if usage.reasoning_is_estimated else ""
        row = [
            *(name, f"{len(cost.queries):,}", f"{cost.calls:,}", f"{cost.rounds:.1f}"),
            *(f"{prefix}{usage.prompt_tokens:,}", f"{prefix}{usage.completion_tokens:,}"),
            f"{reasoning_prefix}{usage.reasoning_tokens:,}",
            *(f"{cost.model_seconds:,.0f}", "-" if cost.money is None else f"{cost.money:.4f}"),
        ]
        rows.append(row if has_money else row[:-1])
    return Table([*columns, "money"] if has_money else columns, rows)


# --- for programs ---


def as_json(comparison: RunComparison) -> str:
    """Return a JSON object per run. Values that cannot be computed are null."""
    return json.dumps(without_nan({run.name: _run_to_dict(run, comparison) for run in comparison.runs}), indent=2)


def without_nan(value: Any) -> Any:
    """Return a JSON value with null instead of NaN, such as the standard error over a single query."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def _run_to_dict(run: ComparedRun, comparison: RunComparison) -> dict[str, Any]:
    evaluation, measures, cost = run.evaluation, comparison.measures, run.cost
    return {
        "mean": {measure: evaluation.means[measure] for measure in measures},
        "per_query": {measure: dict(evaluation.per_query[measure]) for measure in measures},
        "missing": evaluation.missing,
        "unjudged": evaluation.unjudged,
        "interval": run.intervals,
        "unjudged_share_of_first_ten": run.unjudged,
        "baseline": comparison.baseline or None,
        "comparisons": comparison.comparisons,
        "against_baseline": {
            measure: {
                "difference": compared.paired.mean,
                "standard_error": compared.paired.standard_error,
                "interval": [compared.paired.low, compared.paired.high],
                "t_p": compared.paired.t_p,
                "t_p_corrected": compared.t_p,
                "randomization_p": compared.paired.randomization_p,
                "randomization_p_corrected": compared.randomization_p,
                "better": compared.paired.better,
                "equal": compared.paired.equal,
                "worse": compared.paired.worse,
            }
            for measure, compared in run.comparisons.items()
        },
        "largest_losses": [
            {
                "query_id": change.query_id,
                "measure": comparison.primary_measure,
                "before": change.before,
                "after": change.after,
                "trace": cost.trace_command(change.query_id) if cost else None,
            }
            for change in (comparison.largest_losses(run) if run.comparisons else ())
        ],
        "cost": cost
        and {
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
            "reasoning_tokens_estimated": cost.usage.reasoning_is_estimated,
            "seconds": cost.model_seconds,
            "unranked_windows": cost.unranked,
            "money": cost.money,
        },
    }


# --- for spreadsheets ---


def rows(comparison: RunComparison) -> Iterator[list[Any]]:
    """Yield a header, then a row for each run, measure and query. The last two columns are empty without a baseline."""
    yield ["run", "measure", "query_id", "value", "baseline", "difference"]
    for run in comparison.runs:
        for measure in comparison.measures:
            baseline_values = {change.query_id: change.before for change in comparison.changes(run, measure)}
            for query_id, value in run.evaluation.per_query[measure].items():
                before = baseline_values.get(query_id)
                compared = ["", ""] if before is None else [before, value - before]
                yield [run.name, measure, query_id, value, *compared]
