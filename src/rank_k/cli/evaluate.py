"""`rank-k evaluate`: what runs are worth by judgments."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_k.cli.collection import DATASET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rank_k.evaluation.measures import Evaluation

NAME = "evaluate"
HELP = "measure runs against judgments"
EXAMPLE = "rank-k evaluate --qrels qrels.trec bm25.trec reranked.trec"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="TREC runs, or score.json files")
    parser.add_argument("--qrels", type=Path, metavar="FILE", help="TREC or BEIR judgments")
    parser.add_argument("--dataset", metavar="NAME", help=f"{DATASET}, whose judgments are used")
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="M",
        help="as ir_measures writes them (nDCG@10 nDCG@20 AP RR@10 R@100 Judged@10)",
    )
    parser.add_argument("--json", action="store_true", help="JSON with every query's values, on stdout")


def run(args: argparse.Namespace) -> int:
    from rank_k.cli.collection import collection
    from rank_k.data.collections import WithoutExcluded
    from rank_k.data.files import read_qrels, read_run
    from rank_k.errors import InputError
    from rank_k.evaluation.measures import DEFAULT_MEASURES, evaluate

    dataset = collection(args.dataset) if args.dataset else None
    file = args.qrels or (None if dataset is None else dataset.qrels)
    if file is None:
        without = "" if dataset is None else f" ({args.dataset} has no judgments)"
        raise InputError(f"--qrels is missing{without}", f"give --qrels FILE, or --dataset with {DATASET}")
    qrels = read_qrels(file)
    measures = args.measures or DEFAULT_MEASURES
    found: dict[str, Evaluation] = {}
    for path in args.runs:
        run = WithoutExcluded(read_run(path).items(), {} if dataset is None else dataset.excluded)
        if left_out := run.count():
            print(f"{path}: {left_out} documents that {args.dataset} excludes, left out", file=sys.stderr)
        found[str(path)] = evaluate(qrels, dict(run), measures)
    for path, evaluation in found.items():
        if evaluation.missing:
            named = ", ".join(evaluation.missing[:5])
            print(f"{path}: {len(evaluation.missing)} judged queries missing, counted as 0: {named}", file=sys.stderr)
        if evaluation.unjudged:
            print(f"{path}: {len(evaluation.unjudged)} queries without judgments, not counted", file=sys.stderr)
    if args.json:
        print(json.dumps({path: _told(evaluation) for path, evaluation in found.items()}, indent=2))
    else:
        print("\n".join(table({path: evaluation.means for path, evaluation in found.items()})))
    return 0


def _told(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "mean": dict(evaluation.means),
        "per_query": {measure: dict(values) for measure, values in evaluation.per_query.items()},
        "missing": list(evaluation.missing),
        "unjudged": list(evaluation.unjudged),
    }


def table(means: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines of a table with a row per run and a column per measure."""
    measures = list(next(iter(means.values()), {}))
    width = max(len(name) for name in ("run", *means))
    head = "run".ljust(width) + "".join(f"  {measure:>7}" for measure in measures)
    rows = [
        name.ljust(width) + "".join(f"  {values[measure]:{max(len(measure), 7)}.4f}" for measure in measures)
        for name, values in means.items()
    ]
    return [head, *rows]
