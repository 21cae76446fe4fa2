"""`rank-k retrieve`: create a first-stage run with BM25."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rank_k.cli.collection_options import RequestedCollection, add_collection_options
from rank_k.cli.common_flags import add_flags, positive_int, select_queries
from rank_k.cli.render.words import count_noun
from rank_k.data.collections.base import RunWithoutExcluded
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunWriter
from rank_k.retrieval.analyzers import analyzer_for
from rank_k.retrieval.bm25 import retrieve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file for the new run")
    parser.add_argument("--depth", type=positive_int, default=100, metavar="N", help="number of candidates per query")
    parser.add_argument(
        "--language",
        default="en",
        metavar="CODE",
        help="language of the documents as an ISO 639-1 code; see docs/how-to/languages.md",
    )
    add_collection_options(parser)
    add_flags(parser, "--limit", "--only")
    parser.add_argument(
        "--query-fields",
        metavar="NAMES",
        help="fields of the queries to search with, such as title,description (default: text)",
    )


def run(args: argparse.Namespace) -> int:
    analyzer = analyzer_for(args.language)
    collection = RequestedCollection(args)
    all_queries = read_queries(collection.queries, args.query_fields)
    queries = [all_queries[query_id] for query_id in select_queries(args, all_queries)]
    excluded = collection.excluded
    depth = args.depth + max(map(len, excluded.values()), default=0)
    empty_count = 0
    with RunWriter(args.output, "bm25") as writer:
        results = retrieve(queries, collection.corpus.passages(), depth=depth, analyzer=analyzer)
        for query_id, candidates in RunWithoutExcluded(results, excluded):
            empty_count += not candidates
            kept = candidates[: args.depth]
            scores = [candidate.score for candidate in kept]
            writer.write_query(query_id, [candidate.doc_id for candidate in kept], scores)
    note = f"; no passage was found for {empty_count:,} of them" if empty_count else ""
    print(f"{count_noun(len(queries), 'query')}{note}: {args.output}", file=sys.stderr)
    return 0
