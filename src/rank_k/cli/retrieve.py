"""`rank-k retrieve`: a BM25 run, for those who have none."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rank_k.cli.collection import add_collection, named_files
from rank_k.cli.model import count

NAME = "retrieve"
HELP = "make a first-stage run with BM25"
EXAMPLE = "rank-k retrieve --documents corpus.jsonl.gz --queries queries.jsonl --output bm25.trec"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the run")
    parser.add_argument("--depth", type=count, default=100, metavar="N", help="candidates per query")
    add_collection(parser)


def run(args: argparse.Namespace) -> int:
    from rank_k.data.files import RunWriter, read_passages, read_queries
    from rank_k.first_stage import retrieve

    queries_file, documents_file = named_files(args)
    queries = read_queries(queries_file)
    empty = 0
    with RunWriter(args.output, "bm25") as writer:
        for query_id, candidates in retrieve(queries.values(), read_passages(documents_file), depth=args.depth):
            empty += not candidates
            writer.write(query_id, [candidate.doc_id for candidate in candidates])
    note = f"; {empty} of them found nothing" if empty else ""
    print(f"{len(queries)} queries{note}: {args.output}", file=sys.stderr)
    return 0
