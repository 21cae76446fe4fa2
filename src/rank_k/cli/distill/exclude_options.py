"""The option that keeps evaluation queries out of training data, shared by the steps that can."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rank_k.distill.near_duplicates import NearDuplicateIndex


def add_exclude_queries(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--exclude-queries",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="queries to be evaluated on: the same or nearly the same are left out",
    )


def read_excluded_queries(args: argparse.Namespace) -> NearDuplicateIndex | None:
    """What --exclude-queries names."""
    from rank_k.data.queries import read_queries
    from rank_k.distill.near_duplicates import CONTAMINATION_SIMILARITY, NearDuplicateIndex

    if not args.exclude_queries:
        return None
    index = NearDuplicateIndex(CONTAMINATION_SIMILARITY)
    for file in args.exclude_queries:
        for query in read_queries(file).values():
            index.add(query.text, f"{file}: {query.query_id}")
    return index
