"""`rank-k study`: run a grid of settings on a collection with a model, and report quality and cost."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from rank_k.cli import resumable
from rank_k.cli.common_flags import DATASET_HELP, add_flags
from rank_k.cli.model_options import add_server_options
from rank_k.cli.progress import progress_bar
from rank_k.cli.render.evaluation_text import without_nan
from rank_k.cli.render.study_text import cell_listing, notes, tables
from rank_k.cli.render.tables import print_tables
from rank_k.cli.render.words import count_noun, format_seconds
from rank_k.cli.run_progress import show_progress
from rank_k.cli.study_options import add_axes, apply_server_options, connection_options, study_from_args
from rank_k.errors import ConnectionFailed, InputError, RankKError, RetriesExhausted
from rank_k.evaluation.measures import evaluate
from rank_k.journal import Journal
from rank_k.optional_deps import load
from rank_k.run_job import ShowProgress, no_progress
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, Study, expand_cells, restrict_study, select_cells
from rank_k.study.inputs import LoadedCollection, MissingFile, missing_files, reachable_cells
from rank_k.study.questions import QUESTIONS
from rank_k.study.report import write_study_report
from rank_k.study.results import StudyResults
from rank_k.study.runner import run_cell
from rank_k.study.table import FIRST_STAGE, write_cells, write_queries

_SIMULATE = {
    "nargs": "?",
    "const": Path(),
    "help": "rank with a simulated model that knows these relevance judgments (default: those of the collection)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the journal, runs, tables and report")
    group = parser.add_argument_group(
        "study", "a grid of your own settings, or a ready-made grid; see docs/how-to/study.md"
    )
    sources = group.add_mutually_exclusive_group()
    sources.add_argument(
        "--question",
        metavar="Q",
        choices=list(QUESTIONS),
        help=f"use a ready-made grid that answers a question; --list explains it: {', '.join(QUESTIONS)}",
    )
    sources.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file that defines the study, or rank-k-paper, which comes with Rank-K",
    )
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the data of the study (default: $RANK_K_DATA or .)"
    )
    group.add_argument(
        "--only", nargs="+", metavar="NAME", help="run only these collections, first stages, models or cells"
    )
    group.add_argument("--list", action="store_true", help="list the cells of the grid without running them")
    group = parser.add_argument_group("grid", "values separated by commas; every combination is a cell")
    add_axes(group)
    group = parser.add_argument_group("collection", "see docs/how-to/collections.md")
    group.add_argument("--dataset", nargs="+", metavar="NAME", help=DATASET_HELP)
    add_flags(group, "--queries", "--documents", "--qrels")
    group.add_argument(
        "--run", nargs="+", type=Path, metavar="FILE", help="first-stage runs; with several data sets, one run for each"
    )
    group.add_argument(
        "--query-fields",
        nargs="+",
        metavar="NAMES",
        help="fields of the queries to show to the model, such as title,description; several values are compared",
    )
    add_server_options(parser, simulation=_SIMULATE)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--baseline",
        metavar="CELL",
        help="cell with which the others are compared, or 'first stage' (default: the first cell)",
    )
    add_flags(group, "--measures", "--json", "--strict", "--quiet")


def run(args: argparse.Namespace) -> int:
    study = study_from_args(args)
    cells = select_cells(expand_cells(study), args.only or ())
    study = apply_server_options(args, restrict_study(study, cells))
    if args.list:
        print("\n".join(cell_listing(study, cells)))
        return 0
    if missing := list(missing_files(study)):
        _print_missing(missing)
        return 2
    return _run_study(args, study, cells)


def _run_study(args: argparse.Namespace, study: Study, cells: Sequence[Cell]) -> int:
    if args.output is None:
        raise InputError("--output is missing", "give a folder for the journal, runs and report")
    for module in ("ir_measures", "jinja2", "matplotlib", "scipy"):
        load(module)  # report a missing package before calls cost money
    connections = {model.name: connection_options(args, model) for model in study.models}
    folder = StudyFolder(args.output)
    with ExitStack() as stack:
        with progress_bar("indexing the documents", quiet=args.quiet) as update:
            collections = {c.name: stack.enter_context(LoadedCollection(c, update)) for c in study.collections}
            cells, requested = reachable_cells(cells, collections), cells
            for cell in requested:
                if cell not in cells:
                    print(
                        f"{cell.name}: left out, because a cell with a smaller depth already reranks all candidates",
                        file=sys.stderr,
                    )
            _check_inputs(study, cells, folder.cells, collections)
        fingerprints = {name: collection.fingerprints for name, collection in collections.items()}
        folder.register(fingerprints, study.models, cells)
        journal = stack.enter_context(closing(Journal(folder.journal)))
        write_results = partial(_write_results, args, study, collections, folder, journal)
        try:
            with resumable(folder.journal):
                _run_cells(args, study, cells, collections, connections, folder, journal)
        except (KeyboardInterrupt, RankKError):
            write_results(show=False)
            raise
        return write_results(show=True)


def _run_cells(
    args: argparse.Namespace,
    study: Study,
    cells: Sequence[Cell],
    collections: Mapping[str, LoadedCollection],
    connections: Mapping[str, Mapping[str, Any]],
    folder: StudyFolder,
    journal: Journal,
) -> None:
    """Run the cells that are not finished. If one fails, the error message says how many cells are finished."""
    for number, cell in enumerate(cells, 1):
        title = f"cell {number}/{len(cells)} {cell.name}: "
        model, collection, started = study.model(cell.model), collections[cell.collection], time.monotonic()
        status = "already finished"
        try:
            if not folder.is_finished(cell, journal):
                progress: ShowProgress = no_progress if args.quiet else show_progress(title)
                stats = run_cell(cell, collection, model, connections[cell.model], folder, progress)
                calls = f"{count_noun(stats.calls, 'call')} ({stats.calls - stats.new_calls:,} from the journal)"
                status = f"{count_noun(stats.queries, 'query')}, {calls}, {format_seconds(time.monotonic() - started)}"
        except RankKError as error:
            remedies = [error.remedy, "run the same command again to resume"]
            if model.serve and isinstance(error, ConnectionFailed | RetriesExhausted):
                remedies.insert(1, f"start the server: {model.serve}")
            problem = f"{cell.name}: {error.problem}; {number - 1} of {len(cells)} cells are finished in {folder.path}"
            raise RankKError(problem, "; ".join(filter(None, remedies))) from error
        if not args.quiet:
            print(title + status, file=sys.stderr)


def _write_results(
    args: argparse.Namespace,
    study: Study,
    collections: Mapping[str, LoadedCollection],
    folder: StudyFolder,
    journal: Journal,
    *,
    show: bool,
) -> int:
    """Write the tables and the report of the finished cells, and return the exit status. `show`: also print tables."""
    runs_of_study = {(c.name, f.name) for c in study.collections for f in c.first_stages}
    known_cells = [cell for cell in folder.cells if (cell.collection, cell.first_stage) in runs_of_study]
    finished = [cell for cell in known_cells if folder.is_finished(cell, journal)]
    if not finished:
        return 0
    if not any(study.baseline in (FIRST_STAGE, cell.setting, cell.name) for cell in finished):
        study = replace(study, baseline=None)  # the baseline is not finished yet
    unfinished = [cell.name for cell in known_cells if cell not in finished]
    results = StudyResults.collect(study, finished, collections, folder, journal, unfinished)
    write_cells(folder.path / "cells.csv", results.rows)
    write_queries(folder.path / "queries.csv", results.rows)
    write_study_report(folder.path / "report.html", results, args.command_line)
    if not show:
        return 0
    if args.json:
        print(json.dumps(without_nan(results.to_dict()), indent=2))
    else:
        print_tables(tables(results))
    print("\n".join([*notes(results), f"report: {folder.path / 'report.html'}"]), file=sys.stderr)
    return 3 if args.strict and any(row.cost.unranked for row in results.rows) else 0


def _check_inputs(
    study: Study, cells: Sequence[Cell], earlier_cells: Sequence[Cell], collections: Mapping[str, LoadedCollection]
) -> None:
    """Raise `InputError` for an unknown measure or baseline, or a missing text, before the first call.

    The baseline may also be one of `earlier_cells`, the cells of earlier commands.
    """
    settings = {cell.name: cell.setting for cell in (*cells, *earlier_cells)}
    if study.baseline not in (None, FIRST_STAGE, *settings, *settings.values()):
        choices = ", ".join(dict.fromkeys(settings.values()))
        raise InputError(
            f"there is no cell {study.baseline!r}",
            f"give {FIRST_STAGE!r}, the full name of a cell, or one of {choices}",
        )
    for name, first_stage in dict.fromkeys((cell.collection, cell.first_stage) for cell in cells):
        depth = max(cell.depth for cell in cells if (cell.collection, cell.first_stage) == (name, first_stage))
        evaluate(collections[name].qrels, collections[name].first_stage(first_stage), study.measures)
        collections[name].check_texts(first_stage, depth)


def _print_missing(missing: Sequence[MissingFile]) -> None:
    lines = [f"rank-k study: {count_noun(len(missing), 'file')} missing; --only NAME ... runs a part of the study"]
    for owner, items in groupby(missing, key=lambda item: item.owner):
        lines += ["", owner]
        for item in items:
            lines += [f"  {item.location}", *([f"    {item.get}"] if item.get else [])]
    print("\n".join(lines), file=sys.stderr)
