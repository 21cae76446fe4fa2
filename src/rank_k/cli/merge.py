"""`rank-k merge`: merge the outputs of all shards into one run and one journal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rank_k.cli.file_checks import check_outputs
from rank_k.errors import InputError
from rank_k.scale.merge import merge_shards


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the merged TREC run to write")
    parser.add_argument(
        "parts",
        type=Path,
        nargs="+",
        metavar="PART",
        help="the run of each shard (rank-k rerank --shard), in any order",
    )
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="the merged journal (default: OUTPUT.journal.sqlite)"
    )
    parser.add_argument(
        "--journals",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="the journal of each PART, in the same order (default: PART.journal.sqlite)",
    )


def run(args: argparse.Namespace) -> int:
    journals = args.journals or [journal_beside(part) for part in args.parts]
    if len(journals) != len(args.parts):
        raise InputError(
            f"--journals gives {len(journals)} journals for {len(args.parts)} parts",
            "give one journal for each part, in the same order",
        )
    journal = args.journal or journal_beside(args.output)
    check_outputs({"OUTPUT": args.output, "--journal": journal}, (*args.parts, *journals))
    merged = merge_shards(args.output, journal, args.parts, journals)
    print(f"{args.output}: {merged.queries} queries from {merged.shards} shards; journal: {journal}", file=sys.stderr)
    return 0


def journal_beside(run_file: Path) -> Path:
    """Return the path of the journal that `rank-k rerank` writes for this output."""
    return run_file.with_name(run_file.name + ".journal.sqlite")
