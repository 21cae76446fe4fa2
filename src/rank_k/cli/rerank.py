"""`rank-k rerank`: rerank a first-stage run."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from rank_k.cli import resumable
from rank_k.cli.common_flags import add_flags
from rank_k.cli.file_checks import check_outputs
from rank_k.cli.model_options import (
    add_options,
    add_ranking_options,
    add_server_options,
    reranker_options,
    run_settings,
)
from rank_k.cli.price_options import Prices, add_price_options, prices_for_model
from rank_k.cli.render import rerank_summary
from rank_k.cli.render.words import count_noun
from rank_k.cli.run_input import RunInput, add_run_arguments
from rank_k.cli.run_progress import show_progress
from rank_k.data.long_documents import passage_grades
from rank_k.data.trec import RunWriter, read_qrels
from rank_k.errors import InputError
from rank_k.evaluation.run_costs import read_query_costs
from rank_k.models.simulated import SimulatedModel
from rank_k.options import InferenceOptions, LimitOptions, LongDocumentOptions, RankingOptions, options_of
from rank_k.reranker import Reranker
from rank_k.run_job import no_progress, passage_split, rerank_run, split_overrides
from rank_k.scale.merge import check_shard
from rank_k.scale.shards import Shard
from rank_k.simulation.noise_file import noise_by_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file for the new run")
    parser.add_argument(
        "--shard",
        default=argparse.SUPPRESS,
        metavar="NUMBER/COUNT",
        help="rerank only this part of the queries: for example 3/16, or slurm to use the task of a Slurm job array;"
        " the number of the shard is added to the names of output files (see rank-k merge)",
    )
    add_options(parser.add_argument_group("long documents"), options_of(LongDocumentOptions).values())
    add_server_options(parser, simulation={})
    add_ranking_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="file that stores every call, so that the command can resume (default: OUTPUT.journal.sqlite)",
    )
    group.add_argument("--report", type=Path, metavar="FILE", help="write the summary to this file as JSON")
    add_options(group, options_of(LimitOptions).values())
    add_price_options(group)
    group.add_argument(
        "--tag", default="rank-k", metavar="TEXT", help="name of the run, in the last column of the output"
    )
    add_flags(group, "--strict", "--quiet")


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    options = reranker_options(args)  # user errors in options are reported before files are read
    depth = args.depth or RankingOptions.depth
    split = passage_split(vars(args), args.passage_tokens or InferenceOptions.passage_tokens)
    if split is not None:
        options = split_overrides(options)
    shard = Shard.parse(args.shard, os.environ) if "shard" in args else None
    output, journal, report = _output_files(args, shard)
    run_input = RunInput(args, shard)
    check_outputs({"--output": output, "--journal": journal, "--report": report}, (*run_input.files, args.simulate))
    store = run_input.open_documents(depth, quiet=args.quiet)
    model = args.model
    if args.simulate is not None:
        grades = read_qrels(args.simulate)
        if run_input.query_ids and grades.keys().isdisjoint(run_input.all_query_ids):
            raise InputError(
                f"{args.simulate} judges none of the queries", "give the qrels of the queries that are reranked"
            )
        model = SimulatedModel(grades if split is None else passage_grades(grades), noise_by_name(args.noise))
    with closing(store), Reranker(model, journal=journal, **options) as reranker:
        settings = run_settings(args, reranker.options) | {"depth": depth}
        if shard is not None:  # the shards of a run may use different servers and files
            settings = {name: value for name, value in settings.items() if name not in ("server", "output", "journal")}
            check_shard(reranker.journal, shard, reranker.journal.begin_run(settings), run_input.all_query_ids)
        with resumable(journal):
            reranker.prepare()
            price = prices_for_model(args, reranker.model.name)
            reranker.check(run_input.queries[query_id] for query_id in run_input.query_ids)
            with RunWriter(output, args.tag) as writer:
                rankings = rerank_run(
                    reranker,
                    run_input.candidates,
                    run_input.queries,
                    store,
                    query_count=len(run_input.query_ids),
                    settings=settings,
                    split=split,
                    depth=depth,
                    max_seconds=args.max_seconds,
                    token_budget=args.token_budget,
                    show_progress=no_progress if args.quiet else show_progress(),
                )
                for query_id, ranking in rankings:
                    writer.write_query(query_id, ranking.doc_ids)
        repairs = {
            "duplicates": run_input.first_stage.duplicate_count,
            "excluded": run_input.candidates.count_excluded(),
        }
        reranker.stats.repairs += Counter(repairs)  # adding counters removes counts of 0
        if shard is not None and not args.quiet:
            queries = f"{len(run_input.query_ids):,} of {count_noun(len(run_input.all_query_ids), 'query')}"
            print(
                f"shard {shard}: {queries}; --max-seconds and --token-budget apply to this shard only: {output}",
                file=sys.stderr,
            )
        return _finish(args, reranker, price, time.monotonic() - started, settings, report)


def _output_files(args: argparse.Namespace, shard: Shard | None) -> tuple[Path, Path, Path | None]:
    """Return the paths of the output, the journal and the report. They contain the number of the shard."""
    journal = args.journal
    output, report = args.output, args.report
    if shard is not None:
        output = shard.path(output)
        journal, report = (file and shard.path(file) for file in (journal, report))
    return output, journal or output.with_name(output.name + ".journal.sqlite"), report


def _finish(
    args: argparse.Namespace,
    reranker: Reranker,
    price: Prices | None,
    seconds: float,
    settings: dict[str, Any],
    report_file: Path | None,
) -> int:
    stats = reranker.stats
    if not args.quiet:
        print("\n".join(rerank_summary.lines(stats, seconds, price, reranker.method)), file=sys.stderr)
    if report_file is not None:
        sources = {name: source for name, source in reranker.options.sources.items() if name in settings}
        report = rerank_summary.report(stats, seconds, {**settings, "option_sources": sources}, price)
        run = reranker.journal.begin_run(settings)
        with report_file.open("w", encoding="utf-8") as file:
            rerank_summary.write_report(file, report, read_query_costs(reranker.journal, run))
    is_incomplete = bool(stats.unranked_windows or stats.unfinished)
    return 3 if rerank_summary.is_unranked(stats) or (args.strict and is_incomplete) else 0
