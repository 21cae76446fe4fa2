"""`rank-k serve`: the model behind the API that retrieval systems know."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rank_k.cli.model import add_asking, add_server, count, duration, key_in, reranker_options

if TYPE_CHECKING:
    from rank_k.reranker import Reranker
    from rank_k.serve.rules import Doors, Limits

NAME = "serve"
HELP = "answer rerank requests over HTTP, as Cohere's, Jina's and other APIs do"
HOST, CLIENT_KEYS = "RANK_K_HOST", "RANK_K_CLIENT_KEYS"
"""Variables that stand for --host and --api-key-env where these are not given, as in a container."""
EXAMPLE = "rank-k serve --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B --journal served.sqlite"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser, "--server-key-env")
    add_asking(parser)
    told = "keeps every call (a temporary one, of the latest 256 MB)"
    parser.add_argument("--journal", type=Path, metavar="FILE", help=told)
    door = parser.add_argument_group("who may ask")
    door.add_argument("--host", metavar="ADDRESS", help=f"listen on this address ({HOST}, or else 127.0.0.1)")
    door.add_argument("--port", type=port, default=8787, metavar="N", help="0 takes a free one")
    told = f"variable with the key that clients must show, or several keys with commas between ({CLIENT_KEYS})"
    door.add_argument("--api-key-env", metavar="NAME", help=told)
    door.add_argument("--insecure", action="store_true", help="no key, though other machines can reach the address")
    door.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name of this server")
    door.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="pages that may ask")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--queue", type=count, default=64, metavar="N", help="requests that may wait")
    limits.add_argument(
        "--per-client", type=count, default=8, metavar="N", help="requests of a client worked on at once"
    )
    limits.add_argument("--max-documents", type=count, default=1000, metavar="N", help="of a request")
    limits.add_argument(
        "--max-characters", type=count, default=4_000_000, metavar="N", help="of query and documents together"
    )
    limits.add_argument("--max-body", type=count, default=16 * 2**20, metavar="BYTES", help="of a request")
    limits.add_argument(
        "--deadline", type=duration, metavar="S", help="the best ranking so far after S, if a request names no deadline"
    )
    limits.add_argument("--grace", type=duration, default=30.0, metavar="S", help="to finish in when told to stop")


def run(args: argparse.Namespace) -> int:
    from rank_k.models.retries import Retries
    from rank_k.reranker import Reranker
    from rank_k.serve.desk import Desk
    from rank_k.serve.rules import check_doors
    from rank_k.serve.run import serve

    doors = _doors(args)
    check_doors(doors, insecure=args.insecure)
    options = reranker_options(args)
    _check_keys(doors.keys, options["api_key"])
    # Fewer tries than a run has: somebody is waiting.
    with Reranker(args.model, journal=args.journal, retries=Retries(overloaded=6, broken=3), **options) as reranker:
        _prepare(reranker)
        desk = Desk(reranker, _limits(args, reranker.concurrency), _tell)
        ranks = f"{desk.model or 'the model'}, by {reranker.by},"
        serve(desk, doors, args.port, lambda url: print(f"rank-k serve: {ranks} at {url}", flush=True))
    print("rank-k serve: stopped", file=sys.stderr)
    return 0


def port(text: str) -> int:
    """A port, for argparse."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, which goes from 0 to 65535")
    return int(text)


def _doors(args: argparse.Namespace) -> Doors:
    from rank_k.errors import InputError
    from rank_k.serve.rules import Doors

    keys: tuple[str, ...] = ()
    variable = args.api_key_env or (CLIENT_KEYS if os.environ.get(CLIENT_KEYS) else None)
    if variable is not None:
        keys = tuple(filter(None, (key.strip() for key in (key_in(variable) or "").split(","))))
        if not keys:
            raise InputError(f"the variable {variable} holds no key", "give it one")
    host = args.host or os.environ.get(HOST) or "127.0.0.1"
    return Doors(host, keys, frozenset(args.allow_host), frozenset(args.allow_origin))


def _limits(args: argparse.Namespace, running: int) -> Limits:
    from rank_k.serve.rules import Limits

    return Limits(
        running=running,
        queue=args.queue,
        per_client=args.per_client,
        documents=args.max_documents,
        characters=args.max_characters,
        body=args.max_body,
        grace_seconds=args.grace,
        deadline_seconds=args.deadline,
    )


def _check_keys(keys: tuple[str, ...], model_key: str | None) -> None:
    from rank_k.errors import InputError

    if model_key in keys:
        raise InputError(
            "the key that clients must show is the one for the model's server",
            "give clients a key of their own: --api-key-env; the model's is --server-key-env",
        )


def _prepare(reranker: Reranker) -> None:
    """Find out now whether the model can be had; one that does not answer yet may do so later."""
    from rank_k.errors import Unreachable

    try:
        reranker.prepare()
    except Unreachable as error:
        print(f"rank-k serve: {error.problem}; requests fail until somebody does", file=sys.stderr)


def _tell(error: Exception) -> None:
    """Say what a client was not told. A fault of this program comes with its place."""
    from rank_k.errors import RankKError

    if isinstance(error, RankKError):
        print(f"rank-k serve: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return
    import traceback

    print("rank-k serve: a fault of rank-k:", file=sys.stderr)
    traceback.print_exception(error)
