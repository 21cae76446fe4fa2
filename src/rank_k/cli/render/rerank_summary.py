"""The summary of a reranked run: lines for the terminal, and a report as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TextIO

from rank_k.cli.price_options import Prices
from rank_k.cli.progress import format_seconds
from rank_k.engine import RunStats
from rank_k.evaluation.run_costs import QueryCost
from rank_k.types import ScoringMethod, Usage

REPAIRS = {
    "missing": "passages the model forgot or gave no likelihood, appended in input order",
    "repeated": "passages named twice, first mention kept",
    "out_of_range": "numbers that no passage has, dropped",
    "truncated": "thoughts or answers cut by the token limit",
    "forced_answers": "cut thoughts closed and asked for their answer",
    "answer_requested_again": "answers that could not be used, asked for again with the thought in place",
    "budget_rejected": "windows whose reasoning budget the server refused; the token limit was used instead"
    " (vLLM: start it with --reasoning-parser)",
    "budget_exceeded": "thoughts that went over the reasoning budget",
    "constraint_violated": "answers that did not keep the grammar they were held to",
    "repetition_stopped": "thoughts that went in circles, ended early",
    "samples_skipped": "samples not taken since the first ones agreed",
    "windows_reasoned": "windows thought about, as their direct order was not sure",
    "unmatched_think_tag": "ends of a thought where none belongs",
    "unranked": "windows without a usable answer",
    "retries_exhausted": "windows given up after retrying",
    "content_filtered": "windows refused by the server's content filter",
    "passages_truncated": "passages cut to --passage-tokens",
    "context_truncated": "passages cut further, to share the context",
    "max_tokens_lowered": "windows whose token limit was lowered, to share the context",
    "byte_tokens_skipped": "likelihoods without those characters that the model spells in several tokens",
    "tokens_estimated": "texts whose tokens could only be estimated",
    "duplicates": "candidates that stood in the run twice, best kept",
    "excluded": "candidates that the data set excludes, left out of the run",
}
"""Every kind of repair, in words."""

LIKELIHOOD_NOTE = "ranked by query likelihood, not by comparison: see docs/how-to/embedded.md"


def lines(
    stats: RunStats, seconds: float, price: Prices | None = None, method: ScoringMethod = "listwise"
) -> list[str]:
    """Return the lines of the summary."""
    usage = stats.usage
    prefix = "about " if usage.estimated else ""
    output = [
        f"{stats.queries} queries, {stats.rounds} rounds, {stats.calls} calls"
        f" ({stats.calls - stats.new_calls} from the journal), {format_seconds(seconds)}",
        f"tokens: {prefix}{usage.prompt_tokens:,} in ({usage.cached_tokens:,} cached),"
        f" {usage.completion_tokens:,} out, of these {usage.reasoning_tokens:,} reasoning",
    ]
    if method == "likelihood":
        output.insert(0, LIKELIHOOD_NOTE)
    if price is not None:
        output.append(f"cost: {price.cost_of(usage):.4f}")
    if stats.saved_tokens:
        output.append(f"saved: at least {stats.saved_tokens:,} tokens, by ending thoughts that went in circles")
    output += [
        f"repairs: {count:,} {REPAIRS.get(kind, kind)}" for kind, count in sorted(stats.repairs.items()) if count
    ]
    if stats.unranked_windows:
        examples = ", ".join(f"{query_id} (round {round_number + 1})" for query_id, round_number in stats.unranked[:5])
        output.append(f"left in input order: {stats.unranked_windows} of {stats.windows} windows: {examples}")
    if stats.unfinished:
        output.append(f"unfinished, best so far: {len(stats.unfinished)} queries: {', '.join(stats.unfinished[:5])}")
    return output


def report(stats: RunStats, seconds: float, settings: dict[str, Any], price: Prices | None = None) -> dict[str, Any]:
    """Return the summary as a JSON object."""
    return {
        "settings": settings,
        "queries": stats.queries,
        "rounds": stats.rounds,
        "windows": stats.windows,
        "calls": stats.calls,
        "new_calls": stats.new_calls,
        **_token_counts(stats.usage),
        "completion_tokens": stats.usage.completion_tokens,
        "saved_tokens": stats.saved_tokens,
        "tokens_estimated": stats.usage.estimated,
        "cost": None if price is None else round(price.cost_of(stats.usage), 6),
        "forced_answers": stats.repairs["forced_answers"],
        "budgets_exceeded": stats.repairs["budget_exceeded"],
        "seconds": round(seconds, 3),
        "model_seconds": round(stats.model_seconds, 3),
        "repairs": dict(sorted(stats.repairs.items())),
        "unranked_windows": stats.unranked_windows,
        "unranked": [{"query_id": query_id, "round": round_number + 1} for query_id, round_number in stats.unranked],
        "unfinished": stats.unfinished,
    }


def write_report(file: TextIO, summary: dict[str, Any], queries: Iterable[QueryCost]) -> None:
    """Write `summary` as JSON, with the costs of the queries, which are written one by one to save memory."""
    file.write(json.dumps(summary, indent=2, default=str)[:-2] + ',\n  "per_query": [')
    for index, query in enumerate(queries):
        row = {
            "query_id": query.query_id,
            "rounds": query.rounds,
            "windows": query.windows,
            "calls": query.calls,
            **_token_counts(query.usage),
            "seconds": round(query.model_seconds, 3),
            "unranked_windows": query.unranked_windows,
            "repairs": dict(sorted(query.repairs.items())),
        }
        file.write(("," if index else "") + "\n    " + json.dumps(row))
    file.write("\n  ]\n}\n")


def _token_counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "answer_tokens": usage.completion_tokens - usage.reasoning_tokens,
    }
