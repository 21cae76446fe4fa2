"""`rank-k rerank`: a run in, a better run out."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_k.cli.collection_options import add_collection_options, index_progress, resolve_collection
from rank_k.cli.model_options import (
    NOISE_HELP,
    add_ranking_options,
    add_server_options,
    positive_int,
    positive_seconds,
    reranker_options,
    simulated_model,
    simulated_passage_model,
)
from rank_k.cli.output_files import check_output
from rank_k.cli.price_options import Prices, add_price_options, prices_for_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rank_k.data.collections.base import DocumentStore
    from rank_k.data.long_documents import PassageSplit
    from rank_k.data.trec import RunFile
    from rank_k.reranker import Reranker
    from rank_k.types import Candidate, Query

NAME = "rerank"
HELP = "rerank a first-stage run with a language model that reasons"
EXAMPLE = (
    "rank-k rerank --run bm25.trec --queries queries.jsonl --documents corpus.jsonl.gz --output reranked.trec"
    " --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, metavar="FILE", help="TREC run, or score.json (the data set's own)")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the new run")
    add_collection_options(parser)
    fields = "what the model sees of a query (text), such as title,description,narrative"
    parser.add_argument("--query-fields", metavar="NAMES", help=fields)
    group = parser.add_argument_group("long documents")
    group.add_argument(
        "--maxp-tokens", type=positive_int, metavar="TOKENS", help="cut into passages; the best one counts (MaxP)"
    )
    group.add_argument(
        "--maxp-overlap", type=positive_int, metavar="TOKENS", help="that a passage repeats of the one before (none)"
    )
    group.add_argument("--maxp-passages", type=positive_int, metavar="N", help="only the first N (all)")
    group = add_server_options(parser)
    group.add_argument("--simulate", type=Path, metavar="QRELS", help="a simulated judge instead: plan before you pay")
    group.add_argument("--noise", default="strong", metavar="NOISE", help=f"of the simulated judge: {NOISE_HELP}")
    add_ranking_options(parser)
    group = parser.add_argument_group("keeping")
    group.add_argument("--journal", type=Path, metavar="FILE", help="where calls are kept (OUTPUT.journal.sqlite)")
    group.add_argument("--report", type=Path, metavar="FILE", help="the summary as JSON")
    group.add_argument(
        "--max-seconds", type=positive_seconds, metavar="S", help="stop then, with the best so far everywhere"
    )
    group.add_argument(
        "--token-budget", type=token_count, metavar="N", help="stop asking after so many tokens, such as 2M"
    )
    add_price_options(group)
    group.add_argument(
        "--strict", action="store_true", help="exit 3 if a window was left in input order or a query unfinished"
    )
    group.add_argument("--tag", default="rank-k", metavar="TEXT", help="last column of the new run")
    group.add_argument("--quiet", action="store_true", help="no progress, no summary")


def run(args: argparse.Namespace) -> int:
    from rank_k.data.collections.base import RunWithoutExcluded
    from rank_k.data.long_documents import SplitRun
    from rank_k.data.queries import read_queries
    from rank_k.data.trec import RunFile, RunWriter
    from rank_k.errors import InputError
    from rank_k.reranker import PAPER_SETTINGS, Reranker

    started = time.monotonic()
    options = reranker_options(args)  # mistakes in options come before work on files
    if args.simulate is not None and args.server is not None:
        raise InputError("--simulate and --server exclude each other", "leave one out")
    split = _passage_split(args)
    collection = resolve_collection(args)
    run_file = collection.find_run_file(args.run)
    journal = args.journal or args.output.with_name(args.output.name + ".journal.sqlite")
    inputs = (run_file, *collection.files, *filter(None, [args.simulate]))
    check_output("--output", args.output, inputs)
    check_output("--journal", journal, (*inputs, args.output))
    if args.report is not None:
        check_output("--report", args.report, (*inputs, args.output, journal))
    first_stage = RunFile(run_file)
    candidates = RunWithoutExcluded(first_stage, collection.excluded)
    queries = read_queries(collection.queries, args.query_fields)
    _check_queries(first_stage, queries, collection.queries)
    store = collection.corpus.store(index_progress(args.quiet))
    _check_documents(candidates, store, args.depth)
    passages = None if split is None else SplitRun(candidates, store, split, args.depth)
    if passages is not None:
        options["depth"] = sys.maxsize  # --depth counts documents
        options["passage_tokens"] = args.passage_tokens or PAPER_SETTINGS["passage_tokens"]  # shown as they are split
    model = args.model
    if args.simulate is not None:
        model = (simulated_model if passages is None else simulated_passage_model)(args.simulate, args.noise)
    settings = {key: value for key, value in vars(args).items() if key not in _NOT_SETTINGS}
    with closing(store), Reranker(model, journal=journal, **options) as reranker:
        settings["method"] = reranker.method
        settings |= reranker.effective_settings
        try:
            reranker.prepare()
            price = prices_for_model(args, reranker.model.name)
            reranker.check(queries[query_id] for query_id in first_stage.query_ids)
            name = reranker.journal.begin_run(settings)
            with RunWriter(args.output, args.tag) as writer, _progress(reranker, len(first_stage), args.quiet):
                results = reranker.rerank(
                    candidates if passages is None else passages,
                    queries,
                    store if passages is None else passages,
                    max_seconds=args.max_seconds,
                    token_budget=args.token_budget,
                    run_name=name,
                )
                rankings = ((result.query_id, result.ranking) for result in results)
                for query_id, ranking in rankings if passages is None else passages.document_rankings(rankings):
                    writer.write(query_id, ranking.doc_ids)
        except KeyboardInterrupt:
            print(
                f"\nstopped; every finished call is in {journal}: the same command goes on from there", file=sys.stderr
            )
            return 130
        stats = reranker.stats
        if first_stage.duplicate_count:
            stats.repairs["duplicates"] = first_stage.duplicate_count
        if excluded_count := candidates.count_excluded():
            stats.repairs["excluded"] = excluded_count
        return _finish(args, reranker, price, time.monotonic() - started, settings)


_NOT_SETTINGS = frozenset(
    "verb quiet strict report concurrency api_key_env read_timeout max_seconds token_budget price_in price_out"
    " price_file".split()
)
"""Options that do not change what is asked: with others of them, it is the same run."""


def _progress(reranker: Reranker, total: int, quiet: bool) -> Any:
    from rank_k.cli.progress import show_progress

    return show_progress(quiet)(lambda: reranker.stats, total)


def _finish(
    args: argparse.Namespace, reranker: Reranker, price: Prices | None, seconds: float, settings: dict[str, Any]
) -> int:
    from rank_k.cli.render import rerank_summary

    stats = reranker.stats
    if not args.quiet:
        print("\n".join(rerank_summary.lines(stats, seconds, price, reranker.method)), file=sys.stderr)
    if args.report is not None:
        report = rerank_summary.report(stats, seconds, settings, price)
        run = reranker.journal.begin_run(settings)
        with args.report.open("w", encoding="utf-8") as file:
            rerank_summary.write_report(file, report, reranker.journal.query_costs(run))
    return 3 if args.strict and (stats.unranked_windows or stats.unfinished) else 0


def token_count(text: str) -> int:
    """500, 20k, 2M"""
    factor = {"k": 10**3, "m": 10**6, "g": 10**9}.get(text[-1:].lower(), 1)
    number = float(text if factor == 1 else text[:-1])
    if not 1 <= number * factor < 2**62:
        raise ValueError
    return int(number * factor)


def _check_queries(first_stage: RunFile, queries: Mapping[str, Query], file: Path) -> None:
    from rank_k.errors import InputError

    missing_ids = [query_id for query_id in first_stage.query_ids if query_id not in queries]
    if missing_ids:
        examples = ", ".join(missing_ids[:3])
        raise InputError(
            f"{len(missing_ids)} of the run's {len(first_stage)} queries are not in {file}, for one {examples}",
            "give the queries that belong to the run",
        )


def _passage_split(args: argparse.Namespace) -> PassageSplit | None:
    """How long documents are to be cut. Raises `InputError` for numbers that do not go together."""
    from rank_k.data.long_documents import PassageSplit
    from rank_k.errors import InputError
    from rank_k.reranker import PAPER_SETTINGS

    if args.maxp_tokens is None:
        for option, value in (("--maxp-overlap", args.maxp_overlap), ("--maxp-passages", args.maxp_passages)):
            if value is not None:
                raise InputError(f"{option} says how to split documents", "give --maxp-tokens TOKENS too")
        return None
    passage_tokens = args.passage_tokens or PAPER_SETTINGS["passage_tokens"]
    if args.maxp_tokens > passage_tokens:
        problem = (
            f"passages of --maxp-tokens {args.maxp_tokens} would be cut again to --passage-tokens {passage_tokens}"
        )
        raise InputError(problem, "lower the one or raise the other")
    return PassageSplit(args.maxp_tokens, args.maxp_overlap or 0, args.maxp_passages)


def _check_documents(run: Iterable[tuple[str, Sequence[Candidate]]], store: DocumentStore, depth: int) -> None:
    """Every text is there: found out before the first call is paid."""
    for query_id, candidates in run:
        for candidate in candidates[:depth]:
            store.get(candidate.doc_id, query_id)
