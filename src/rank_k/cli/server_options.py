"""The options of `rank-k serve` and `rank-k mcp`, and the service that they describe."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from rank_k.cli.common_flags import flag_type
from rank_k.cli.model_options import add_options, key_from_environment, reranker_options
from rank_k.errors import ConnectionFailed, InputError, MissingWeights, RankKError
from rank_k.models.retry import RetryPolicy
from rank_k.option_values import whole_number
from rank_k.options import options_of
from rank_k.reranker import Reranker
from rank_k.server.config import AccessConfig, Limits, check_access
from rank_k.server.http_io import App
from rank_k.server.run import serve
from rank_k.server.service import RerankService

HOST_VARIABLE, CLIENT_KEYS_VARIABLE = "RANK_K_HOST", "RANK_K_CLIENT_KEYS"
"""Variables that stand for --host and --client-key-env where these are not given, as in a container."""

_LIMITS = options_of(Limits)
"""The limits that are flags, by name."""


DEFAULT_PORTS = {"serve": 8787, "mcp": 8788}
"""Ports by verb, where --port is not given."""


def add_server_arguments(parser: argparse.ArgumentParser, verb: str, title: str) -> None:
    """Add the options of the address, of access to it and of limits. `title`: of the group about access."""
    group = parser.add_argument_group(title)
    group.add_argument("--host", metavar="ADDRESS", help=f"listen on this address ({HOST_VARIABLE}, or else 127.0.0.1)")
    group.add_argument(
        "--port",
        type=flag_type(whole_number(0)),
        metavar="N",
        help=f"port of the server; 0 takes a free one (default: {DEFAULT_PORTS[verb]})",
    )
    group.add_argument(
        "--client-key-env",
        metavar="NAME",
        help=f"variable with the key that clients must show, or several keys with commas between"
        f" ({CLIENT_KEYS_VARIABLE})",
    )
    group.add_argument("--insecure", action="store_true", help="no key, though other machines can reach the address")
    group.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name of this server")
    group.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="pages that may ask")
    add_options(parser.add_argument_group("limits"), _LIMITS.values())


def access_config(args: argparse.Namespace) -> AccessConfig:
    """Return who may use the server, from the options of `add_server_arguments`.

    Raises:
        InputError: If anybody could use it without being allowed to.
    """
    keys: tuple[str, ...] = ()
    variable = args.client_key_env or (CLIENT_KEYS_VARIABLE if os.environ.get(CLIENT_KEYS_VARIABLE) else None)
    if variable is not None:
        listed_keys = (key_from_environment(variable, "--client-key-env") or "").split(",")
        keys = tuple(key.strip() for key in listed_keys if key.strip())
        if not keys:
            raise InputError(f"the variable {variable} holds no key", "give it one")
    host = args.host or os.environ.get(HOST_VARIABLE) or "127.0.0.1"
    access = AccessConfig(host, keys, frozenset(args.allow_host), frozenset(args.allow_origin))
    check_access(access, insecure=args.insecure)
    return access


@contextmanager
def open_service(
    args: argparse.Namespace, access: AccessConfig | None = None, *, view_only: bool = False
) -> Iterator[RerankService]:
    """Open the service for a reranker with the given options; close it on exit.

    Args:
        args: The options.
        access: Who may send requests; None if there is one client.
        view_only: Whether the journal is only shown. The model, if there is one, then starts with the first request.
    """

    options = reranker_options(args)
    if access is not None and options["api_key"] in access.keys:
        raise InputError(
            "the key that clients must show is the one for the model's server",
            "give clients a key of their own with --client-key-env; the model's is --api-key-env",
        )
    limits = Limits(**{name: getattr(args, name) for name in _LIMITS if getattr(args, name) is not None})
    reranker, journal = None, None if view_only else args.journal
    with ExitStack() as stack:
        try:
            # Fewer retries than a run has, since somebody is waiting.
            retries = RetryPolicy(overloaded=6, broken=3)
            reranker = stack.enter_context(Reranker(args.model, journal=journal, retries=retries, **options))
            limits = replace(limits, max_concurrent=reranker.options.concurrency or 1)
            if not view_only:
                reranker.prepare()
        except MissingWeights as error:
            if not view_only:
                raise
            print(f"rank-k {args.verb}: {error.problem}: nothing can be ranked", file=sys.stderr)
        except ConnectionFailed as error:  # it may be reachable later
            print(f"rank-k {args.verb}: {error.problem}; requests fail until somebody does", file=sys.stderr)
        if access is None:
            limits = replace(limits, per_client=limits.max_concurrent)
        shown_journal = args.journal if view_only else None
        yield RerankService(reranker, limits, partial(_print_error, args.verb), journal=shown_journal)


def serve_app(
    args: argparse.Namespace, service: RerankService, app: App, host: str, subject: str, path: str = ""
) -> None:
    """Serve `app` until the process is interrupted, and print the address of `path` at the start.

    `subject` says what is served.
    """
    port = DEFAULT_PORTS[args.verb] if args.port is None else args.port
    serve(service, app, host, port, lambda url: print(f"rank-k {args.verb}: {subject} at {url}{path}", flush=True))


def _print_error(verb: str, error: Exception) -> None:
    """Print an error whose details clients do not see. A bug in Rank-K is printed with a traceback."""
    if isinstance(error, RankKError):
        print(f"rank-k {verb}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return
    print(f"rank-k {verb}: a fault of rank-k:", file=sys.stderr)
    traceback.print_exception(error)
