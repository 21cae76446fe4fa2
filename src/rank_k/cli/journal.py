"""`rank-k journal`: show or export the calls in a journal, sum their cost, or estimate how often the model errs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Any

from rank_k.cli.common_flags import flag_type
from rank_k.cli.file_checks import check_outputs, open_journal
from rank_k.cli.price_options import add_price_options, prices_for_model
from rank_k.cli.render.tables import Table, print_tables
from rank_k.cli.render.words import count_noun
from rank_k.data.trec import read_qrels
from rank_k.errors import InputError
from rank_k.journal import Journal, WindowRecord
from rank_k.option_values import number
from rank_k.simulation.noise_file import noise_to_json
from rank_k.simulation.noise_fit import fit_noise
from rank_k.simulation.observations import observations_of
from rank_k.types import Usage

FIT_NOISE = "fit-noise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("show", "export", "cost", FIT_NOISE),
        help="show: print the windows; export: print the windows as JSONL; cost: sum the calls and tokens; fit-noise:"
        " estimate how often the model errs (see docs/how-to/simulate.md)",
    )
    parser.add_argument("journal", type=Path, metavar="FILE", help="journal to read")
    parser.add_argument(
        "other_journals",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="for cost: further journals to sum over, such as the journals of shards",
    )
    parser.add_argument("--query", metavar="ID", help="use only this query")
    parser.add_argument(
        "--run", metavar="NAME", help="use only this run of the journal (default: the last run; for cost: all runs)"
    )
    add_price_options(parser)
    parser.add_argument(
        "--discount",
        type=flag_type(number(0, 1)),
        default=0.0,
        metavar="SHARE",
        help="share by which the prices are lower, such as 0.5 for a batch API",
    )
    group = parser.add_argument_group(FIT_NOISE)
    group.add_argument("--qrels", type=Path, metavar="FILE", help="relevance judgments of the queries in the journal")
    group.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON file for the estimates, which --noise can read"
    )


def run(args: argparse.Namespace) -> int:
    if (args.what == FIT_NOISE) != (args.qrels is not None):
        raise InputError(
            "--qrels is required for fit-noise, and only allowed for fit-noise",
            f"run: rank-k journal {FIT_NOISE} JOURNAL --qrels FILE",
        )
    if args.output is not None:
        if args.what != FIT_NOISE:
            raise InputError(f"--output has no effect on {args.what}", "leave it out; the result is printed")
        check_outputs({"--output": args.output}, (args.journal, args.qrels))
    with closing(
        open_journal(args.journal, "give the journal of a run, such as reranked.trec.journal.sqlite")
    ) as journal:
        if args.run is not None and args.run not in (names := [record.run for record in journal.runs()]):
            raise InputError(
                f"there is no run {args.run} in {args.journal}", f"its runs are {', '.join(names) or 'none'}"
            )
        if args.what == "cost":
            print_tables([_cost_table(args, _cost_totals(journal, args))])
            return 0
        if args.other_journals:
            raise InputError(f"{args.what} reads one journal (got {1 + len(args.other_journals)})", "give one journal")
        records = journal.windows(args.run, args.query)
        if args.query is not None:
            if (first := next(records, None)) is None:
                run = "the last run" if args.run is None else f"run {args.run}"
                raise InputError(f"{run} in {args.journal} has no call for query {args.query}", "check --query")
            records = chain([first], records)
        if args.what == FIT_NOISE:
            print_tables(_fit_noise(records, args))
            return 0
        if args.what == "export":
            for record in records:
                print(json.dumps(_record_to_dict(journal, record)))
        else:
            texts = journal.query_texts(args.run)
            for record in records:
                print("\n".join(_record_lines(journal, record, texts.get(record.query_id, ""))))
    return 0


def _cost_totals(first: Journal, args: argparse.Namespace) -> dict[tuple[str, str], tuple[int, Usage, float]]:
    """Return calls, usage and seconds by model and purpose, summed over all journals."""
    totals: dict[tuple[str, str], tuple[int, Usage, float]] = {}
    with ExitStack() as stack:
        others = [stack.enter_context(closing(Journal(path, read_only=True))) for path in args.other_journals]
        for journal in (first, *others):
            for model, purpose, calls, usage, seconds in journal.usage_totals(args.run, args.query):
                old_calls, old_usage, old_seconds = totals.get((model, purpose), (0, Usage(), 0.0))
                totals[model, purpose] = (old_calls + calls, old_usage + usage, old_seconds + seconds)
    if args.query is not None and not totals:
        raise InputError(f"{args.journal} has no call for query {args.query}", "check --query")
    return totals


def _cost_table(args: argparse.Namespace, totals: Mapping[tuple[str, str], tuple[int, Usage, float]]) -> Table:
    """Return a row for each model and purpose, with its cost if prices are given."""
    has_prices = any(value is not None for value in (args.price_in, args.price_out, args.price_file))
    columns = ["model", "purpose", "calls", "tokens in", "cached", "tokens out", "reasoning", "seconds"]
    rows = []
    for (model, purpose), (calls, usage, seconds) in totals.items():
        prefix, reasoning_prefix = "~" if usage.estimated else "", "~" if usage.reasoning_is_estimated else ""
        counts = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        tokens = [*(f"{prefix}{count:,}" for count in counts), f"{reasoning_prefix}{usage.reasoning_tokens:,}"]
        row = [model, purpose, f"{calls:,}", *tokens, f"{seconds:,.0f}"]
        price = prices_for_model(args, model)
        rows.append([*row, f"{price.cost_of(usage) * (1 - args.discount):,.4f}"] if price else row)
    return Table([*columns, "cost"] if has_prices else columns, rows, align="ll")


def _fit_noise(records: Iterator[WindowRecord], args: argparse.Namespace) -> list[Table | str]:
    """Return the estimated noise of the model in a run as a table, one row per parameter. Also write it to --output."""
    from dataclasses import asdict

    noise_fit = fit_noise(observations_of(records), read_qrels(args.qrels))
    if args.output is not None:
        provenance = {
            "journal": str(args.journal),
            "qrels": str(args.qrels),
            "queries": noise_fit.queries,
            "answers": noise_fit.observations,
            "comparisons": noise_fit.comparisons,
            "standard_errors": {name: round(error, 4) for name, error in noise_fit.errors.items()},
            "assumed": dict(noise_fit.assumed),
        }
        args.output.write_text(noise_to_json(noise_fit.noise, provenance), encoding="utf-8")
    caption = (
        f"{count_noun(noise_fit.observations, 'answer')} about {count_noun(noise_fit.queries, 'query')},"
        f" {count_noun(noise_fit.comparisons, 'comparison')}"
    )
    rows = [
        (
            name,
            f"{value:.3f}",
            f"+- {noise_fit.errors[name]:.3f}" if name in noise_fit.errors else "",
            noise_fit.assumed.get(name, ""),
        )
        for name, value in asdict(noise_fit.noise).items()
    ]
    return [caption, Table(("parameter", "value", "standard error", "remark"), rows, align="lrll")]


def _record_to_dict(journal: Journal, record: WindowRecord) -> dict[str, Any]:
    return {
        "query_id": record.query_id,
        "round": record.round + 1,
        "window": record.window_number + 1,
        "doc_ids": record.window.doc_ids,
        "reach": record.window.rank_range,
        "method": record.window.method,
        "orders": [
            {"tiers": ranking.tiers, "placed": sorted(ranking.ranked_ids), "ranked": ranking.is_valid}
            for ranking in record.rankings
        ],
        "repairs": dict(record.repairs),
        "calls": [
            {
                "request": call.request,
                "reasoning": call.response.reasoning,
                "text": call.response.text,
                "finish_reason": call.response.finish_reason,
                "prompt_tokens": call.response.usage.prompt_tokens,
                "completion_tokens": call.response.usage.completion_tokens,
                "seconds": call.response.seconds,
            }
            for call in map(journal.find_call, record.call_keys)
            if call is not None
        ],
    }


def _record_lines(journal: Journal, record: WindowRecord, query_text: str) -> Iterator[str]:
    yield f"== query {record.query_id}, round {record.round + 1}, window {record.window_number + 1}"
    if query_text:
        yield f"query: {query_text}"
    for response in map(journal.find_response, record.call_keys):
        if response is not None:
            reasoning = f"<think>{response.reasoning.strip()}</think>\n" if response.reasoning else ""
            yield reasoning + response.text.strip()
    for ranking in record.rankings:
        yield "-> " + " > ".join(" = ".join(tier) for tier in ranking.tiers) if ranking.is_valid else "-> unranked"
    if record.repairs:
        yield "repairs: " + ", ".join(f"{kind} {count}" for kind, count in sorted(record.repairs.items()))
    yield ""
