"""`rank-k retrieve`: make a first-stage run with BM25."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rank_k.cli.collection_options import RequestedCollection, add_collection_options
from rank_k.cli.model_options import positive_int
from rank_k.data.collections.base import RunWithoutExcluded
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunWriter
from rank_k.retrieval.analyzers import analyzer_for
from rank_k.retrieval.bm25 import retrieve

EXAMPLE = "rank-k retrieve --documents corpus.jsonl.gz --queries queries.jsonl --output bm25.trec"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the run")
    parser.add_argument("--depth", type=positive_int, default=100, metavar="N", help="candidates per query")
    parser.add_argument(
        "--language",
        default="en",
        metavar="CODE",
        help="of the documents, an ISO 639-1 code (en); see docs/how-to/languages.md",
    )
    add_collection_options(parser)
    parser.add_argument(
        "--query-fields",
        metavar="NAMES",
        help="what to search with (text): title,description of topics, or ht, a translation the model will not see",
    )


def run(args: argparse.Namespace) -> int:
    analyzer = analyzer_for(args.language)
    collection = RequestedCollection(args)
    queries = read_queries(collection.queries, args.query_fields)
    excluded = collection.excluded
    depth = args.depth + max(map(len, excluded.values()), default=0)
    empty_count = 0
    with RunWriter(args.output, "bm25") as writer:
        results = retrieve(queries.values(), collection.corpus.passages(), depth=depth, analyzer=analyzer)
        for query_id, candidates in RunWithoutExcluded(results, excluded):
            empty_count += not candidates
            writer.write(query_id, [candidate.doc_id for candidate in candidates[: args.depth]])
    note = f"; {empty_count} of them found nothing" if empty_count else ""
    print(f"{len(queries)} queries{note}: {args.output}", file=sys.stderr)
    return 0
