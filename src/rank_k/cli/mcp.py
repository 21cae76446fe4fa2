"""`rank-k mcp`: the model as a tool of programs that speak the Model Context Protocol."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from rank_k.cli.model_options import add_ranking_options, add_server_options
from rank_k.cli.serve import access_config, add_access_options, add_limits, open_service
from rank_k.optional_deps import load

NAME = "mcp"
HELP = "offer reranking as a tool to assistants and agents, over the Model Context Protocol"
EXAMPLE = "rank-k mcp --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B --journal asked.sqlite"

_DEFAULT_PORT = 8788
_HTTP_OPTIONS = (
    *("host", "port", "client_key_env", "insecure", "allow_host", "allow_origin"),
    *("per_client", "max_body", "shutdown_timeout"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--http", action="store_true", help="listen at an address; without it, answer on stdout")
    add_server_options(parser)
    add_ranking_options(parser)
    parser.add_argument("--journal", type=Path, metavar="FILE", help="keeps every call (a temporary one)")
    add_access_options(parser, _DEFAULT_PORT, "who may ask (with --http)")
    add_limits(parser)


def run(args: argparse.Namespace) -> int:
    logging.getLogger().addHandler(logging.NullHandler())  # the SDK's own words quote what clients send
    if args.http:
        _serve_http(args)
    else:
        _serve_stdio(args)
    print("rank-k mcp: stopped", file=sys.stderr)
    return 0


def _serve_http(args: argparse.Namespace) -> None:
    from rank_k.server.mcp_http import PATH, make_mcp_app
    from rank_k.server.run import serve

    access = access_config(args)
    load("mcp")  # or hear that it is not there, before a model is started
    with open_service(args, access) as service:

        def print_address(url: str) -> None:
            print(f"rank-k mcp: {service.model or 'the model'} at {url}{PATH}", flush=True)

        serve(service, access, args.port, print_address, make_mcp_app(service, access))


def _serve_stdio(args: argparse.Namespace) -> None:
    from rank_k.server.mcp_stdio import serve_stdio

    _check_stdio_options(args)
    load("mcp")
    with open_service(args) as service:
        print(f"rank-k mcp: {service.model or 'the model'} on standard input and output", file=sys.stderr)
        serve_stdio(service)


def _check_stdio_options(args: argparse.Namespace) -> None:
    """Raise `InputError` for an option that would be without effect."""
    from rank_k.errors import InputError

    parser = argparse.ArgumentParser()
    add_access_options(parser, _DEFAULT_PORT)
    add_limits(parser)
    for name in _HTTP_OPTIONS:
        if getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name.replace('_', '-')} goes with --http", "add --http, or leave it out")
