"""The summary of a reranked run as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TextIO

from rank_k.cli.price_options import Prices
from rank_k.cli.render.words import count_noun, describe_count, format_seconds
from rank_k.engine import RunStats
from rank_k.evaluation.run_costs import QueryCost
from rank_k.types import ScoringMethod, Usage

REPAIRS = {
    "missing": ("passage", "missing from an answer or without a likelihood: placed at the end in input order"),
    "repeated": ("passage", "listed twice in an answer: the first position counts"),
    "out_of_range": ("number", "in an answer that is not the number of a passage: ignored"),
    "truncated": ("response", "truncated by the token limit"),
    "forced_answers": ("answer", "requested in a second call after truncated reasoning"),
    "answer_requested_again": ("answer", "without a usable ranking: requested again with the same reasoning"),
    "budget_rejected": (
        "window",
        "whose reasoning budget the server rejected: the token limit was used instead"
        " (start vLLM with --reasoning-parser)",
    ),
    "budget_exceeded": ("response", "with more reasoning than the budget"),
    "constraint_violated": ("answer", "against the grammar of constrained decoding"),
    "repetition_stopped": ("response", "stopped early because it repeated itself"),
    "samples_skipped": ("sample", "not requested because the first samples agreed"),
    "windows_reasoned": ("window", "ranked with reasoning because the direct answer was not confident"),
    "unmatched_think_tag": ("reasoning tag", "without a matching opening or closing tag"),
    "unranked": ("answer", "without a usable ranking"),
    "retries_exhausted": ("window", "without a response after all retries"),
    "content_filtered": ("window", "rejected by the content filter of the server"),
    "passages_truncated": ("passage", "truncated to --passage-tokens"),
    "context_truncated": ("passage", "truncated further to fit into the context of the model"),
    "max_tokens_lowered": ("window", "whose token limit was lowered to fit into the context of the model"),
    "byte_tokens_skipped": ("likelihood", "computed without characters that the tokenizer splits into several tokens"),
    "tokens_estimated": (
        "text",
        "with an estimated number of tokens, because the server cannot count tokens: this only affects where long texts"
        " are truncated",
    ),
    "duplicates": ("candidate", "listed twice in the run: the better rank counts"),
    "excluded": ("candidate", "left out of the run, because the data set excludes such documents"),
}
"""Every kind of repair and truncation: the noun that is counted, and what happened to it."""

LIKELIHOOD_NOTE = "method likelihood: passages were scored one by one and not compared (see docs/how-to/embedded.md)"
ALL_UNRANKED = (
    "no window could be ranked, so the output has the order of the input: rank-k doctor --probe tests whether the model"
    " can rank"
)


def describe_repair(kind: str, count: int) -> str:
    """Return the number of repairs of one kind as text."""
    return describe_count(count, *REPAIRS.get(kind, (f"repair {kind}", "")))


def lines(
    stats: RunStats,
    seconds: float,
    price: Prices | None = None,
    method: ScoringMethod = "listwise",
    *,
    noun: str = "query",
) -> list[str]:
    """Return the lines of the summary.

    Args:
        stats: The counts of the run.
        seconds: How long the run took.
        price: The prices of tokens (default: the summary has no cost).
        method: The scoring method.
        noun: The noun for the items that were ranked, in the singular.
    """
    usage = stats.usage
    prefix, reasoning_prefix = "~" if usage.estimated else "", "~" if usage.reasoning_is_estimated else ""
    calls = f"{count_noun(stats.calls, 'call')} ({stats.calls - stats.new_calls:,} from the journal)"
    output = [
        f"{count_noun(stats.queries, noun)}, {count_noun(stats.rounds, 'round')}, {calls}, {format_seconds(seconds)}",
        f"tokens: {prefix}{usage.prompt_tokens:,} in ({usage.cached_tokens:,} cached),"
        f" {prefix}{usage.completion_tokens:,} out,"
        f" including {reasoning_prefix}{usage.reasoning_tokens:,} of reasoning",
    ]
    if method == "likelihood":
        output.insert(0, LIKELIHOOD_NOTE)
    if price is not None:
        output.append(f"cost: {price.cost_of(usage):.4f}")
    if stats.saved_tokens:
        output.append(f"saved: at least {stats.saved_tokens:,} tokens, by stopping responses that repeated themselves")
    output += [f"repairs: {describe_repair(kind, count)}" for kind, count in sorted(stats.repairs.items()) if count]
    if stats.unranked_windows:
        examples = ", ".join(f"{query_id} (round {round_number + 1})" for query_id, round_number in stats.unranked[:5])
        windows = count_noun(stats.windows, "window")
        output.append(f"left in input order: {stats.unranked_windows:,} of {windows}: {examples}")
    if stats.unfinished:
        unfinished = count_noun(len(stats.unfinished), noun)
        output.append(f"unfinished, with the best ranking so far: {unfinished}: {', '.join(stats.unfinished[:5])}")
    if stats.unranked_windows and stats.new_calls < stats.calls:
        output.append(
            "answers in the journal are not requested again; to request new ones, give a different --seed or --journal"
        )
    if is_unranked(stats):
        output.append(ALL_UNRANKED)
    return output


def is_unranked(stats: RunStats) -> bool:
    """Return whether there were windows, but none could be ranked."""
    return 0 < stats.windows == stats.unranked_windows


def report(stats: RunStats, seconds: float, settings: dict[str, Any], price: Prices | None = None) -> dict[str, Any]:
    """Return the summary as a JSON object.

    Args:
        stats: The counts of the run.
        seconds: How long the run took.
        settings: The settings of the run.
        price: The prices of tokens (default: the cost is null).
    """
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
    """Write the report as JSON.

    Args:
        file: The file to write to.
        summary: The object that `report` returns.
        queries: The costs of the queries, which are written one at a time to save memory.
    """
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
    """Return the token counts by key. `reasoning_tokens_estimated` marks counts of which only the reasoning is
    estimated."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        **({"reasoning_tokens_estimated": True} if usage.reasoning_estimated else {}),
        "answer_tokens": usage.completion_tokens - usage.reasoning_tokens,
    }
