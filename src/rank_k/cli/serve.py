"""`rank-k serve`: serve rerank APIs over HTTP, and a web page that shows rankings, journals and runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rank_k.cli import evaluate
from rank_k.cli.collection_options import RequestedCollection, add_collection_options
from rank_k.cli.common_flags import add_flags, positive_int, reject_flags
from rank_k.cli.file_checks import check_outputs, open_journal
from rank_k.cli.model_options import add_ranking_options, add_server_options
from rank_k.cli.server_options import access_config, add_server_arguments, open_service, serve_app
from rank_k.data.queries import read_queries, read_translations
from rank_k.data.trec import RunFile, read_qrels
from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.server.app import make_app
from rank_k.server.http_io import RouteGroup
from rank_k.server.judging import JudgingRoutes, PreferencesFile, pairwise_items, system_names
from rank_k.server.report_routes import report_routes
from rank_k.server.web_pages import PAGES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    add_ranking_options(parser)
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="with --server or --model: file that stores every call (default: a temporary file for the latest 256 MB);"
        " without them: journal of a finished or running command, which the page Runs shows and which is not changed",
    )
    group = parser.add_argument_group("pages Compare and Judge", "show runs from files; see docs/how-to/judging.md")
    group.add_argument(
        "--compare", nargs="+", type=Path, metavar="RUN", help="TREC runs to compare, the baseline first"
    )
    add_flags(group, "--qrels")
    group.add_argument(
        "--preferences-file",
        type=Path,
        metavar="FILE",
        help="file to which the page Judge appends preference judgments, as JSONL",
    )
    group.add_argument(
        "--judging-depth",
        type=positive_int,
        default=10,
        metavar="N",
        help="number of passages of each ranking that the page Judge shows",
    )
    group.add_argument(
        "--translation-field",
        default="ht",
        metavar="NAME",
        help="field of the queries with a translation, which the page Judge shows",
    )
    add_collection_options(parser)
    add_server_arguments(parser, "serve", "address and access control")


def run(args: argparse.Namespace) -> int:
    access = access_config(args)
    files_to_show = [args.journal] if args.journal else args.compare
    view_only = args.server is None and args.model is None and files_to_show is not None
    if view_only and args.journal is not None:
        open_journal(args.journal, "give --server or --model to store calls in a new journal").close()
    with _route_groups(args) as route_groups, open_service(args, access, view_only=view_only) as service:
        description = f"{service.model or 'the model'} ({service.method})"
        if view_only:
            description = ", ".join(map(str, files_to_show))
        description += ": web page" if view_only else ": web page and API"
        serve_app(args, service, make_app(service, access, route_groups), access.host, description)
    print("rank-k serve: stopped", file=sys.stderr)
    return 0


@contextmanager
def _route_groups(args: argparse.Namespace) -> Iterator[list[RouteGroup]]:
    """Yield the routes of the pages for --compare, and close their files on exit. Without --compare, there are none.

    Raises:
        InputError: If options contradict each other, or a file cannot be used.
    """
    if args.compare is None:
        run_options = ("qrels", "preferences_file", "dataset", "queries", "documents")
        reject_flags(args, run_options, "{flag} has no effect without runs", "give runs with --compare RUN RUN")
        yield []
        return
    paths = [run.resolve() for run in args.compare]
    for run, path in zip(args.compare, paths, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"--compare contains {run} twice", "give each run once")
    with ExitStack() as stack:
        groups = [group for group in (_report_routes(args), _judging_routes(args, stack)) if group is not None]
        if not groups:
            raise InputError(
                "the runs cannot be compared without judgments",
                "give --qrels FILE for the page Compare, or --preferences-file FILE for the page Judge",
            )
        yield groups


def _report_routes(args: argparse.Namespace) -> RouteGroup | None:
    """Return the routes of the report that `rank-k evaluate` creates for the same runs; None without qrels."""
    if (qrels := RequestedCollection(args).find_file("qrels")) is None:
        return None
    load("jinja2")  # errors are reported now, not at the first request
    read_qrels(qrels)
    for run in args.compare:
        RunFile(run)
    if args.queries is not None:
        read_queries(args.queries)
    command = ["rank-k", "evaluate", *map(str, args.compare)]
    baseline = args.compare[0] if len(args.compare) > 1 else None
    for name, value in (
        ("qrels", args.qrels),
        ("dataset", args.dataset),
        ("baseline", baseline),
        ("queries", args.queries),
    ):
        if value is not None:
            command += [f"--{name}", str(value)]
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    arguments = parser.parse_args(command[2:], argparse.Namespace(command_line=shlex.join(command)))
    pages = {path: title for path, title in PAGES.items() if path != "/judge" or args.preferences_file is not None}
    links = [(path, title, path == "/compare") for path, title in pages.items()]
    return report_routes(lambda: evaluate.report_page(arguments, links))


def _judging_routes(args: argparse.Namespace, stack: ExitStack) -> RouteGroup | None:
    if args.preferences_file is None:
        return None
    if len(args.compare) < 2:
        raise InputError("a single run cannot be judged", "give two or more runs with --compare")
    collection = RequestedCollection(args)
    check_outputs({"--preferences-file": args.preferences_file}, (*args.compare, *collection.files, args.qrels))
    names = system_names([*map(str, args.compare)])
    runs = evaluate.read_runs({name: Path(path) for path, name in names.items()}, collection)
    translations = read_translations(collection.queries, args.translation_field)
    pairs = pairwise_items(read_queries(collection.queries), translations, runs, args.judging_depth)
    counts = {
        f"pairs left out because both runs have the same first {args.judging_depth} passages": pairs.identical,
        "pairs left out because a run does not contain the query": pairs.missing,
    }
    for description, query_count in counts.items():
        if query_count:
            print(f"rank-k serve: {description}: {query_count}", file=sys.stderr)
    if not pairs.items:
        raise InputError(
            "there is no query to judge", f"check that the runs contain the queries of {collection.queries}"
        )
    store = collection.open_store()
    stack.callback(store.close)
    for pair in pairs.items:
        for doc_id in {doc_id for ranking in pair.rankings for doc_id in ranking}:
            store.get(doc_id, pair.query.query_id)
    file = PreferencesFile(args.preferences_file)
    stack.callback(file.close)
    return JudgingRoutes(pairs, store, file).route_group()
