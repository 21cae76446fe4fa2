"""The options that `rank-k serve` and `rank-k mcp` share, and the service that they start."""

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
"""Environment variables that can be used instead of --host and --client-key-env, for containers."""

_LIMITS = options_of(Limits)
"""The limits that have flags, by name."""


DEFAULT_PORTS = {"serve": 8787, "mcp": 8788}
"""The default of --port, by subcommand."""


def add_server_arguments(parser: argparse.ArgumentParser, verb: str, title: str) -> None:
    """Add the options of the address, access control and limits.

    Args:
        parser: The parser of the command.
        verb: The name of the subcommand.
        title: The title of the group of options for address and access control.
    """
    group = parser.add_argument_group(title)
    group.add_argument(
        "--host", metavar="ADDRESS", help=f"address to listen on (default: ${HOST_VARIABLE}, or 127.0.0.1)"
    )
    group.add_argument(
        "--port",
        type=flag_type(whole_number(0)),
        metavar="N",
        help=f"port to listen on; 0 selects a free port (default: {DEFAULT_PORTS[verb]})",
    )
    group.add_argument(
        "--client-key-env",
        metavar="NAME",
        help="environment variable that contains the key that clients must send; several valid keys are separated by"
        f" commas (default: {CLIENT_KEYS_VARIABLE})",
    )
    group.add_argument(
        "--insecure", action="store_true", help="allow clients on other machines to use the server without a key"
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept requests whose Host header has this name",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="accept requests from web pages of this origin, such as https://app.example.com",
    )
    add_options(parser.add_argument_group("limits"), _LIMITS.values())


def access_config(args: argparse.Namespace) -> AccessConfig:
    """Return the access control of the server, from the options of `add_server_arguments`.

    Raises:
        InputError: If other machines could use the server without a key.
    """
    keys: tuple[str, ...] = ()
    variable = args.client_key_env or (CLIENT_KEYS_VARIABLE if os.environ.get(CLIENT_KEYS_VARIABLE) else None)
    if variable is not None:
        listed_keys = (key_from_environment(variable, "--client-key-env") or "").split(",")
        keys = tuple(key.strip() for key in listed_keys if key.strip())
        if not keys:
            raise InputError(f"the variable {variable} contains no key", f"run: export {variable}=...")
    host = args.host or os.environ.get(HOST_VARIABLE) or "127.0.0.1"
    access = AccessConfig(host, keys, frozenset(args.allow_host), frozenset(args.allow_origin))
    check_access(access, insecure=args.insecure)
    return access


@contextmanager
def open_service(
    args: argparse.Namespace, access: AccessConfig | None = None, *, view_only: bool = False
) -> Iterator[RerankService]:
    """Open the service for a reranker with the given options, and close it on exit.

    Args:
        args: The options of the command.
        access: The access control; None if the service has a single client.
        view_only: Whether --journal is a journal that the server only shows. The model is then prepared at the first
            request.
    """
    options = reranker_options(args)
    if access is not None and options["api_key"] in access.keys:
        raise InputError(
            "the key for clients is the same as the API key of the model",
            "choose a different key for clients with --client-key-env; --api-key-env is for the model",
        )
    limits = Limits(**{name: getattr(args, name) for name in _LIMITS if getattr(args, name) is not None})
    reranker, journal = None, None if view_only else args.journal
    with ExitStack() as stack:
        try:
            # Fewer retries than in a run, because a client is waiting.
            retries = RetryPolicy(overloaded=6, broken=3)
            reranker = stack.enter_context(Reranker(args.model, journal=journal, retries=retries, **options))
            limits = replace(limits, max_concurrent=reranker.options.concurrency or 1)
            if not view_only:
                reranker.prepare()
        except MissingWeights as error:
            if not view_only:
                raise
            print(f"rank-k {args.verb}: {error.problem}; requests to rank will fail", file=sys.stderr)
        except ConnectionFailed as error:  # the server may be reachable later
            print(f"rank-k {args.verb}: {error.problem}; requests will fail until the server responds", file=sys.stderr)
        if access is None:
            limits = replace(limits, per_client=limits.max_concurrent)
        journal_to_show = args.journal if view_only else None
        yield RerankService(reranker, limits, partial(_print_error, args.verb), journal=journal_to_show)


def serve_app(
    args: argparse.Namespace, service: RerankService, app: App, host: str, subject: str, path: str = ""
) -> None:
    """Serve an application until the process is interrupted. Prints its URL at the start.

    Args:
        args: The options of the command.
        service: The service behind the application.
        app: The application.
        host: The address to listen on.
        subject: A description of what is served, for the printed line.
        path: The path of the printed URL.
    """
    port = DEFAULT_PORTS[args.verb] if args.port is None else args.port
    serve(service, app, host, port, lambda url: print(f"rank-k {args.verb}: {subject} at {url}{path}", flush=True))


def _print_error(verb: str, error: Exception) -> None:
    """Print an error whose details are hidden from clients. An unexpected error is printed with its traceback."""
    if isinstance(error, RankKError):
        print(f"rank-k {verb}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return
    print(f"rank-k {verb}: unexpected error:", file=sys.stderr)
    traceback.print_exception(error)
