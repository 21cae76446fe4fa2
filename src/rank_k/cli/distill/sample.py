"""`rank-k distill sample`: sample sets of candidates from first-stage runs."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

from rank_k.cli.collection_options import RequestedCollection, add_collection_options
from rank_k.cli.common_flags import add_flags, non_negative_float, positive_int
from rank_k.cli.distill import add_exclude_queries
from rank_k.cli.file_checks import check_outputs
from rank_k.cli.render.words import count_noun, describe_count
from rank_k.data.collections.base import RunWithoutExcluded
from rank_k.data.queries import read_queries
from rank_k.data.trec import RunFile, read_qrels
from rank_k.distill.candidate_sets import read_license
from rank_k.distill.near_duplicates import read_excluded_queries
from rank_k.distill.sample import Sampler, Sampling, write_samples
from rank_k.errors import InputError
from rank_k.retrieval.fusion import FusedRuns

OUTCOMES = {
    "not_ranked": ("query", "left out: in no run"),
    "contaminated": ("query", "left out: identical or similar to one of --exclude-queries"),
    "no_positives": ("set", "not sampled: no passage is judged relevant"),
    "too_few": ("set", "not sampled: fewer passages than the minimum of --sizes"),
    "repeated": ("set", "not sampled: the same passages as an earlier set of the query"),
}
"""Why queries and sets are not in the output. For each outcome: the noun that is counted, and the reason."""

DEPTH = 100
"""The minimum number of candidates of each run that are fused. If --ranks contains a higher rank, more are fused."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="file for the sets, as JSONL; running the same command again resumes",
    )
    parser.add_argument(
        "--runs",
        required=True,
        type=Path,
        nargs="+",
        metavar="FILE",
        help="first-stage runs; the ranks of each passage in all runs are combined",
    )
    add_collection_options(parser)
    group = parser.add_argument_group("sampling")
    group.add_argument("--queries-count", type=positive_int, metavar="N", help="number of queries (default: all)")
    group.add_argument("--sizes", type=parse_range, default="10-20", metavar="A-B", help="number of passages in a set")
    group.add_argument(
        "--ranks",
        type=parse_ranges,
        default="1-20,10-30",
        metavar="A-B,...",
        help="ranks from which the first, second, ... set of a query is sampled",
    )
    group.add_argument("--sets-per-query", type=positive_int, default=2, metavar="N", help="number of sets per query")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random numbers")
    add_exclude_queries(group)
    group = parser.add_argument_group("judgments")
    add_flags(group, "--qrels")
    group.add_argument(
        "--positives",
        type=parse_range,
        metavar="A-B",
        help="number of relevant passages in a set; they need not be in a run",
    )
    group.add_argument(
        "--none",
        type=non_negative_float,
        default=0.0,
        metavar="SHARE",
        help="share of the sets that are sampled without passages of the highest grade",
    )
    group.add_argument(
        "--skip-negatives",
        type=int,
        default=0,
        metavar="N",
        help="leave out the first N unjudged passages of each ranking, because they may be relevant",
    )
    group = parser.add_argument_group("provenance", "stored with every set and training row")
    group.add_argument("--source", metavar="NAME", help="name of the collection (default: the name of its folder)")
    group.add_argument("--license", metavar="TEXT", help="license of the texts (default: the license in PROVENANCE.md)")


def run(args: argparse.Namespace) -> int:
    sampling = Sampling(
        args.sizes, args.ranks, args.sets_per_query, args.positives, args.none, args.skip_negatives, args.seed
    )
    if args.positives is not None and args.qrels is None and args.dataset is None:
        raise InputError("--positives needs relevance judgments", "give --qrels FILE")
    collection = RequestedCollection(args)
    qrels_file = collection.find_file("qrels")
    check_outputs({"--output": args.output}, (*args.runs, *collection.files, qrels_file))
    first_file = args.documents or next(iter(collection.corpus.files), collection.queries)
    folder = Path(first_file).resolve().parent
    license = args.license or read_license(folder)
    depth = max(DEPTH, *(high for _, high in sampling.ranks))
    runs = (RunWithoutExcluded(RunFile(path), collection.excluded) for path in args.runs)
    with closing(FusedRuns(runs, depth)) as fused, closing(collection.open_store()) as store:
        sampler = Sampler(
            fused.ranking,
            read_queries(collection.queries),
            store,
            sampling,
            args.source or folder.name,
            license,
            None if qrels_file is None else read_qrels(qrels_file),
            read_excluded_queries(args.exclude_queries),
        )
        existing_count = write_samples(sampler, args.output, args.queries_count)
    print("\n".join(_summary_lines(sampler.counts, existing_count, args.output, license)), file=sys.stderr)
    return 0


def parse_range(text: str) -> tuple[int, int]:
    """Parse a range such as 10-20, or a single number such as 5."""
    low, separator, high = text.partition("-")
    if not low.isdecimal() or not (high.isdecimal() if separator else not high):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range such as 10-20")
    return int(low), int(high if separator else low)


def parse_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """Parse ranges such as 1-20,10-30."""
    return tuple(parse_range(part) for part in text.split(","))


def _summary_lines(counts: Counter[str], existing_count: int, output: Path, license: str | None) -> list[str]:
    sets_count = counts["sets"]
    existing_note = f", {existing_count:,} of them from an earlier command" if existing_count else ""
    lines = [
        f"{output}: {count_noun(sets_count, 'set')}{existing_note}, {count_noun(counts['passages'], 'passage')},"
        f" {count_noun(counts['queries'], 'query')}"
    ]
    relevant_counts = sorted(
        (int(kind.split("_")[1]), set_count) for kind, set_count in counts.items() if kind.endswith("_relevant")
    )
    if relevant_counts:
        shares = ", ".join(f"{number} in {set_count / max(sets_count, 1):.0%}" for number, set_count in relevant_counts)
        lines.append(f"number of relevant passages: {shares} of the sets")
    lines += [describe_count(counts[kind], *outcome) for kind, outcome in OUTCOMES.items() if counts[kind]]
    if license is None:
        lines.append("the license of these texts is unknown: give it with --license TEXT")
    return lines
