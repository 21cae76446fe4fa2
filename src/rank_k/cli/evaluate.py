"""`rank-k evaluate`: what runs are worth by judgments, what they cost, and whether one is better than another; or which
of two people prefer.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rank_k.cli import format_command
from rank_k.cli.collection_options import DATASET_HELP, find_named_collection
from rank_k.cli.output_files import check_outputs
from rank_k.cli.price_options import add_price_options, prices_for_model
from rank_k.errors import InputError, JournalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rank_k.data.collections.base import Collection
    from rank_k.evaluation.run_comparison import RunComparison
    from rank_k.evaluation.run_costs import RunCost
    from rank_k.types import Run

HELP = "measure runs against judgments, and compare them"
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
        "comparison", "paired by query, corrected for their number; see docs/evaluation.md"
    )
    group.add_argument("--baseline", type=Path, metavar="RUN", help="compare the others with this run")
    group.add_argument("--report", type=Path, metavar="FILE", help="one HTML page with tables and plots")
    group.add_argument("--queries", type=Path, metavar="FILE", help="texts of queries, for the report (the data set's)")
    group = parser.add_argument_group("cost", "from the journals of the runs; RUN.journal.sqlite is found by itself")
    group.add_argument("--journal", action="append", metavar="RUN=FILE", help="where a run's journal is")
    add_price_options(group)
    group = parser.add_argument_group(
        "people", "who preferred what; instead of runs and judgments; see docs/judging.md"
    )
    group.add_argument(
        "--preferences", nargs="+", type=Path, metavar="FILE", help="JSONL of the page Judge of rank-k serve"
    )


def run(args: argparse.Namespace) -> int:
    from rank_k.cli.render import evaluation_text

    if args.preferences is not None:
        return _evaluate_preferences(args)
    if not args.runs:
        raise InputError("there is no run to evaluate", "name one or more, or --preferences FILE")
    inputs = _resolve_inputs(args)
    check_outputs({"--csv": args.csv, "--report": args.report}, inputs.files)
    comparison = _compare(args, inputs, intervals=bool(inputs.baseline or args.json or args.report))
    for line in evaluation_text.notes(comparison):
        print(line, file=sys.stderr)
    if args.csv is not None:  # files first: whoever reads the output may have seen enough before its end
        with args.csv.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(evaluation_text.rows(comparison))
    if args.report is not None:
        args.report.write_text(_render_report(args, comparison, inputs), encoding="utf-8")
    if args.json:
        print(evaluation_text.as_json(comparison))
    else:
        print("\n".join(evaluation_text.lines(comparison)))
    return 0


def report_page(args: argparse.Namespace, links: Sequence[tuple[str, str, bool]] = ()) -> str:
    """What `--report` writes for these arguments. `links`: as `rank_k.reports.evaluation_report` takes them."""
    inputs = _resolve_inputs(args)
    return _render_report(args, _compare(args, inputs, intervals=True), inputs, links)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the arguments name. `runs`, `journals`: by the run's name. `baseline`: the name of one, or empty."""

    qrels: Path
    dataset: Collection | None
    runs: Mapping[str, Path]
    baseline: str
    journals: Mapping[str, Path]
    queries: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read, and must not be written over."""
        queries = [] if self.queries is None else [self.queries]
        return (self.qrels, *self.runs.values(), *self.journals.values(), *queries)


def _resolve_inputs(args: argparse.Namespace) -> _Inputs:
    dataset = find_named_collection(args.dataset) if args.dataset else None
    qrels = args.qrels or (None if dataset is None else dataset.qrels)
    if qrels is None:
        note = "" if dataset is None else f" ({args.dataset} has no judgments)"
        raise InputError(f"--qrels is missing{note}", f"give --qrels FILE, or --dataset with {DATASET_HELP}")
    run_files, baseline = _name_runs(args)
    return _Inputs(qrels, dataset, run_files, baseline, _find_journals(args, run_files), args.queries)


def _compare(args: argparse.Namespace, inputs: _Inputs, *, intervals: bool) -> RunComparison:
    from rank_k.data.trec import read_qrels
    from rank_k.evaluation.measures import DEFAULT_MEASURES
    from rank_k.evaluation.run_comparison import compare_runs

    qrels = read_qrels(inputs.qrels)
    runs = read_runs(inputs.runs, inputs.dataset, args.dataset)
    for name, run in runs.items():
        if qrels.keys().isdisjoint(run):
            raise InputError(
                f"none of the queries of {name} is judged in {inputs.qrels}", "give files that belong together"
            )
    return compare_runs(
        qrels,
        runs,
        args.measures or DEFAULT_MEASURES,
        baseline=inputs.baseline,
        ties=args.ties or "file",
        costs={name: _run_cost(args, name, inputs.runs[name], file) for name, file in inputs.journals.items()},
        intervals=intervals,
    )


def _evaluate_preferences(args: argparse.Namespace) -> int:
    from itertools import chain

    from rank_k.cli.render import preferences_text
    from rank_k.evaluation.preferences import read_judgments, summarize_preferences

    run_options = ("qrels", "dataset", "measures", "ties", "csv", "baseline", "report", "queries", "journal")
    ignored = ["RUN"] if args.runs else [f"--{name}" for name in run_options if getattr(args, name)]
    if ignored:
        raise InputError(f"--preferences has no use for {ignored[0]}", "leave it out, or give two commands")
    result = summarize_preferences(chain.from_iterable(map(read_judgments, args.preferences)))
    for line in preferences_text.notes(result):
        print(line, file=sys.stderr)
    print(preferences_text.as_json(result) if args.json else "\n".join(preferences_text.lines(result)))
    return 0


def _name_runs(args: argparse.Namespace) -> tuple[dict[str, Path], str]:
    """The runs by name, the baseline's among them, and its name."""
    run_files = {str(path): path for path in args.runs}
    if args.baseline is None:
        return run_files, ""
    baseline_path = args.baseline.resolve()
    for name, path in run_files.items():
        if path.resolve() == baseline_path:
            return run_files, name
    return {str(args.baseline): args.baseline, **run_files}, str(args.baseline)


def read_runs(run_files: Mapping[str, Path], dataset: Collection | None, dataset_name: str) -> dict[str, Run]:
    """The runs by name, less what the data set excludes, which is told."""
    from rank_k.data.collections.base import RunWithoutExcluded
    from rank_k.data.trec import read_run

    runs: dict[str, Run] = {}
    for name, path in run_files.items():
        run = RunWithoutExcluded(read_run(path).items(), {} if dataset is None else dataset.excluded)
        if excluded_count := run.count_excluded():
            print(f"{path}: {excluded_count} documents that {dataset_name} excludes, left out", file=sys.stderr)
        runs[name] = dict(run)
    return runs


def _find_journals(args: argparse.Namespace, run_files: Mapping[str, Path]) -> dict[str, Path]:
    """Where the journals of runs are: beside them, or where --journal says."""
    from rank_k.evaluation.run_costs import find_journal

    journals = {name: journal for name, path in run_files.items() if (journal := find_journal(path))}
    for option in args.journal or ():
        name = next((name for name in sorted(run_files, key=len, reverse=True) if option.startswith(f"{name}=")), None)
        if name is None:
            raise InputError(
                f"--journal {option} names none of the runs",
                f"write RUN=FILE, RUN as you name it: {', '.join(run_files)}",
            )
        journals[name] = Path(option[len(name) + 1 :])
    return journals


def _run_cost(args: argparse.Namespace, name: str, path: Path, journal: Path) -> RunCost | None:
    """What a run cost, and money where prices are given. A journal that was not asked for may be unreadable."""
    from rank_k.evaluation.run_costs import read_run_cost

    try:
        cost = read_run_cost(journal, path)
    except JournalError as error:
        if any(option.startswith(f"{name}=") for option in args.journal or ()):
            raise
        print(f"{name}: without its cost: {error}", file=sys.stderr)
        return None
    if cost is None:
        return None
    price = prices_for_model(args, cost.model)
    return cost if price is None else replace(cost, money=price.cost_of(cost.usage))


def _render_report(
    args: argparse.Namespace, comparison: RunComparison, inputs: _Inputs, links: Sequence[tuple[str, str, bool]] = ()
) -> str:
    from rank_k.data.queries import read_queries
    from rank_k.reports.evaluation_report import ReportOrigin, render_report

    queries_file = inputs.queries or (None if inputs.dataset is None else inputs.dataset.queries)
    texts = (
        {} if queries_file is None else {query.query_id: query.text for query in read_queries(queries_file).values()}
    )
    arguments = argparse.Namespace(**{**vars(args), "json": False})  # the page does not depend on it
    command = format_command("evaluate", add_arguments, arguments)
    return render_report(comparison, ReportOrigin(command, str(inputs.qrels)), texts, links)
