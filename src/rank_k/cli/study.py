"""`rank-k study`: a grid of ways to rerank, on a real collection with a real model, through one journal."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_k.cli.collection_options import DATASET, index_progress
from rank_k.cli.model_options import NOISES, add_response_options, add_server
from rank_k.cli.study_options import AXES, reach_of, study_of, with_server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rank_k.engine import RunStats
    from rank_k.study.folder import StudyFolder
    from rank_k.study.grid import Cell, Study
    from rank_k.study.inputs import LoadedCollections, MissingFile

NAME = "study"
HELP = "compare strategies, budgets, samples, depths and models on a collection: quality, tokens, rounds, seconds"
EXAMPLE = (
    "rank-k study --dataset beir:DIR --run bm25.trec --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B"
    " --strategy sliding,blocks --reasoning off,500,full --output study"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help="journal, runs, tables and report go there")
    group = parser.add_argument_group("what to ask", "a grid of settings, or one that is ready; see docs/studies.md")
    group.add_argument(
        "--question",
        metavar="Q",
        choices=_questions(),
        help=f"a ready-made grid, which --list explains: {', '.join(_questions())}",
    )
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="a study in TOML, or the one that comes with Rank-K: rank-k-paper"
    )
    group.add_argument("--data", type=Path, metavar="DIR", help="where the data of the study are ($RANK_K_DATA or .)")
    group.add_argument("--only", nargs="+", metavar="NAME", help="collections, first stages, models or cells")
    group.add_argument("--list", action="store_true", help="show the cells, ask nothing")
    group = parser.add_argument_group("the grid", "values with commas between; every combination is a cell")
    for option, (_, values, told) in AXES.items():
        group.add_argument(f"--{option.replace('_', '-')}", metavar=values, help=told)
    group = parser.add_argument_group("collection", "see docs/collections.md")
    group.add_argument("--dataset", nargs="+", metavar="NAME", help=DATASET)
    group.add_argument("--queries", type=Path, metavar="FILE", help="JSONL (_id, text), TSV or TREC topics")
    group.add_argument("--documents", type=Path, metavar="FILE", help="JSONL (_id, title, text) or TSV")
    group.add_argument("--qrels", type=Path, metavar="FILE", help="TREC or BEIR judgments")
    group.add_argument("--run", nargs="+", type=Path, metavar="FILE", help="first stages, or one per --dataset")
    group.add_argument(
        "--query-fields",
        nargs="+",
        metavar="NAMES",
        help="what the model sees of a query; side by side if several",
    )
    group = add_server(parser)
    group.add_argument(
        "--simulate",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="QRELS",
        help="a simulated judge instead, by these judgments or the collection's",
    )
    group.add_argument("--noise", default="strong", metavar="NOISE", help=f"of the simulated judge: {NOISES}")
    add_response_options(parser.add_argument_group("asking"))
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--measures", nargs="+", metavar="M", help="as ir_measures writes them; the first counts (nDCG@10)"
    )
    group.add_argument(
        "--baseline", metavar="CELL", help="to which the others are compared (the first), or 'first stage'"
    )
    group.add_argument("--json", action="store_true", help="the tables as JSON, on stdout")
    group.add_argument("--strict", action="store_true", help="exit 3 if a window was left in input order")
    group.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    from rank_k.cli.render.study_text import listing
    from rank_k.study.grid import cells_of, restrict_grid, select_cells
    from rank_k.study.inputs import missing_files

    study = study_of(args)
    cells = select_cells(cells_of(study), args.only or ())
    study = with_server(args, restrict_grid(study, cells))
    if args.list:
        print("\n".join(listing(study, cells)))
        return 0
    if lacking := missing_files(study):
        _tell_missing(lacking)
        return 2
    return _run(args, study, cells)


def _run(args: argparse.Namespace, study: Study, cells: Sequence[Cell]) -> int:
    from rank_k.errors import InputError
    from rank_k.journal import Journal
    from rank_k.optional_deps import load
    from rank_k.study.folder import StudyFolder
    from rank_k.study.inputs import LoadedCollections, reachable

    if args.output is None:
        raise InputError("--output is missing", "name a folder for journal, runs and report")
    for module in ("ir_measures", "jinja2", "matplotlib", "scipy"):
        load(module)  # found out before the first call is paid
    reach = {model.name: reach_of(args, model) for model in study.models}
    folder = StudyFolder(args.output)
    with ExitStack() as stack:
        progress = index_progress(args.quiet)
        opened = {c.name: stack.enter_context(LoadedCollections(c, progress)) for c in study.collections}
        cells, wanted = reachable(cells, opened), cells
        for cell in wanted:
            if cell not in cells:
                print(f"{cell.name}: left out: at less depth all candidates are compared already", file=sys.stderr)
        _check(study, cells, folder.cells, opened)
        folder.admit({name: of.fingerprints for name, of in opened.items()}, study.models, cells)
        journal = stack.enter_context(closing(Journal(folder.journal)))
        try:
            _ask(args, study, cells, opened, reach, folder, journal)
        except KeyboardInterrupt:
            _answer(args, study, opened, folder, journal, whole=False)
            print(f"\nstopped; every finished call is in {folder.journal}: the same command goes on", file=sys.stderr)
            return 130
        return _answer(args, study, opened, folder, journal, whole=True)


def _ask(
    args: argparse.Namespace,
    study: Study,
    cells: Sequence[Cell],
    opened: Mapping[str, LoadedCollections],
    reach: Mapping[str, Mapping[str, Any]],
    folder: StudyFolder,
    journal: Any,
) -> None:
    """Rerank what is not finished. Raises a `RankKError` that says how far one has come."""
    from rank_k.cli.progress import Progress, format_seconds
    from rank_k.errors import ConnectionFailed, RankKError, RetriesExhausted
    from rank_k.study.runner import run_cell

    for number, cell in enumerate(cells, 1):
        title = f"cell {number}/{len(cells)} {cell.name}: "
        if folder.is_finished(cell, journal):
            _say(args, f"{title}finished before")
            continue
        started = time.monotonic()

        def watch(tally: Callable[[], RunStats], queries: int, title: str = title) -> AbstractContextManager[Any]:
            return Progress(tally, queries, quiet=args.quiet, title=title)

        model = study.model(cell.model)
        try:
            tally = run_cell(cell, opened[cell.collection], model, reach[cell.model], folder, watch)
        except RankKError as error:
            _answer(args, study, opened, folder, journal, whole=False)
            problem = f"{cell.name}: {error.problem}; {number - 1} of {len(cells)} cells are finished in {folder.path}"
            served = (
                f"serve it: {model.serve}"
                if model.serve and isinstance(error, ConnectionFailed | RetriesExhausted)
                else ""
            )
            remedy = "; ".join(filter(None, (error.remedy, served, "the same command goes on from there")))
            raise RankKError(problem, remedy) from error
        asked = f"{tally.calls:,} calls ({tally.calls - tally.new_calls:,} from the journal)"
        _say(args, f"{title}{tally.queries} queries, {asked}, {format_seconds(time.monotonic() - started)}")


def _answer(
    args: argparse.Namespace,
    study: Study,
    opened: Mapping[str, LoadedCollections],
    folder: StudyFolder,
    journal: Any,
    *,
    whole: bool,
) -> int:
    """Write and show what is known by now. An answer that is not `whole` is written only."""
    from rank_k.cli.render.evaluation_text import without_nan
    from rank_k.cli.render.study_text import notes, tables
    from rank_k.reports.study_report import write_page
    from rank_k.study.results import StudyResults
    from rank_k.study.table import FIRST_STAGE, write_cells, write_queries

    mine = {(c.name, f.name) for c in study.collections for f in c.first_stages}
    known = [cell for cell in folder.cells if (cell.collection, cell.first_stage) in mine]
    finished = [cell for cell in known if folder.is_finished(cell, journal)]
    if not finished:
        return 0
    if not any(study.baseline in (FIRST_STAGE, cell.setting, cell.name) for cell in finished):
        study = replace(study, baseline=None)  # it is not finished yet
    answer = StudyResults.of(study, finished, opened, folder, journal, [c.name for c in known if c not in finished])
    write_cells(folder.path / "cells.csv", answer.rows)
    write_queries(folder.path / "queries.csv", answer.rows)
    write_page(folder.path / "report.html", answer, _command(args))
    if not whole:
        return 0
    print(json.dumps(without_nan(answer.told()), indent=2) if args.json else "\n".join(tables(answer)))
    print("\n".join([*notes(answer), f"report: {folder.path / 'report.html'}"]), file=sys.stderr)
    return 3 if args.strict and any(row.cost.unranked for row in answer.rows) else 0


def _check(study: Study, cells: Sequence[Cell], asked: Sequence[Cell], opened: Mapping[str, LoadedCollections]) -> None:
    """What can be found out before the first call: measures, the baseline's name, every text. `asked`: cells of earlier
    commands, one of which may be the baseline."""
    from rank_k.errors import InputError
    from rank_k.evaluation.measures import evaluate
    from rank_k.study.table import FIRST_STAGE

    known = (*cells, *asked)
    if study.baseline not in (None, FIRST_STAGE, *(name for cell in known for name in (cell.setting, cell.name))):
        settings = ", ".join(dict.fromkeys(cell.setting for cell in known))
        raise InputError(
            f"no cell is called {study.baseline!r}", f"write {FIRST_STAGE!r}, a cell's whole name or {settings}"
        )
    depths: dict[tuple[str, str], int] = {}
    for cell in cells:
        run = (cell.collection, cell.first_stage)
        depths[run] = max(cell.depth, depths.get(run, 0))
    for (collection, first_stage), depth in depths.items():
        of = opened[collection]
        evaluate(of.qrels, of.first_stage(first_stage), study.measures)
        of.check_texts(first_stage, depth)


def _command(args: argparse.Namespace) -> str:
    """The command that was given, less what is so without saying."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {action.dest: action for action in parser._actions}
    words = ["rank-k", NAME]
    for name, default in vars(parser.parse_args([])).items():
        value, option = getattr(args, name), options[name]
        if value != default:
            words.append(option.option_strings[0])
            if value != option.const or option.const is None:  # which stands for the option without a value
                words += [
                    "none" if one is None else str(one) for one in (value if isinstance(value, list) else [value])
                ]
    return shlex.join(words)


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        print(line, file=sys.stderr)


def _tell_missing(lacking: Sequence[MissingFile]) -> None:
    print(
        f"rank-k study: {len(lacking)} things are missing; --only NAME ... leaves parts of a study out", file=sys.stderr
    )
    owner = ""
    for lack in lacking:
        if lack.owner != owner:
            owner = lack.owner
            print(f"\n{owner}", file=sys.stderr)
        print(f"  {lack.place}", file=sys.stderr)
        if lack.get:
            print(f"    {lack.get}", file=sys.stderr)


def _questions() -> tuple[str, ...]:
    from rank_k.study.questions import QUESTIONS

    return tuple(QUESTIONS)
