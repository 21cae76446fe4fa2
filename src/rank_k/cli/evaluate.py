"""`rank-k evaluate`: quality of runs by judgments, their costs, and tests of differences; or preferences of people."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from rank_k.cli import format_command
from rank_k.cli.collection_options import DATASET_HELP, RequestedCollection
from rank_k.cli.output_files import check_outputs
from rank_k.cli.price_options import Prices, add_price_options, prices_for_model
from rank_k.cli.render import evaluation_text, preferences_text
from rank_k.cli.render.tables import print_tables
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

EXAMPLE = "rank-k evaluate --qrels qrels.trec bm25.trec reranked.trec --baseline bm25.trec --report report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="TREC runs, or score.json files")
    parser.add_argument("--qrels", type=Path, metavar="FILE", help="TREC or BEIR judgments")
    parser.add_argument("--dataset", metavar="NAME", help=f"{DATASET_HELP}, whose judgments are used")
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="M",
        help="as ir_measures writes them (nDCG@10 nDCG@20 AP RR@10 R@100 Judged@10), the one that counts most first",
    )
    parser.add_argument(
        "--ties",
        choices=("file", "trec_eval"),
        help="equal scores: in the order of the file (the default), or by descending id as in trec_eval",
    )
    parser.add_argument("--json", action="store_true", help="JSON with every query's values, on stdout")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a line for each run, measure and query")
    group = parser.add_argument_group(
        "comparison", "paired by query, corrected for their number; see docs/how-to/evaluate.md"
    )
    group.add_argument("--baseline", type=Path, metavar="RUN", help="compare the others with this run")
    group.add_argument("--report", type=Path, metavar="FILE", help="one HTML page with tables and plots")
    group.add_argument("--queries", type=Path, metavar="FILE", help="texts of queries, for the report (the data set's)")
    group = parser.add_argument_group("cost", "from the journals of the runs; RUN.journal.sqlite is found by itself")
    group.add_argument("--journal", action="append", metavar="RUN=FILE", help="where a run's journal is")
    add_price_options(group)
    group = parser.add_argument_group(
        "people", "who preferred what; instead of runs and judgments; see docs/how-to/judging.md"
    )
    group.add_argument(
        "--preferences", nargs="+", type=Path, metavar="FILE", help="JSONL of the page Judge of rank-k serve"
    )


def run(args: argparse.Namespace) -> int:
    if args.preferences is not None:
        return _evaluate_preferences(args)
    if not args.runs:
        raise InputError("there is no run to evaluate", "name one or more, or --preferences FILE")
    comparison, render_report = _evaluate(args, intervals=bool(args.baseline or args.json or args.report))
    if args.csv is not None:  # files first: a reader of the output may close it before its end
        with args.csv.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(evaluation_text.rows(comparison))
    if args.report is not None:
        args.report.write_text(render_report(), encoding="utf-8")
    _print_result(comparison, evaluation_text, args.json)
    return 0


def report_page(args: argparse.Namespace, links: Sequence[tuple[str, str, bool]] = ()) -> str:
    """Return what `--report` writes for these arguments. `links`: as `rank_k.reports.evaluation_report` takes them."""
    _, render_report = _evaluate(args, intervals=True)
    return render_report(links=links)


def _evaluate(args: argparse.Namespace, *, intervals: bool) -> tuple[RunComparison, Callable[..., str]]:
    """Return the comparison of the runs that `args` names, and a function that renders its report.

    Raises `InputError` for files that do not belong together.
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
                f"none of the queries of {name} is judged in {qrels_file}", "give files that belong together"
            )
    comparison = compare_runs(
        qrels,
        runs,
        args.measures or DEFAULT_MEASURES,
        baseline=baseline,
        ties=args.ties or "file",
        costs={
            name: _run_cost(name, run_files[name], journal, name in named_journals, partial(prices_for_model, args))
            for name, journal in journals.items()
        },
        intervals=intervals,
    )
    # The command is to be run again for its files, not for its output to the terminal.
    command = format_command("evaluate", add_arguments, argparse.Namespace(**{**vars(args), "json": False}))
    return comparison, partial(_render_report, comparison, ReportOrigin(command, str(qrels_file)), collection)


def _render_report(
    comparison: RunComparison,
    origin: ReportOrigin,
    collection: RequestedCollection,
    links: Sequence[tuple[str, str, bool]] = (),
) -> str:
    queries_file = collection.find_file("queries")
    queries = {} if queries_file is None else read_queries(queries_file)
    texts = {query_id: query.text for query_id, query in queries.items()}
    return render_report(comparison, origin, texts, links)


def _name_runs(paths: Sequence[Path], baseline: Path | None) -> tuple[dict[str, Path], str]:
    """Return the runs by name, the baseline's among them, and its name."""
    runs = {str(path): path for path in paths}
    if baseline is None:
        return runs, ""
    name = next((name for name, path in runs.items() if path.resolve() == baseline.resolve()), str(baseline))
    return runs if name in runs else {name: baseline, **runs}, name


def _parse_journals(options: Sequence[str], runs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the journals that --journal names, by run."""
    journals = {}
    for option in options:
        name = max((name for name in runs if option.startswith(f"{name}=")), key=len, default=None)
        if name is None:
            raise InputError(
                f"--journal {option} names none of the runs",
                f"write RUN=FILE, RUN as you name it: {', '.join(runs)}",
            )
        journals[name] = Path(option[len(name) + 1 :])
    return journals


def _run_cost(
    name: str, run_file: Path, journal: Path, required: bool, prices: Callable[[str], Prices | None]
) -> RunCost | None:
    """Return the cost of a run, with money where prices are given. Only a `required` journal must be readable."""
    try:
        cost = read_run_cost(journal, run_file)
    except JournalError as error:
        if required:
            raise
        print(f"{name}: without its cost: {error}", file=sys.stderr)
        return None
    if cost is not None and (price := prices(cost.model)) is not None:
        cost.money = price.cost_of(cost.usage)
    return cost


def read_runs(run_files: Mapping[str, Path], collection: RequestedCollection) -> dict[str, Run]:
    """Return the runs by name, without the documents that the data set excludes, whose number is printed."""
    runs: dict[str, Run] = {}
    for name, path in run_files.items():
        run = RunWithoutExcluded(read_run(path).items(), collection.excluded)
        if excluded_count := run.count_excluded():
            print(f"{path}: {excluded_count} documents that {collection.name} excludes, left out", file=sys.stderr)
        runs[name] = dict(run)
    return runs


def _evaluate_preferences(args: argparse.Namespace) -> int:
    run_options = ("qrels", "dataset", "measures", "ties", "csv", "baseline", "report", "queries", "journal")
    ignored = ["RUN"] if args.runs else [f"--{name}" for name in run_options if getattr(args, name)]
    if ignored:
        raise InputError(f"--preferences has no use for {ignored[0]}", "leave it out, or give two commands")
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
