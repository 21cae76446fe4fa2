"""The options of `rank-k serve` for runs that are compared by measures, or judged by people, and what they bring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rank_k.cli import evaluate
from rank_k.cli.collection_options import (
    add_collection_options,
    find_named_collection,
    index_progress,
    resolve_collection,
)
from rank_k.cli.model_options import positive_int
from rank_k.cli.output_files import check_output
from rank_k.data.queries import read_queries, read_translations
from rank_k.data.trec import RunFile, read_qrels
from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.server.http_io import RouteGroup
from rank_k.server.judging import JudgingRoutes, PreferencesFile, pairwise_items, system_names
from rank_k.server.report_routes import report_routes
from rank_k.server.web_pages import PAGES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pages Compare and Judge", "of runs that lie on disk; see docs/judging.md")
    group.add_argument("--compare", nargs="+", type=Path, metavar="RUN", help="TREC runs, the baseline first")
    group.add_argument("--qrels", type=Path, metavar="FILE", help="judgments, for Compare (the data set's)")
    group.add_argument(
        "--preferences-file",
        type=Path,
        metavar="FILE",
        help="JSONL: for Judge, where it keeps what people say, and goes on",
    )
    group.add_argument(
        "--judging-depth", type=positive_int, default=10, metavar="N", help="passages of each ranking, in Judge"
    )
    translation_help = "field of a query that holds its translation, shown in Judge"
    group.add_argument("--translation-field", default="ht", metavar="NAME", help=translation_help)
    add_collection_options(parser)


@contextmanager
def route_groups(args: argparse.Namespace) -> Iterator[list[RouteGroup]]:
    """Open what --compare asks for; close it on exit. Without --compare, this is nothing.

    Raises:
        InputError: If options contradict each other, or a file cannot be used.
    """
    if args.compare is None:
        for name in ("qrels", "preferences_file", "dataset", "queries", "documents"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is for runs to look at", "name them with --compare RUN RUN")
        yield []
        return
    paths = [run.resolve() for run in args.compare]
    for run, path in zip(args.compare, paths, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"--compare names {run} twice", "name each run once")
    with ExitStack() as stack:
        groups = [group for group in (_report_routes(args), _judging_routes(args, stack)) if group is not None]
        if not groups:
            raise InputError(
                "there is nothing to compare the runs by",
                "give --qrels FILE for the page Compare, --preferences-file FILE for the page Judge, or both",
            )
        yield groups


def _report_routes(args: argparse.Namespace) -> RouteGroup | None:
    """Return the routes of the report that `rank-k evaluate` makes of the same runs; None without qrels."""
    dataset = find_named_collection(args.dataset) if args.dataset else None
    qrels = args.qrels or (None if dataset is None else dataset.qrels)
    if qrels is None:
        return None
    load("jinja2")  # what is missing, and mistakes in files, are found now rather than at the first request
    read_qrels(qrels)
    for run in args.compare:
        RunFile(run)
    if args.queries is not None:
        read_queries(args.queries)
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    given = {name: getattr(args, name) for name in ("qrels", "dataset", "queries")}
    baseline = args.compare[0] if len(args.compare) > 1 else None
    arguments = parser.parse_args([*map(str, args.compare)], argparse.Namespace(**given, baseline=baseline))
    links = [(path, title, path == "/compare") for path, title in PAGES.items()]
    return report_routes(lambda: evaluate.report_page(arguments, links))


def _judging_routes(args: argparse.Namespace, stack: ExitStack) -> RouteGroup | None:
    if args.preferences_file is None:
        return None
    if len(args.compare) < 2:
        raise InputError("one run has nothing to be judged against", "name another with --compare")
    resolved = resolve_collection(args)
    input_files = (*args.compare, *resolved.files, *([args.qrels] if args.qrels else []))
    check_output("--preferences-file", args.preferences_file, input_files)
    names = system_names([*map(str, args.compare)])
    runs = evaluate.read_runs({name: Path(path) for path, name in names.items()}, resolved.collection, args.dataset)
    translations = read_translations(resolved.queries, args.translation_field)
    pairs = pairwise_items(read_queries(resolved.queries), translations, runs, args.judging_depth)
    counts = {
        f"queries with the same first {args.judging_depth} in two runs, ties that are not asked about": pairs.identical,
        "queries that a run has nothing for": pairs.missing,
    }
    for description, query_count in counts.items():
        if query_count:
            print(f"rank-k serve: {description}: {query_count}", file=sys.stderr)
    if not pairs.items:
        raise InputError("there is no query to judge", f"look whether the runs have the queries of {resolved.queries}")
    store = resolved.corpus.store(index_progress(False))
    stack.callback(store.close)
    for pair in pairs.items:
        for doc_id in {doc_id for ranking in pair.rankings for doc_id in ranking}:
            store.get(doc_id, pair.query.query_id)
    file = PreferencesFile(args.preferences_file)
    stack.callback(file.close)
    return JudgingRoutes(pairs, store, file).route_group()
