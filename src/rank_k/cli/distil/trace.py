"""`rank-k distil trace`: candidate sets in, a teacher's thoughts and orders into the journal."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rank_k.cli.model import NOISES, add_questions, add_server, asking_options
from rank_k.cli.prices import add_prices, prices

if TYPE_CHECKING:
    from rank_k.distil.sets import CandidateSet
    from rank_k.distil.trace import SetsUnderWay
    from rank_k.models.base import Model

NAME = "trace"
HELP = "ask a teacher about candidate sets; every call is kept, the same command goes on after an interruption"
EXAMPLE = (
    "rank-k distil trace --sets sets.jsonl --server https://teacher.example/v1 --model deepseek-reasoner --samples 4"
    " --journal traces.sqlite"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from rank_k.cli.rerank import tokens

    parser.add_argument("--sets", required=True, type=Path, nargs="+", metavar="FILE", help="what distil sample wrote")
    parser.add_argument("--journal", required=True, type=Path, metavar="FILE", help="where every call is kept")
    parser.add_argument(
        "--teacher", default="model", choices=("model", "labels"), help="a model, or verdicts made of the sets' grades"
    )
    group = add_server(parser)
    group.add_argument("--simulate", type=Path, metavar="QRELS", help="a simulated judge instead: plan before you pay")
    group.add_argument("--noise", default="none", metavar="NOISE", help=f"of the simulated judge: {NOISES}")
    add_questions(parser.add_argument_group("asking"), samples=4)
    group = parser.add_argument_group("labels as the teacher")
    group.add_argument(
        "--form", default="verdicts", choices=("verdicts", "order"), help="a verdict a passage as the thought, or none"
    )
    group.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json by which passages are cut (lengths estimated)"
    )
    group = parser.add_argument_group("spending")
    group.add_argument("--token-budget", type=tokens, metavar="N", help="stop asking after so many tokens, such as 2M")
    add_prices(group)
    group.add_argument("--quiet", action="store_true", help="no progress, no summary")


def run(args: argparse.Namespace) -> int:
    from rank_k.cli import summary
    from rank_k.cli.progress import Progress
    from rank_k.distil.trace import LARGEST, WHOLE_SET, SetsUnderWay, traced
    from rank_k.reranker import Reranker

    started = time.monotonic()
    options = asking_options(args)
    _check(args)
    total, tops = _looked_at(args.sets)  # a fault in the files comes before the first call is paid
    under_way = SetsUnderWay()
    model = _teacher(args, under_way, tops)
    if args.teacher == "labels":
        options |= {"samples": 1, "think": "full", "server": None}
    settings = {key: value for key, value in vars(args).items() if key not in _NOT_SETTINGS}
    asked = {
        "by": "comparison",
        "strategy": WHOLE_SET,
        "depth": LARGEST,
        **options,
    }  # a student may want more than that
    with Reranker(model or args.model, journal=args.journal, **asked) as reranker:
        try:
            reranker.prepare()
            price = prices(args, reranker.model.name)
            name = reranker.journal.begin_run(settings)
            with Progress(lambda: reranker.tally, total, quiet=args.quiet):
                rows = _sets(args.sets)
                for _ in traced(reranker, rows, under_way, token_budget=args.token_budget, run_name=name):
                    pass
        except KeyboardInterrupt:
            print(
                f"\nstopped; every finished call is in {args.journal}: the same command goes on from there",
                file=sys.stderr,
            )
            return 130
        if not args.quiet:
            print("\n".join(summary.lines(reranker.tally, time.monotonic() - started, price)), file=sys.stderr)
    return 0


_NOT_SETTINGS = frozenset(
    "verb quiet concurrency model_key_env read_timeout token_budget price_in price_out price_file".split()
)


def _check(args: argparse.Namespace) -> None:
    from rank_k.errors import InputError

    if args.teacher == "labels" and (args.server or args.model or args.simulate):
        raise InputError("--teacher labels asks no model", "leave --server, --model and --simulate out")
    if args.teacher != "labels" and (args.tokenizer or args.form != "verdicts"):
        raise InputError("--form and --tokenizer are for --teacher labels", "leave them out")
    if args.simulate is not None and args.server is not None:
        raise InputError("--simulate and --server exclude each other", "leave one out")
    if args.think == "auto":
        raise InputError("--think auto leaves some sets without a thought", "give full, off or a number of tokens")


def _sets(files: list[Path]) -> Iterator[CandidateSet]:
    from rank_k.distil.sets import read_sets

    return chain.from_iterable(map(read_sets, files))


def _looked_at(files: list[Path]) -> tuple[int, dict[str, int]]:
    """How many sets there are, and the highest grade of each source."""
    from rank_k.distil.labels import top_grades

    total = 0

    def counted() -> Iterator[CandidateSet]:
        nonlocal total
        for row in _sets(files):
            total += 1
            yield row

    tops = top_grades(counted())
    return total, tops


def _teacher(args: argparse.Namespace, under_way: SetsUnderWay, tops: dict[str, int]) -> Model | None:
    """The one that is no real model; None for one that is."""
    if args.teacher == "labels":
        from rank_k.distil.labels import LabelsTeacher

        return LabelsTeacher(under_way.set_of, tops, args.form, args.tokenizer)
    if args.simulate is not None:
        from rank_k.data.files import read_qrels
        from rank_k.distil.trace import JudgeOfSets
        from rank_k.models.noise_file import named_noise

        return JudgeOfSets(read_qrels(args.simulate), named_noise(args.noise), under_way.set_of)
    return None
