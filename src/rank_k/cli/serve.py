"""`rank-k serve`: the model behind the API that retrieval systems know, and a page to look at what it does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rank_k.cli import page_options
from rank_k.cli.model_options import (
    add_ranking_options,
    add_server_options,
    key_from_environment,
    positive_int,
    positive_seconds,
    reranker_options,
)

if TYPE_CHECKING:
    from rank_k.reranker import Reranker
    from rank_k.server.config import AccessConfig, Limits
    from rank_k.server.service import RerankService

NAME = "serve"
HELP = "answer rerank requests over HTTP, as Cohere's, Jina's and other APIs do, and look at journals"
HOST_VARIABLE, CLIENT_KEYS_VARIABLE = "RANK_K_HOST", "RANK_K_CLIENT_KEYS"
"""Variables that stand for --host and --client-key-env where these are not given, as in a container."""
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
    add_access_options(parser, 8787)
    add_limits(parser)


def add_access_options(parser: argparse.ArgumentParser, default_port: int, title: str = "who may ask") -> None:
    """The address listened on, and who is let in there."""
    group = parser.add_argument_group(title)
    group.add_argument("--host", metavar="ADDRESS", help=f"listen on this address ({HOST_VARIABLE}, or else 127.0.0.1)")
    group.add_argument("--port", type=port, default=default_port, metavar="N", help="0 takes a free one")
    key_help = (
        f"variable with the key that clients must show, or several keys with commas between ({CLIENT_KEYS_VARIABLE})"
    )
    group.add_argument("--client-key-env", metavar="NAME", help=key_help)
    group.add_argument("--insecure", action="store_true", help="no key, though other machines can reach the address")
    group.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name of this server")
    group.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="pages that may ask")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """How much may be asked for, and how patiently."""
    limits = parser.add_argument_group("limits")
    limits.add_argument("--queue", type=positive_int, default=64, metavar="N", help="requests that may wait")
    limits.add_argument(
        "--per-client", type=positive_int, default=8, metavar="N", help="requests of a client worked on at once"
    )
    limits.add_argument("--max-documents", type=positive_int, default=1000, metavar="N", help="of a request")
    limits.add_argument(
        "--max-characters", type=positive_int, default=4_000_000, metavar="N", help="of query and documents together"
    )
    limits.add_argument("--max-body", type=positive_int, default=16 * 2**20, metavar="BYTES", help="of a request")
    limits.add_argument(
        "--deadline",
        type=positive_seconds,
        metavar="S",
        help="the best ranking so far after S, if a request names no deadline",
    )
    limits.add_argument(
        "--shutdown-timeout", type=positive_seconds, default=30.0, metavar="S", help="to finish in when told to stop"
    )


def run(args: argparse.Namespace) -> int:
    from rank_k.server.app import make_app
    from rank_k.server.run import serve

    access = access_config(args)
    view_only = args.server is None and args.model is None and (args.journal is not None or args.compare is not None)
    if view_only and args.journal is not None:
        _check_journal(args.journal)
    with ExitStack() as stack:
        route_groups = stack.enter_context(page_options.route_groups(args))
        service = stack.enter_context(open_service(args, access, view_only=view_only))
        method = "comparison and likelihood" if service.method == "combined" else service.method
        model_description = f"{service.model or 'the model'}, by {method},"
        description = (
            ", ".join(map(str, [args.journal] if args.journal else args.compare)) if view_only else model_description
        )
        serve(
            service,
            access,
            args.port,
            lambda url: print(f"rank-k serve: {description} at {url}", flush=True),
            make_app(service, access, route_groups),
        )
    print("rank-k serve: stopped", file=sys.stderr)
    return 0


def _check_journal(file: Path) -> None:
    from rank_k.errors import InputError
    from rank_k.journal import Journal

    if not file.is_file():
        raise InputError(
            f"there is no journal {file}", "name a model (--server or --model) whose calls are to be kept there"
        )
    with closing(Journal(file, read_only=True)):
        pass


@contextmanager
def open_service(
    args: argparse.Namespace, access: AccessConfig | None = None, *, view_only: bool = False
) -> Iterator[RerankService]:
    """Open the service for a reranker with the given options; close it on exit.

    `access`: who may send requests, or None if there is one client. `view_only`: only the journal is needed, and it is
    only read; a model, if there is one, starts with the first request.
    """
    from rank_k.errors import MissingWeights
    from rank_k.models.retry import RetryPolicy
    from rank_k.reranker import Reranker
    from rank_k.server.service import RerankService

    options = reranker_options(args)
    if access is not None:
        _check_keys(access.keys, options["api_key"])
    with ExitStack() as stack:
        reranker, journal = None, None if view_only else args.journal
        try:
            # Fewer tries than a run has: somebody is waiting.
            opened_reranker = Reranker(
                args.model, journal=journal, retries=RetryPolicy(overloaded=6, broken=3), **options
            )
        except MissingWeights as error:
            if not view_only:
                raise
            print(f"rank-k {args.verb}: {error.problem}: nothing can be ranked", file=sys.stderr)
        else:
            reranker = stack.enter_context(opened_reranker)
            if not view_only:
                _prepare(reranker, args.verb)
        limits = _limits(args, reranker.options.concurrency or 1 if reranker else 1)
        if access is None:
            limits = replace(limits, per_client=limits.max_concurrent)
        yield RerankService(
            reranker, limits, partial(_print_error, args.verb), journal=args.journal if view_only else None
        )


def port(text: str) -> int:
    """A port, for argparse."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, which goes from 0 to 65535")
    return int(text)


def access_config(args: argparse.Namespace) -> AccessConfig:
    """Return the access rules that the options of `add_access_options` describe.

    Raises `InputError` if they admit everybody.
    """
    from rank_k.errors import InputError
    from rank_k.server.config import AccessConfig, check_access

    keys: tuple[str, ...] = ()
    variable = args.client_key_env or (CLIENT_KEYS_VARIABLE if os.environ.get(CLIENT_KEYS_VARIABLE) else None)
    if variable is not None:
        keys = tuple(
            filter(None, (key.strip() for key in (key_from_environment(variable, "--client-key-env") or "").split(",")))
        )
        if not keys:
            raise InputError(f"the variable {variable} holds no key", "give it one")
    host = args.host or os.environ.get(HOST_VARIABLE) or "127.0.0.1"
    access = AccessConfig(host, keys, frozenset(args.allow_host), frozenset(args.allow_origin))
    check_access(access, insecure=args.insecure)
    return access


def _limits(args: argparse.Namespace, concurrency: int) -> Limits:
    from rank_k.server.config import Limits

    return Limits(
        max_concurrent=concurrency,
        queue=args.queue,
        per_client=args.per_client,
        max_documents=args.max_documents,
        max_characters=args.max_characters,
        max_body=args.max_body,
        shutdown_timeout=args.shutdown_timeout,
        deadline=args.deadline,
    )


def _check_keys(keys: tuple[str, ...], model_key: str | None) -> None:
    from rank_k.errors import InputError

    if model_key in keys:
        raise InputError(
            "the key that clients must show is the one for the model's server",
            "give clients a key of their own with --client-key-env; the model's is --api-key-env",
        )


def _prepare(reranker: Reranker, verb: str) -> None:
    """Find out now whether the model can be had; one that does not answer yet may do so later."""
    from rank_k.errors import ConnectionFailed

    try:
        reranker.prepare()
    except ConnectionFailed as error:
        print(f"rank-k {verb}: {error.problem}; requests fail until somebody does", file=sys.stderr)


def _print_error(verb: str, error: Exception) -> None:
    """Say what a client was not told. A fault of this program comes with its place."""
    from rank_k.errors import RankKError

    if isinstance(error, RankKError):
        print(f"rank-k {verb}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return
    import traceback

    print(f"rank-k {verb}: a fault of rank-k:", file=sys.stderr)
    traceback.print_exception(error)
