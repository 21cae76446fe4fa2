"""`rank-k distill select`: a journal of traces in, rows to train on out."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

from rank_k.cli.common_flags import non_negative_float, positive_int
from rank_k.cli.distill import add_exclude_queries
from rank_k.cli.file_checks import check_outputs, open_journal
from rank_k.data.part_file import PartFile
from rank_k.data.trec import read_qrels
from rank_k.distill.candidate_sets import encode_json_line, read_candidate_sets
from rank_k.distill.near_duplicates import read_excluded_queries
from rank_k.distill.select import RULES, Selector, is_heldout
from rank_k.errors import InputError

OUTCOMES = {
    "contaminated": "sets left out: query the same or nearly the same as one of --exclude-queries",
    "near_queries": "sets left out: query nearly the same as another one",
    "repeated_sets": "sets left out: same query and passages as another one",
    "unranked": "traces left out: no usable order",
    "repaired": "traces left out: order incomplete or mended",
    "truncated": "traces left out: thought or answer ended by a limit",
    "repetition_stopped": "traces left out: thought goes in circles",
    "not_recorded": "traces left out: the journal does not say what was shown",
    "too_short": "traces left out: thought shorter than --min-tokens",
    "too_long": "traces left out: thought longer than --max-tokens",
    "below_ndcg": "traces left out: nDCG@10 below --min-ndcg",
    "not_by_rule": "usable traces that the rule did not take",
    "without_trace": "sets without a usable trace",
}
"""What becomes of sets and traces, in words."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--journal", required=True, type=Path, metavar="FILE", help="what distill trace wrote")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the rows, as JSONL")
    group = parser.add_argument_group("selecting")
    group.add_argument("--rule", default="paper", choices=RULES, help="which of a set's usable traces")
    group.add_argument("--qrels", type=Path, metavar="FILE", help="judgments (the grades that the sets carry)")
    group.add_argument("--sets", type=Path, nargs="+", metavar="FILE", help="only the sets of these files (all)")
    group.add_argument(
        "--min-ndcg", type=non_negative_float, default=0.0, metavar="X", help="of an order, where it can be told"
    )
    group.add_argument("--min-tokens", type=int, default=0, metavar="N", help="of a thought, estimated")
    group.add_argument("--max-tokens", type=positive_int, metavar="N", help="of a thought, estimated (any)")
    add_exclude_queries(group)
    group = parser.add_argument_group("held out")
    group.add_argument("--heldout", type=Path, metavar="FILE", help="rows of queries to be kept from training")
    group.add_argument("--heldout-share", type=non_negative_float, default=0.05, metavar="SHARE", help="of the queries")


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.heldout_share < 1:
        raise InputError(f"--heldout-share is {args.heldout_share:g}", "give a share from 0 to less than 1")
    check_outputs(
        {"--output": args.output, "--heldout": args.heldout},
        (args.journal, args.qrels, *args.exclude_queries, *(args.sets or ())),
    )
    sets = (
        None if args.sets is None else frozenset(row.set_id for file in args.sets for row in read_candidate_sets(file))
    )
    selector = Selector(
        args.rule,
        None if args.qrels is None else read_qrels(args.qrels),
        sets,
        (args.min_tokens, args.max_tokens),
        args.min_ndcg,
        read_excluded_queries(args.exclude_queries),
    )
    heldout_count = 0
    with ExitStack() as files:
        journal_file = open_journal(args.journal, "name the file that rank-k distill trace wrote")
        journal = files.enter_context(closing(journal_file))
        training = files.enter_context(PartFile(args.output))
        heldout = None if args.heldout is None else files.enter_context(PartFile(args.heldout))
        for row in selector.rows(journal):
            if heldout is not None and is_heldout(row["query_id"], row["source"], args.heldout_share):
                heldout.write(encode_json_line(row))
                heldout_count += 1
            else:
                training.write(encode_json_line(row))
        if not selector.counts["sets"]:
            raise InputError(f"{args.journal} holds no candidate sets", "rank-k distill trace asks about some")
    print("\n".join(_summary_lines(selector.counts, heldout_count, args)), file=sys.stderr)
    return 0


def _summary_lines(counts: Counter[str], heldout_count: int, args: argparse.Namespace) -> list[str]:
    lines = [f"{args.output}: {counts['rows'] - heldout_count:,} rows"]
    if args.heldout is not None:
        lines.append(f"{args.heldout}: {heldout_count:,} rows")
    lines.append(f"of {counts['sets']:,} sets with {counts['traces']:,} traces looked at")
    return lines + [f"{counts[kind]:,} {words}" for kind, words in OUTCOMES.items() if counts[kind]]
