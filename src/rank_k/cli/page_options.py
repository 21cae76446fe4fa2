"""The options of `rank-k serve` for runs that are compared by measures, or judged by people, and what they bring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rank_k.cli import evaluate
from rank_k.cli.collection_options import (
    add_collection_options,
    find_named_collection,
    index_progress,
    resolve_collection,
)
from rank_k.cli.model_options import positive_int
from rank_k.cli.output_files import check_output

if TYPE_CHECKING:
    from rank_k.server.app import RouteGroup
    from rank_k.server.judging_session import PairwiseItems


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
    """What --compare asks for, as long as the context is open. Empty without it. Raises `InputError`."""
    from rank_k.errors import InputError

    option_names = ("qrels", "preferences_file", "dataset", "queries", "documents")
    if args.compare is None:
        if given_options := [f"--{name.replace('_', '-')}" for name in option_names if getattr(args, name) is not None]:
            raise InputError(f"{given_options[0]} is for runs to look at", "name them with --compare RUN RUN")
        yield []
        return
    for number, run in enumerate(args.compare):
        if run.resolve() in {earlier_run.resolve() for earlier_run in args.compare[:number]}:
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
    """The report that `rank-k evaluate` makes of the same arguments; None where nothing has been judged."""
    from rank_k.data.queries import read_queries
    from rank_k.data.trec import RunFile, read_qrels
    from rank_k.optional_deps import load
    from rank_k.server.report_routes import ReportRoutes
    from rank_k.server.web_pages import PAGES

    dataset = find_named_collection(args.dataset) if args.dataset else None
    qrels = args.qrels or (None if dataset is None else dataset.qrels)
    if qrels is None:
        return None
    load("jinja2")  # what is missing, and mistakes in files, are found now rather than when somebody looks
    read_qrels(qrels)
    for run in args.compare:
        RunFile(run)
    if args.queries is not None:
        read_queries(args.queries)
    argv = [*map(str, args.compare), *(["--baseline", str(args.compare[0])] if len(args.compare) > 1 else [])]
    for option in ("qrels", "dataset", "queries"):
        if (value := getattr(args, option)) is not None:
            argv += [f"--{option}", str(value)]
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    arguments = parser.parse_args(argv)
    links = [(page.path, page.title, page.path == "/compare") for page in PAGES]
    return ReportRoutes(lambda: evaluate.report_page(arguments, links))


def _judging_routes(args: argparse.Namespace, stack: ExitStack) -> RouteGroup | None:
    from rank_k.errors import InputError
    from rank_k.server.judging_routes import JudgingRoutes
    from rank_k.server.preferences_file import PreferencesFile

    if args.preferences_file is None:
        return None
    if len(args.compare) < 2:
        raise InputError("one run has nothing to be judged against", "name another with --compare")
    resolved = resolve_collection(args)
    input_files = (*args.compare, *resolved.files, *([args.qrels] if args.qrels else []))
    check_output("--preferences-file", args.preferences_file, input_files)
    pairs = _make_pairwise_items(args)
    store = resolved.corpus.store(index_progress(False))
    stack.callback(store.close)
    for pair in pairs.items:
        for doc_id in {doc_id for ranking in pair.rankings for doc_id in ranking}:
            store.get(doc_id, pair.query.query_id)
    file = PreferencesFile(args.preferences_file)
    stack.callback(file.close)
    return JudgingRoutes(pairs, store, file)


def _make_pairwise_items(args: argparse.Namespace) -> PairwiseItems:
    from rank_k.data.queries import read_queries, read_translations
    from rank_k.errors import InputError
    from rank_k.server.judging_session import pairwise_items, system_names

    resolved = resolve_collection(args)
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
    return pairs
