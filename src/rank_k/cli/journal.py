"""`rank-k journal`: the stored calls, their cost, and the noise of the model's answers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from rank_k.cli.output_files import check_outputs
from rank_k.cli.price_options import add_price_options, prices_for_model
from rank_k.cli.render.tables import Table, print_tables
from rank_k.data.trec import read_qrels
from rank_k.errors import InputError
from rank_k.journal import Journal, WindowRecord
from rank_k.simulation.noise_file import noise_to_json
from rank_k.simulation.noise_fit import fit_noise
from rank_k.simulation.observations import observations_of

EXAMPLE = "rank-k journal cost reranked.trec.journal.sqlite"

FIT_NOISE = "fit-noise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("show", "export", "cost", FIT_NOISE),
        help="windows as text, as JSONL, the totals, or how the model errs (docs/how-to/simulate.md)",
    )
    parser.add_argument("journal", type=Path, metavar="FILE", help="the journal")
    parser.add_argument("--query", metavar="ID", help="only this query")
    parser.add_argument(
        "--run", metavar="NAME", help="of the runs in the journal, the one so named (the last one; of cost: all)"
    )
    add_price_options(parser)
    group = parser.add_argument_group(FIT_NOISE)
    group.add_argument("--qrels", type=Path, metavar="FILE", help="judgments of the queries that were asked about")
    group.add_argument("--output", type=Path, metavar="FILE", help="the noise as JSON, for --noise FILE")


def run(args: argparse.Namespace) -> int:
    if not args.journal.is_file():
        raise InputError(f"there is no journal {args.journal}", "name the file that rank-k rerank --journal wrote")
    if (args.what == FIT_NOISE) != (args.qrels is not None):
        raise InputError("fit-noise and --qrels go together", f"rank-k journal {FIT_NOISE} JOURNAL --qrels FILE")
    if args.output is not None:
        if args.what != FIT_NOISE:
            raise InputError(f"{args.what} has no use for --output", "it writes to standard output")
        check_outputs({"--output": args.output}, (args.journal, args.qrels))
    with closing(Journal(args.journal, read_only=True)) as journal:
        if args.run is not None and args.run not in (names := [record.run for record in journal.runs()]):
            raise InputError(f"there is no run {args.run} in {args.journal}", f"one of: {', '.join(names) or 'none'}")
        if args.what == "cost":
            print_tables([_cost_table(journal, args)])
            return 0
        records = journal.windows(args.run, args.query)
        if args.query is not None:
            if (first := next(records, None)) is None:
                run = "the last run" if args.run is None else f"run {args.run}"
                raise InputError(f"{run} in {args.journal} asked nothing about query {args.query}", "check --query")
            records = chain([first], records)
        if args.what == FIT_NOISE:
            print_tables(_fit_noise(records, args))
            return 0
        for record in records:
            if args.what == "export":
                print(json.dumps(_record_to_dict(journal, record)))
            else:
                print("\n".join(_record_lines(journal, record)))
    return 0


def _cost_table(journal: Journal, args: argparse.Namespace) -> Table:
    """Return a row for each model and purpose, with its cost if prices are given."""
    totals = journal.usage_totals(args.run, args.query)
    if args.query is not None and not totals:
        raise InputError(f"{args.journal} holds no call about query {args.query}", "check --query")
    has_prices = any(value is not None for value in (args.price_in, args.price_out, args.price_file))
    columns = ["model", "purpose", "calls", "tokens in", "cached", "tokens out", "reasoning", "seconds"]
    rows = []
    for model, purpose, calls, usage, seconds in totals:
        tokens = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.reasoning_tokens)
        row = [model, purpose, *(f"{count:,}" for count in (calls, *tokens)), f"{seconds:,.0f}"]
        price = prices_for_model(args, model)
        rows.append([*row, f"{price.cost_of(usage):,.4f}"] if price else row)
    return Table([*columns, "cost"] if has_prices else columns, rows, align="ll")


def _fit_noise(records: Iterator[WindowRecord], args: argparse.Namespace) -> list[Table | str]:
    """Return the noise of a run's answers, field by field; also write it to --output."""
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
        f"{noise_fit.observations:,} answers about {noise_fit.queries:,} queries, {noise_fit.comparisons:,} comparisons"
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
        "round": record.round,
        "window": record.window_number,
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


def _record_lines(journal: Journal, record: WindowRecord) -> Iterator[str]:
    yield f"== query {record.query_id}, round {record.round + 1}, window {record.window_number + 1}"
    for response in map(journal.find_response, record.call_keys):
        if response is not None:
            reasoning = f"<think>{response.reasoning.strip()}</think>\n" if response.reasoning else ""
            yield reasoning + response.text.strip()
    for ranking in record.rankings:
        yield "-> " + " > ".join(" = ".join(tier) for tier in ranking.tiers) if ranking.is_valid else "-> unranked"
    if record.repairs:
        yield "repairs: " + ", ".join(f"{kind} {count}" for kind, count in sorted(record.repairs.items()))
    yield ""
