"""`rank-k mcp`: serve reranking as a tool, with the Model Context Protocol."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from rank_k.cli.common_flags import reject_flags
from rank_k.cli.model_options import add_ranking_options, add_server_options
from rank_k.cli.server_options import access_config, add_server_arguments, open_service, serve_app
from rank_k.optional_deps import load
from rank_k.server.mcp import PATH, make_mcp_app, serve_stdio

_HTTP_OPTIONS = (
    *("host", "port", "client_key_env", "insecure", "allow_host", "allow_origin"),
    *("per_client", "max_body", "shutdown_timeout"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--http", action="store_true", help="serve over HTTP instead of over standard input and output")
    add_server_options(parser)
    add_ranking_options(parser)
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="file that stores every call (default: a temporary file)"
    )
    add_server_arguments(parser, "mcp", "address and access control, with --http")


def run(args: argparse.Namespace) -> int:
    logging.getLogger().addHandler(logging.NullHandler())  # log messages of the SDK contain what clients send
    access = access_config(args) if args.http else None
    if access is None:
        reject_flags(args, _HTTP_OPTIONS, "{flag} has no effect without --http", "add --http, or leave it out")
    load("mcp")  # a missing package is reported before a model is started
    with open_service(args, access) as service:
        model = service.model or "the model"
        if access is None:
            print(f"rank-k mcp: {model} on standard input and output", file=sys.stderr)
            serve_stdio(service)
        else:
            serve_app(args, service, make_mcp_app(service, access), access.host, model, PATH)
    print("rank-k mcp: stopped", file=sys.stderr)
    return 0
