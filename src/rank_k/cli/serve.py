"""`rank-k serve`: the model behind the API that retrieval systems know, and a page to look at what it does."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

from rank_k.cli import page_options
from rank_k.cli.model_options import add_ranking_options, add_server_options
from rank_k.cli.server_options import access_config, add_server_arguments, open_service
from rank_k.errors import InputError
from rank_k.journal import Journal
from rank_k.server.app import make_app
from rank_k.server.run import serve

NAME = "serve"
EXAMPLE = "rank-k serve --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B --journal served.sqlite"

_JOURNAL = (
    "with --server or --model, where calls are kept (a temporary one, of the latest 256 MB); with neither, a journal to"
    " look at, which is not written to: that of a finished or a running job"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    add_ranking_options(parser)
    parser.add_argument("--journal", type=Path, metavar="FILE", help=_JOURNAL)
    page_options.add_arguments(parser)
    add_server_arguments(parser, 8787, "who may ask")


def run(args: argparse.Namespace) -> int:
    access = access_config(args)
    shown_files = [args.journal] if args.journal else args.compare
    view_only = args.server is None and args.model is None and shown_files is not None
    if view_only and args.journal is not None:
        _check_journal(args.journal)
    with page_options.route_groups(args) as route_groups, open_service(args, access, view_only=view_only) as service:
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
