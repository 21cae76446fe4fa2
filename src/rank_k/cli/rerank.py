"""`rank-k rerank`: rerank a first-stage run."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rank_k.cli import resumable
from rank_k.cli.collection_options import RequestedCollection, add_collection_options
from rank_k.cli.common_flags import add_flags, select_queries
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
from rank_k.cli.run_progress import show_progress
from rank_k.data.collections.base import RunWithoutExcluded
from rank_k.data.long_documents import passage_grades
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunFile, RunWriter, read_qrels
from rank_k.errors import InputError
from rank_k.evaluation.run_costs import read_query_costs
from rank_k.models.simulated import SimulatedModel
from rank_k.options import InferenceOptions, LimitOptions, LongDocumentOptions, RankingOptions, options_of
from rank_k.reranker import Reranker
from rank_k.run_job import no_progress, passage_split, rerank_run, split_overrides
from rank_k.simulation.noise_file import noise_by_name
from rank_k.types import Candidate, PassageSource, Query


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, "--run")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file for the new run")
    add_collection_options(parser)
    add_flags(parser, "--limit", "--only")
    parser.add_argument(
        "--query-fields",
        metavar="NAMES",
        help="fields of a query that the model sees, such as title,description,narrative (default: text)",
    )
    add_options(parser.add_argument_group("long documents"), options_of(LongDocumentOptions).values())
    add_server_options(parser, simulation={})
    add_ranking_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="file that stores every call, to resume (default: OUTPUT.journal.sqlite)",
    )
    group.add_argument("--report", type=Path, metavar="FILE", help="file for the summary as JSON")
    add_options(group, options_of(LimitOptions).values())
    add_price_options(group)
    group.add_argument("--tag", default="rank-k", metavar="TEXT", help="name of the run in its last column")
    add_flags(group, "--strict", "--quiet")


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    options = reranker_options(args)  # user errors in options are reported before files are read
    depth = args.depth or RankingOptions.depth
    split = passage_split(vars(args), args.passage_tokens or InferenceOptions.passage_tokens)
    if split is not None:
        options = split_overrides(options)
    collection = RequestedCollection(args)
    run_file = collection.file("run")
    journal = args.journal or args.output.with_name(args.output.name + ".journal.sqlite")
    outputs = {"--output": args.output, "--journal": journal, "--report": args.report}
    check_outputs(outputs, (run_file, *collection.files, args.simulate))
    first_stage = RunFile(run_file)
    queries = read_queries(collection.queries, args.query_fields)
    query_ids = _select_queries(args, first_stage, queries, collection.queries)
    candidates = RunWithoutExcluded(_SelectedQueries(first_stage, query_ids), collection.excluded)
    store = collection.open_store(quiet=args.quiet)
    _check_documents(candidates, store, depth)
    model = args.model
    if args.simulate is not None:
        grades = read_qrels(args.simulate)
        model = SimulatedModel(grades if split is None else passage_grades(grades), noise_by_name(args.noise))
    with closing(store), Reranker(model, journal=journal, **options) as reranker:
        settings = run_settings(args, reranker.options) | {"depth": depth}
        with resumable(journal):
            reranker.prepare()
            price = prices_for_model(args, reranker.model.name)
            reranker.check(queries[query_id] for query_id in query_ids)
            with RunWriter(args.output, args.tag) as writer:
                rankings = rerank_run(
                    reranker,
                    candidates,
                    queries,
                    store,
                    query_count=len(query_ids),
                    settings=settings,
                    split=split,
                    depth=depth,
                    max_seconds=args.max_seconds,
                    token_budget=args.token_budget,
                    show_progress=no_progress if args.quiet else show_progress(),
                )
                for query_id, ranking in rankings:
                    writer.write_query(query_id, ranking.doc_ids)
        repairs = {"duplicates": first_stage.duplicate_count, "excluded": candidates.count_excluded()}
        reranker.stats.repairs += Counter(repairs)  # without those that are 0
        return _finish(args, reranker, price, time.monotonic() - started, settings)


def _finish(
    args: argparse.Namespace, reranker: Reranker, price: Prices | None, seconds: float, settings: dict[str, Any]
) -> int:
    stats = reranker.stats
    if not args.quiet:
        print("\n".join(rerank_summary.lines(stats, seconds, price, reranker.method)), file=sys.stderr)
    if args.report is not None:
        sources = {name: source for name, source in reranker.options.sources.items() if name in settings}
        report = rerank_summary.report(stats, seconds, {**settings, "option_sources": sources}, price)
        run = reranker.journal.begin_run(settings)
        with args.report.open("w", encoding="utf-8") as file:
            rerank_summary.write_report(file, report, read_query_costs(reranker.journal, run))
    is_incomplete = bool(stats.unranked_windows or stats.unfinished)
    return 3 if rerank_summary.is_unranked(stats) or (args.strict and is_incomplete) else 0


class _SelectedQueries:
    """The queries of a run that have the given ids. It can be iterated as often as the run."""

    def __init__(self, run: RunFile, query_ids: Iterable[str]) -> None:
        self._run = run
        self._query_ids = frozenset(query_ids)

    def __iter__(self) -> Iterator[tuple[str, Sequence[Candidate]]]:
        return (pair for pair in self._run if pair[0] in self._query_ids)


def _select_queries(
    args: argparse.Namespace, first_stage: RunFile, queries: Mapping[str, Query], file: Path
) -> list[str]:
    """Return the ids of the run's queries that are to be reranked.

    With --limit or --only, the run may have queries without a text, which are left out. Otherwise they are an error,
    because the run and the queries probably do not belong together.
    """
    missing_ids = [query_id for query_id in first_stage.query_ids if query_id not in queries]
    is_part = "limit" in args or "only" in args
    if missing_ids and (not is_part or len(missing_ids) == len(first_stage)):
        raise InputError(
            f"{len(missing_ids)} of the run's {len(first_stage)} queries are not in {file}, for example"
            f" {', '.join(missing_ids[:3])}",
            "give the queries of the run, or rerank only some of them with --limit N or --only ID",
        )
    return select_queries(args, (query_id for query_id in first_stage.query_ids if query_id in queries))


def _check_documents(run: Iterable[tuple[str, Sequence[Candidate]]], store: PassageSource, depth: int) -> None:
    """Raise `InputError` if a candidate has no text, before the first call is paid."""
    for query_id, candidates in run:
        for candidate in candidates[:depth]:
            store.get(candidate.doc_id, query_id)
