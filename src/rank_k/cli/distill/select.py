"""`rank-k distill select`: select reasoning traces from a journal as training rows."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

from rank_k.cli.common_flags import non_negative_float, positive_int
from rank_k.cli.distill import add_exclude_queries
from rank_k.cli.file_checks import check_outputs, open_journal
from rank_k.cli.render.words import count_noun, describe_count
from rank_k.data.part_file import PartFile
from rank_k.data.trec import read_qrels
from rank_k.distill.candidate_sets import encode_json_line, read_candidate_sets
from rank_k.distill.near_duplicates import read_excluded_queries
from rank_k.distill.select import RULES, Selector, is_heldout
from rank_k.errors import InputError

OUTCOMES = {
    "contaminated": ("set", "left out: the query is identical or similar to one of --exclude-queries"),
    "near_queries": ("set", "left out: the query is similar to an earlier query with a different id"),
    "repeated_sets": ("set", "left out: the same query and passages as an earlier set"),
    "unranked": ("trace", "left out: no usable ranking"),
    "repaired": ("trace", "left out: ranking incomplete or repaired"),
    "truncated": ("trace", "left out: truncated by a token limit"),
    "repetition_stopped": ("trace", "left out: stopped early because it repeated itself"),
    "not_recorded": ("trace", "left out: the journal does not have the order of the passages in the prompt"),
    "too_short": ("trace", "left out: shorter than --min-tokens"),
    "too_long": ("trace", "left out: longer than --max-tokens"),
    "below_ndcg": ("trace", "left out: nDCG@10 below --min-ndcg"),
    "not_by_rule": ("usable trace", "left out by --rule"),
    "without_trace": ("set", "without a usable trace"),
}
"""Why sets and traces are not in the output. For each outcome: the noun that is counted, and the reason."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--journal", required=True, type=Path, metavar="FILE", help="journal from distill trace")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file for the rows, as JSONL")
    group = parser.add_argument_group("selection")
    group.add_argument(
        "--rule",
        default="paper",
        choices=RULES,
        help="rule that selects from the usable traces of each set; see docs/how-to/distill.md",
    )
    group.add_argument(
        "--qrels", type=Path, metavar="FILE", help="relevance judgments (default: the grades in the sets)"
    )
    group.add_argument(
        "--sets", type=Path, nargs="+", metavar="FILE", help="use only the sets in these files (default: all)"
    )
    group.add_argument(
        "--min-ndcg",
        type=non_negative_float,
        default=0.0,
        metavar="X",
        help="minimum nDCG@10 of the ranking of a trace, if its query is judged",
    )
    group.add_argument(
        "--min-tokens", type=int, default=0, metavar="N", help="minimum length of the reasoning, in estimated tokens"
    )
    group.add_argument(
        "--max-tokens",
        type=positive_int,
        metavar="N",
        help="maximum length of the reasoning, in estimated tokens (default: no limit)",
    )
    add_exclude_queries(group)
    group = parser.add_argument_group("held-out rows")
    group.add_argument(
        "--heldout", type=Path, metavar="FILE", help="file for the rows of held-out queries (default: hold out none)"
    )
    group.add_argument(
        "--heldout-share",
        type=non_negative_float,
        default=0.05,
        metavar="SHARE",
        help="share of the queries that --heldout holds out from training",
    )


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.heldout_share < 1:
        raise InputError(
            f"--heldout-share must be at least 0 and less than 1 (got {args.heldout_share:g})",
            "give a share such as 0.05",
        )
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
        journal_file = open_journal(args.journal, "give the journal from rank-k distill trace")
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
            raise InputError(f"{args.journal} has no candidate sets", "run rank-k distill trace first")
    print("\n".join(_summary_lines(selector.counts, heldout_count, args)), file=sys.stderr)
    return 0


def _summary_lines(counts: Counter[str], heldout_count: int, args: argparse.Namespace) -> list[str]:
    lines = [f"{args.output}: {count_noun(counts['rows'] - heldout_count, 'row')}"]
    if args.heldout is not None:
        lines.append(f"{args.heldout}: {count_noun(heldout_count, 'row')}")
    lines.append(f"from {count_noun(counts['sets'], 'set')} with {count_noun(counts['traces'], 'trace')}")
    lines += [describe_count(counts[kind], *outcome) for kind, outcome in OUTCOMES.items() if counts[kind]]
    if not counts["rows"]:
        lines.append("no trace was selected: see the counts above for the reasons; a different --rule may select more")
    return lines
