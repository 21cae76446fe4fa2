"""The options of `rank-k serve` for runs that are compared by measures, or judged by people, and what they bring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rank_k.cli import evaluate
from rank_k.cli.collection_options import add_collection, find_named_collection, index_progress, resolve_collection
from rank_k.cli.model_options import count
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
        "--judging-depth", type=count, default=10, metavar="N", help="passages of each ranking, in Judge"
    )
    told = "field of a query that holds its translation, shown in Judge"
    group.add_argument("--translation-field", default="ht", metavar="NAME", help=told)
    add_collection(parser)


@contextmanager
def route_groups(args: argparse.Namespace) -> Iterator[list[RouteGroup]]:
    """What --compare asks for, as long as the context is open. Empty without it. Raises `InputError`."""
    from rank_k.errors import InputError

    needing = ("qrels", "preferences_file", "dataset", "queries", "documents")
    if args.compare is None:
        if given := [f"--{name.replace('_', '-')}" for name in needing if getattr(args, name) is not None]:
            raise InputError(f"{given[0]} is for runs to look at", "name them with --compare RUN RUN")
        yield []
        return
    for number, run in enumerate(args.compare):
        if run.resolve() in {other.resolve() for other in args.compare[:number]}:
            raise InputError(f"--compare names {run} twice", "name each run once")
    with ExitStack() as stack:
        found = [room for room in (_comparing(args), _judging(args, stack)) if room is not None]
        if not found:
            raise InputError(
                "there is nothing to compare the runs by",
                "give --qrels FILE for the page Compare, --preferences-file FILE for the page Judge, or both",
            )
        yield found


def _comparing(args: argparse.Namespace) -> RouteGroup | None:
    """The report that `rank-k evaluate` makes of the same arguments; None where nothing has been judged."""
    from rank_k.data.queries import read_queries
    from rank_k.data.trec import RunFile, read_qrels
    from rank_k.optional_deps import load
    from rank_k.server.report_routes import ReportRoutes
    from rank_k.server.web_pages import PAGES

    dataset = find_named_collection(args.dataset) if args.dataset else None
    judged = args.qrels or (None if dataset is None else dataset.qrels)
    if judged is None:
        return None
    load("jinja2")  # what is missing, and mistakes in files, are found now rather than when somebody looks
    read_qrels(judged)
    for run in args.compare:
        RunFile(run)
    if args.queries is not None:
        read_queries(args.queries)
    words = [*map(str, args.compare), *(["--baseline", str(args.compare[0])] if len(args.compare) > 1 else [])]
    for option in ("qrels", "dataset", "queries"):
        if (value := getattr(args, option)) is not None:
            words += [f"--{option}", str(value)]
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    arguments = parser.parse_args(words)
    links = [(page.path, page.title, page.path == "/compare") for page in PAGES]
    return ReportRoutes(lambda: evaluate.report_page(arguments, links))


def _judging(args: argparse.Namespace, stack: ExitStack) -> RouteGroup | None:
    from rank_k.errors import InputError
    from rank_k.server.judging_routes import JudgingRoutes
    from rank_k.server.preferences_file import PreferencesFile

    if args.preferences_file is None:
        return None
    if len(args.compare) < 2:
        raise InputError("one run has nothing to be judged against", "name another with --compare")
    named = resolve_collection(args)
    read = (*args.compare, *named.files, *([args.qrels] if args.qrels else []))
    check_output("--preferences-file", args.preferences_file, read)
    asked = _questions(args)
    store = named.corpus.store(index_progress(False))
    stack.callback(store.close)
    for question in asked.asked:
        for doc_id in {doc_id for ranking in question.rankings for doc_id in ranking}:
            store.get(doc_id, question.query.query_id)
    file = PreferencesFile(args.preferences_file)
    stack.callback(file.close)
    return JudgingRoutes(asked, store, file)


def _questions(args: argparse.Namespace) -> PairwiseItems:
    from rank_k.data.queries import read_queries, read_translations
    from rank_k.errors import InputError
    from rank_k.server.judging_session import file_names, pairwise_items

    named = resolve_collection(args)
    names = file_names([*map(str, args.compare)])
    runs = evaluate.read_runs({name: Path(path) for path, name in names.items()}, named.collection, args.dataset)
    translations = read_translations(named.queries, args.translation_field)
    asked = pairwise_items(read_queries(named.queries), translations, runs, args.judging_depth)
    told = {
        f"queries with the same first {args.judging_depth} in two runs, ties that are not asked about": asked.identical,
        "queries that a run has nothing for": asked.lacking,
    }
    for what, number in told.items():
        if number:
            print(f"rank-k serve: {what}: {number}", file=sys.stderr)
    if not asked.asked:
        raise InputError("there is no query to judge", f"look whether the runs have the queries of {named.queries}")
    return asked
