"""`rank-k serve`: the model behind the API that retrieval systems know, and a page to look at what it does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from rank_k.cli import evaluate
from rank_k.cli.collection_options import RequestedCollection, add_collection_options
from rank_k.cli.model_options import add_ranking_options, add_server_options, positive_int
from rank_k.cli.output_files import check_outputs
from rank_k.cli.server_options import access_config, add_server_arguments, open_service
from rank_k.data.queries import read_queries, read_translations
from rank_k.data.trec import RunFile, read_qrels
from rank_k.errors import InputError
from rank_k.journal import Journal
from rank_k.optional_deps import load
from rank_k.server.app import make_app
from rank_k.server.http_io import RouteGroup
from rank_k.server.judging import JudgingRoutes, PreferencesFile, pairwise_items, system_names
from rank_k.server.report_routes import report_routes
from rank_k.server.run import serve
from rank_k.server.web_pages import PAGES

EXAMPLE = "rank-k serve --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B --journal served.sqlite"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    add_ranking_options(parser)
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="with --server or --model, where calls are kept (a temporary one, of the latest 256 MB); with neither, a"
        " journal to look at, which is not written to: that of a finished or a running job",
    )
    group = parser.add_argument_group("pages Compare and Judge", "of runs that lie on disk; see docs/how-to/judging.md")
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
    group.add_argument(
        "--translation-field",
        default="ht",
        metavar="NAME",
        help="field of a query that holds its translation, shown in Judge",
    )
    add_collection_options(parser)
    add_server_arguments(parser, 8787, "who may ask")


def run(args: argparse.Namespace) -> int:
    access = access_config(args)
    shown_files = [args.journal] if args.journal else args.compare
    view_only = args.server is None and args.model is None and shown_files is not None
    if view_only and args.journal is not None:
        _check_journal(args.journal)
    with _route_groups(args) as route_groups, open_service(args, access, view_only=view_only) as service:
        method = "comparison and likelihood" if service.method == "combined" else service.method
        description = f"{service.model or 'the model'}, by {method},"
        if view_only:
            description = ", ".join(map(str, shown_files))
        app = make_app(service, access, route_groups)
        serve(
            service, app, access.host, args.port, lambda url: print(f"rank-k serve: {description} at {url}", flush=True)
        )
    print("rank-k serve: stopped", file=sys.stderr)
    return 0


def _check_journal(file: Path) -> None:
    if not file.is_file():
        raise InputError(
            f"there is no journal {file}", "name a model (--server or --model) whose calls are to be kept there"
        )
    with closing(Journal(file, read_only=True)):
        pass


@contextmanager
def _route_groups(args: argparse.Namespace) -> Iterator[list[RouteGroup]]:
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
    if (qrels := RequestedCollection(args).find_file("qrels")) is None:
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
    collection = RequestedCollection(args)
    check_outputs({"--preferences-file": args.preferences_file}, (*args.compare, *collection.files, args.qrels))
    names = system_names([*map(str, args.compare)])
    runs = evaluate.read_runs({name: Path(path) for path, name in names.items()}, collection)
    translations = read_translations(collection.queries, args.translation_field)
    pairs = pairwise_items(read_queries(collection.queries), translations, runs, args.judging_depth)
    counts = {
        f"queries with the same first {args.judging_depth} in two runs, ties that are not asked about": pairs.identical,
        "queries that a run has nothing for": pairs.missing,
    }
    for description, query_count in counts.items():
        if query_count:
            print(f"rank-k serve: {description}: {query_count}", file=sys.stderr)
    if not pairs.items:
        raise InputError(
            "there is no query to judge", f"look whether the runs have the queries of {collection.queries}"
        )
    store = collection.open_store()
    stack.callback(store.close)
    for pair in pairs.items:
        for doc_id in {doc_id for ranking in pair.rankings for doc_id in ranking}:
            store.get(doc_id, pair.query.query_id)
    file = PreferencesFile(args.preferences_file)
    stack.callback(file.close)
    return JudgingRoutes(pairs, store, file).route_group()
