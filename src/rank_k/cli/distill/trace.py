"""`rank-k distill trace`: rank candidate sets with a teacher and store its reasoning traces in a journal."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path

from rank_k.cli import resumable
from rank_k.cli.common_flags import add_flags
from rank_k.cli.model_options import (
    add_inference_options,
    add_options,
    add_server_options,
    reranker_options,
    run_settings,
)
from rank_k.cli.price_options import add_price_options, prices_for_model
from rank_k.cli.render import rerank_summary
from rank_k.cli.render.words import count_noun
from rank_k.cli.run_progress import show_progress
from rank_k.data.trec import read_qrels
from rank_k.distill.candidate_sets import CandidateSet, read_candidate_sets
from rank_k.distill.labels_teacher import LabelsTeacher, max_grade_by_source
from rank_k.distill.trace import MAX_SET_SIZE, SINGLE_WINDOW, ActiveSets, SimulatedTeacher, trace_sets
from rank_k.errors import InputError
from rank_k.models.base import Model
from rank_k.options import LimitOptions, options_of
from rank_k.reranker import Reranker
from rank_k.run_job import no_progress
from rank_k.simulation.noise_file import noise_by_name
from rank_k.types import Query


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sets", required=True, type=Path, nargs="+", metavar="FILE", help="candidate sets from distill sample"
    )
    parser.add_argument(
        "--journal",
        required=True,
        type=Path,
        metavar="FILE",
        help="file that stores every call; running the same command again resumes",
    )
    parser.add_argument(
        "--teacher",
        default="model",
        choices=("model", "labels"),
        help="model: a language model; labels: no model, but the relevance grades in the sets",
    )
    add_server_options(parser, simulation={})
    add_inference_options(parser, {"samples": 4})
    group = parser.add_argument_group("options of --teacher labels")
    group.add_argument(
        "--form",
        default="verdicts",
        choices=("verdicts", "order"),
        help="verdicts: the reasoning consists of a relevance label for each passage; order: there is no reasoning",
    )
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="tokenizer.json with which passages are truncated (default: token counts are estimated)",
    )
    group = parser.add_argument_group("limits and output")
    add_options(group, [options_of(LimitOptions)["token_budget"]])
    add_price_options(group)
    add_flags(group, "--quiet")


def run(args: argparse.Namespace) -> int:
    start_time = time.monotonic()
    options = reranker_options(args)
    _check_options(args)
    all_sets = chain.from_iterable(map(read_candidate_sets, args.sets))
    # All sets are read now, so that errors in files are reported before calls cost money.
    judged_counts = Counter(row.grades is not None for row in all_sets)
    unjudged_count = judged_counts[False] if args.teacher == "labels" else 0
    if args.teacher == "labels" and not judged_counts[True]:
        raise InputError("no set has grades for --teacher labels", "give --qrels to rank-k distill sample")
    active_sets = ActiveSets()
    model = _local_model(args, active_sets)
    if args.teacher == "labels":
        options |= {"samples": 1, "reasoning": "full", "server": None}
    options |= {"method": "listwise", "strategy": SINGLE_WINDOW, "depth": MAX_SET_SIZE}
    with Reranker(model or args.model, journal=args.journal, **options) as reranker:
        with resumable(args.journal):
            reranker.prepare()
            reranker.check(_read_queries(args))  # report a query that is too long before calls cost money
            token_prices = prices_for_model(args, reranker.model.name)
            for _ in trace_sets(
                reranker,
                _read_teacher_sets(args),
                active_sets,
                set_count=judged_counts.total() - unjudged_count,
                settings=run_settings(args, reranker.options),
                show_progress=no_progress if args.quiet else show_progress(noun="set"),
                token_budget=args.token_budget,
            ):
                pass
        if not args.quiet:
            left_out = f"{count_noun(unjudged_count, 'set')} left out, because the query has no relevance judgments"
            seconds = time.monotonic() - start_time
            summary = rerank_summary.lines(reranker.stats, seconds, token_prices, noun="set")
            print("\n".join([left_out, *summary] if unjudged_count else summary), file=sys.stderr)
    return 3 if rerank_summary.is_unranked(reranker.stats) else 0


def _check_options(args: argparse.Namespace) -> None:
    if args.teacher == "labels" and (args.server or args.model or args.simulate):
        raise InputError("--teacher labels does not use a model", "leave --server, --model and --simulate out")
    if args.teacher != "labels" and (args.tokenizer or args.form != "verdicts"):
        raise InputError("--form and --tokenizer are for --teacher labels", "leave them out")
    if args.reasoning == "auto":
        raise InputError(
            "--reasoning auto would produce a mix of sets with and without reasoning",
            "use full, off or a number of tokens",
        )


def _read_teacher_sets(args: argparse.Namespace) -> Iterator[CandidateSet]:
    """Yield the sets that the teacher can rank. The labels teacher can only rank sets with relevance judgments."""
    rows = chain.from_iterable(map(read_candidate_sets, args.sets))
    return (row for row in rows if row.grades is not None) if args.teacher == "labels" else rows


def _read_queries(args: argparse.Namespace) -> Iterator[Query]:
    """Yield the queries of the sets, each once: the sets of a query are consecutive."""
    return (Query(*query) for query, _ in groupby(_read_teacher_sets(args), lambda row: (row.query_id, row.query)))


def _local_model(args: argparse.Namespace, active_sets: ActiveSets) -> Model | None:
    """Return the labels teacher or the simulated model; None for a real model."""
    if args.teacher == "labels":
        max_grades = max_grade_by_source(_read_teacher_sets(args))
        return LabelsTeacher(active_sets.get_set, max_grades, args.form, args.tokenizer)
    if args.simulate is not None:
        return SimulatedTeacher(read_qrels(args.simulate), noise_by_name(args.noise), active_sets.get_set)
    return None
