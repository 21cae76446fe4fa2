"""`rank-k evaluate`: quality and cost of runs, and significance tests; or a summary of preference judgments."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from rank_k.cli.collection_options import RequestedCollection
from rank_k.cli.common_flags import add_flags, reject_flags
from rank_k.cli.file_checks import check_outputs
from rank_k.cli.price_options import add_price_options, prices_for_model
from rank_k.cli.render import evaluation_text, preferences_text
from rank_k.cli.render.tables import print_tables
from rank_k.cli.render.words import count_noun
from rank_k.data.collections.base import RunWithoutExcluded
from rank_k.data.queries import read_queries
from rank_k.data.trec import read_qrels, read_run
from rank_k.errors import InputError, JournalError
from rank_k.evaluation.measures import DEFAULT_MEASURES
from rank_k.evaluation.preferences import read_judgments, summarize_preferences
from rank_k.evaluation.run_comparison import RunComparison, compare_runs
from rank_k.evaluation.run_costs import RunCost, find_journal, read_run_cost
from rank_k.reports.evaluation_report import ReportOrigin, render_report
from rank_k.types import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="TREC run or score.json")
    add_flags(parser, "--qrels", "--dataset", "--measures", "--json")
    parser.add_argument(
        "--ties",
        choices=("file", "trec_eval"),
        help="order of documents with equal scores: file (as in the run file) or trec_eval (by descending id, as"
        " trec_eval does) (default: file)",
    )
    parser.add_argument(
        "--common-queries",
        action="store_true",
        help="average only over the judged queries that all runs contain (default: a judged query that is missing from"
        " a run counts as 0)",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write a CSV file with a row for each run, measure and query"
    )
    group = parser.add_argument_group(
        "comparison", "paired tests, with correction for multiple comparisons; see docs/how-to/evaluate.md"
    )
    group.add_argument("--baseline", type=Path, metavar="RUN", help="run with which the other runs are compared")
    group.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report with tables and plots")
    group.add_argument(
        "--queries", type=Path, metavar="FILE", help="query texts for the report (default: those of the data set)"
    )
    group = parser.add_argument_group(
        "cost", "costs are read from the journals of the runs; RUN.journal.sqlite is used if it exists"
    )
    group.add_argument("--journal", action="append", metavar="RUN=FILE", help="journal of a run")
    add_price_options(group)
    group = parser.add_argument_group(
        "preference judgments", "evaluated instead of runs and qrels; see docs/how-to/judging.md"
    )
    group.add_argument(
        "--preferences",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="files with preference judgments from the page Judge of rank-k serve",
    )


def run(args: argparse.Namespace) -> int:
    if args.preferences is not None:
        return _evaluate_preferences(args)
    if not args.runs:
        raise InputError("there is no run to evaluate", "give one or more runs, or --preferences FILE")
    comparison = _compare(args, intervals=bool(args.baseline or args.json or args.report))
    if args.csv is not None:  # write files first: printing may fail if the output is piped to a program that ends early
        with args.csv.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(evaluation_text.rows(comparison))
    if args.report is not None:
        args.report.write_text(_render_report(args, comparison), encoding="utf-8")
    _print_result(comparison, evaluation_text, args.json)
    return 0


def report_page(args: argparse.Namespace, links: Sequence[tuple[str, str, bool]] = ()) -> str:
    """Return the HTML report that --report writes.

    Args:
        args: The options of the command.
        links: Links to other pages, as `rank_k.reports.evaluation_report.render_report` takes them.
    """
    return _render_report(args, _compare(args, intervals=True), links)


def _compare(args: argparse.Namespace, *, intervals: bool) -> RunComparison:
    """Return the comparison of the runs in `args`.

    Args:
        args: The options of the command.
        intervals: Whether to compute confidence intervals of the means.

    Raises:
        InputError: If files do not belong together.
    """
    collection = RequestedCollection(args)
    qrels_file = collection.file("qrels")
    run_files, baseline = _name_runs(args.runs, args.baseline)
    named_journals = _parse_journals(args.journal or (), run_files)
    journals = {name: file for name, run in run_files.items() if (file := find_journal(run))} | named_journals
    inputs = (qrels_file, *run_files.values(), *journals.values(), args.queries)
    check_outputs({"--csv": args.csv, "--report": args.report}, inputs)
    qrels = read_qrels(qrels_file)
    runs = read_runs(run_files, collection)
    for name, run in runs.items():
        if qrels.keys().isdisjoint(run):
            raise InputError(
                f"{qrels_file} has no judgments for the queries of {name}", "give qrels and runs of the same queries"
            )
    costs = {name: _run_cost(args, name, run_files[name], journals[name], name in named_journals) for name in journals}
    comparison = compare_runs(
        qrels,
        runs,
        args.measures or DEFAULT_MEASURES,
        baseline=baseline,
        ties=args.ties or "file",
        costs=costs,
        intervals=intervals,
        common_queries=args.common_queries,
    )
    if comparison.omitted_queries:
        print(
            f"WARNING: only {comparison.query_count:,} of {count_noun(len(qrels), 'judged query')} are in all runs;"
            " all measures are averages over these queries",
            file=sys.stderr,
        )
    return comparison


def _render_report(
    args: argparse.Namespace, comparison: RunComparison, links: Sequence[tuple[str, str, bool]] = ()
) -> str:
    collection = RequestedCollection(args)
    queries_file = collection.find_file("queries")
    queries = {} if queries_file is None else read_queries(queries_file)
    texts = {query_id: query.text for query_id, query in queries.items()}
    return render_report(comparison, ReportOrigin(args.command_line, str(collection.file("qrels"))), texts, links)


def _name_runs(paths: Sequence[Path], baseline: Path | None) -> tuple[dict[str, Path], str]:
    """Return the runs by name, including the baseline, and the name of the baseline."""
    runs = {str(path): path for path in paths}
    if baseline is None:
        return runs, ""
    name = next((name for name, path in runs.items() if path.resolve() == baseline.resolve()), str(baseline))
    return runs if name in runs else {name: baseline, **runs}, name


def _parse_journals(options: Sequence[str], runs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the journals that are given with --journal, by the name of the run."""
    journals = {}
    for option in options:
        name = max((name for name in runs if option.startswith(f"{name}=")), key=len, default=None)
        if name is None:
            raise InputError(
                f"--journal {option} does not begin with one of the runs",
                f"write RUN=FILE, where RUN is one of {', '.join(runs)}",
            )
        journals[name] = Path(option[len(name) + 1 :])
    return journals


def _run_cost(args: argparse.Namespace, name: str, run_file: Path, journal: Path, required: bool) -> RunCost | None:
    """Return the cost of a run, if its journal can be read. A `required` journal must be readable."""
    try:
        cost = read_run_cost(journal, run_file)
    except JournalError as error:
        if required:
            raise
        print(f"{name}: the cost is not shown: {error}", file=sys.stderr)
        return None
    if cost is not None and (price := prices_for_model(args, cost.model)) is not None:
        cost.money = price.cost_of(cost.usage)
    return cost


def read_runs(run_files: Mapping[str, Path], collection: RequestedCollection) -> dict[str, Run]:
    """Return the runs by name, without documents that the data set excludes. Prints the number of these documents."""
    runs: dict[str, Run] = {}
    for name, path in run_files.items():
        run = RunWithoutExcluded(read_run(path).items(), collection.excluded)
        if excluded_count := run.count_excluded():
            print(
                f"{path}: {count_noun(excluded_count, 'document')} left out, because {collection.name} excludes them",
                file=sys.stderr,
            )
        runs[name] = dict(run)
    return runs


def _evaluate_preferences(args: argparse.Namespace) -> int:
    remedy = "leave it out, or run a separate command without --preferences"
    if args.runs:
        raise InputError("RUN has no effect with --preferences", remedy)
    run_options = (
        *("qrels", "dataset", "measures", "ties", "common_queries"),
        *("csv", "baseline", "report", "queries", "journal"),
    )
    reject_flags(args, run_options, "{flag} has no effect with --preferences", remedy)
    result = summarize_preferences(chain.from_iterable(map(read_judgments, args.preferences)))
    _print_result(result, preferences_text, args.json)
    return 0


def _print_result(result: Any, text: ModuleType, as_json: bool) -> None:
    """Print the notes of a result to standard error, and its JSON or its tables to standard output."""
    for line in text.notes(result):
        print(line, file=sys.stderr)
    if as_json:
        print(text.as_json(result))
    else:
        print_tables(text.tables(result))
