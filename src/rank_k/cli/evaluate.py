"""`rank-k evaluate`: what runs are worth by judgments, what they cost, and whether one is better than another; or which
of two people prefer.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rank_k.cli.collection_options import DATASET, find_named_collection
from rank_k.cli.output_files import check_output
from rank_k.cli.price_options import add_prices, prices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rank_k.data.collections.base import Collection
    from rank_k.evaluation.run_comparison import RunComparison
    from rank_k.evaluation.run_costs import RunCost
    from rank_k.types import Run

NAME = "evaluate"
HELP = "measure runs against judgments, and compare them"
EXAMPLE = "rank-k evaluate --qrels qrels.trec bm25.trec reranked.trec --baseline bm25.trec --report report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="TREC runs, or score.json files")
    parser.add_argument("--qrels", type=Path, metavar="FILE", help="TREC or BEIR judgments")
    parser.add_argument("--dataset", metavar="NAME", help=f"{DATASET}, whose judgments are used")
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
    add_prices(group)
    group = parser.add_argument_group(
        "people", "who preferred what; instead of runs and judgments; see docs/judging.md"
    )
    group.add_argument(
        "--preferences", nargs="+", type=Path, metavar="FILE", help="JSONL of the page Judge of rank-k serve"
    )


def run(args: argparse.Namespace) -> int:
    from rank_k.cli.render import evaluation_text
    from rank_k.errors import InputError

    if args.preferences is not None:
        return _preferences(args)
    if not args.runs:
        raise InputError("there is no run to evaluate", "name one or more, or --preferences FILE")
    named = _named(args)
    if args.csv is not None:
        check_output("--csv", args.csv, named.files)
    if args.report is not None:
        check_output("--report", args.report, (*named.files, *([args.csv] if args.csv else [])))

    assessment = _assessed(args, named, intervals=bool(named.baseline or args.json or args.report))
    for line in evaluation_text.notes(assessment):
        print(line, file=sys.stderr)
    if args.csv is not None:  # files first: whoever reads the output may have seen enough before its end
        with args.csv.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(evaluation_text.rows(assessment))
    if args.report is not None:
        args.report.write_text(_report(args, assessment, named), encoding="utf-8")
    if args.json:
        print(evaluation_text.as_json(assessment))
    else:
        print("\n".join(evaluation_text.lines(assessment)))
    return 0


def report_page(args: argparse.Namespace, links: Sequence[tuple[str, str, bool]] = ()) -> str:
    """What `--report` writes for these arguments. `links`: as `rank_k.reports.evaluation_report` takes them."""
    named = _named(args)
    return _report(args, _assessed(args, named, intervals=True), named, links)


@dataclass(frozen=True, slots=True)
class _Named:
    """What the arguments name. `runs`, `journals`: by the run's name. `baseline`: the name of one, or empty."""

    judgments: Path
    dataset: Collection | None
    runs: Mapping[str, Path]
    baseline: str
    journals: Mapping[str, Path]
    queries: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read, and must not be written over."""
        queries = [] if self.queries is None else [self.queries]
        return (self.judgments, *self.runs.values(), *self.journals.values(), *queries)


def _named(args: argparse.Namespace) -> _Named:
    from rank_k.errors import InputError

    dataset = find_named_collection(args.dataset) if args.dataset else None
    judgments = args.qrels or (None if dataset is None else dataset.qrels)
    if judgments is None:
        without = "" if dataset is None else f" ({args.dataset} has no judgments)"
        raise InputError(f"--qrels is missing{without}", f"give --qrels FILE, or --dataset with {DATASET}")
    paths, baseline = _runs(args)
    return _Named(judgments, dataset, paths, baseline, _journals(args, paths), args.queries)


def _assessed(args: argparse.Namespace, named: _Named, *, intervals: bool) -> RunComparison:
    from rank_k.data.trec import read_qrels
    from rank_k.errors import InputError
    from rank_k.evaluation.measures import DEFAULT_MEASURES
    from rank_k.evaluation.run_comparison import compare_runs

    judged = read_qrels(named.judgments)
    runs = read_runs(named.runs, named.dataset, args.dataset)
    for name, found in runs.items():
        if judged.keys().isdisjoint(found):
            raise InputError(
                f"none of the queries of {name} is judged in {named.judgments}", "give files that belong together"
            )
    return compare_runs(
        judged,
        runs,
        args.measures or DEFAULT_MEASURES,
        baseline=named.baseline,
        ties=args.ties or "file",
        costs={name: _cost(args, name, named.runs[name], file) for name, file in named.journals.items()},
        intervals=intervals,
    )


def _preferences(args: argparse.Namespace) -> int:
    from itertools import chain

    from rank_k.cli.render import preferences_text
    from rank_k.errors import InputError
    from rank_k.evaluation.preferences import preferences, read_judgments

    others = ("qrels", "dataset", "measures", "ties", "csv", "baseline", "report", "queries", "journal")
    given = ["RUN"] if args.runs else [f"--{name}" for name in others if getattr(args, name)]
    if given:
        raise InputError(f"--preferences has no use for {given[0]}", "leave it out, or give two commands")
    found = preferences(chain.from_iterable(map(read_judgments, args.preferences)))
    for line in preferences_text.notes(found):
        print(line, file=sys.stderr)
    print(preferences_text.as_json(found) if args.json else "\n".join(preferences_text.lines(found)))
    return 0


def _runs(args: argparse.Namespace) -> tuple[dict[str, Path], str]:
    """The runs by name, the baseline's among them, and its name."""
    paths = {str(path): path for path in args.runs}
    if args.baseline is None:
        return paths, ""
    here = args.baseline.resolve()
    for name, path in paths.items():
        if path.resolve() == here:
            return paths, name
    return {str(args.baseline): args.baseline, **paths}, str(args.baseline)


def read_runs(paths: Mapping[str, Path], dataset: Collection | None, dataset_name: str) -> dict[str, Run]:
    """The runs by name, less what the data set excludes, which is told."""
    from rank_k.data.collections.base import WithoutExcluded
    from rank_k.data.trec import read_run

    runs: dict[str, Run] = {}
    for name, path in paths.items():
        found = WithoutExcluded(read_run(path).items(), {} if dataset is None else dataset.excluded)
        if left_out := found.count():
            print(f"{path}: {left_out} documents that {dataset_name} excludes, left out", file=sys.stderr)
        runs[name] = dict(found)
    return runs


def _journals(args: argparse.Namespace, paths: Mapping[str, Path]) -> dict[str, Path]:
    """Where the journals of runs are: beside them, or where --journal says."""
    from rank_k.errors import InputError
    from rank_k.evaluation.run_costs import journal_beside

    found = {name: beside for name, path in paths.items() if (beside := journal_beside(path))}
    for given in args.journal or ():
        name = next((name for name in sorted(paths, key=len, reverse=True) if given.startswith(f"{name}=")), None)
        if name is None:
            raise InputError(
                f"--journal {given} names none of the runs", f"write RUN=FILE, RUN as you name it: {', '.join(paths)}"
            )
        found[name] = Path(given[len(name) + 1 :])
    return found


def _cost(args: argparse.Namespace, name: str, path: Path, journal: Path) -> RunCost | None:
    """What a run cost, and money where prices are given. A journal that was not asked for may be unreadable."""
    from rank_k.errors import JournalError
    from rank_k.evaluation.run_costs import run_cost

    try:
        cost = run_cost(journal, path)
    except JournalError as error:
        if any(given.startswith(f"{name}=") for given in args.journal or ()):
            raise
        print(f"{name}: without its cost: {error}", file=sys.stderr)
        return None
    if cost is None:
        return None
    price = prices(args, cost.model)
    return cost if price is None else replace(cost, money=price.of(cost.usage))


def _report(
    args: argparse.Namespace, assessment: RunComparison, named: _Named, links: Sequence[tuple[str, str, bool]] = ()
) -> str:
    from rank_k.data.queries import read_queries
    from rank_k.reports.evaluation_report import ReportOrigin, render_report

    file = named.queries or (None if named.dataset is None else named.dataset.queries)
    texts = {} if file is None else {query.query_id: query.text for query in read_queries(file).values()}
    return render_report(assessment, ReportOrigin(_command(args), str(named.judgments)), texts, links)


def _command(args: argparse.Namespace) -> str:
    """The command as it was given, for whoever wants to run it again."""
    words = ["rank-k", NAME, *map(str, args.runs)]
    for option in (
        "qrels",
        "dataset",
        "ties",
        "baseline",
        "queries",
        "price_in",
        "price_out",
        "price_file",
        "csv",
        "report",
    ):
        if (value := getattr(args, option)) is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    for given in args.journal or ():
        words += ["--journal", given]
    return shlex.join([*words, *(["--measures", *args.measures] if args.measures else [])])
