"""`rank-k study`: a grid of ways to rerank, on a real collection with a real model, through one journal."""

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

from rank_k.cli import format_command
from rank_k.cli.collection_options import DATASET_HELP
from rank_k.cli.model_options import NOISE_HELP, add_server_options
from rank_k.cli.progress import format_seconds, progress_bar, show_progress
from rank_k.cli.render.evaluation_text import without_nan
from rank_k.cli.render.study_text import cell_listing, notes, tables
from rank_k.cli.render.tables import print_tables
from rank_k.cli.study_options import add_axes, apply_server_options, connection_options, study_from_args
from rank_k.errors import ConnectionFailed, InputError, RankKError, RetriesExhausted
from rank_k.evaluation.measures import evaluate
from rank_k.journal import Journal
from rank_k.optional_deps import load
from rank_k.study.folder import StudyFolder
from rank_k.study.grid import Cell, Study, expand_cells, restrict_study, select_cells
from rank_k.study.inputs import LoadedCollection, MissingFile, missing_files, reachable_cells
from rank_k.study.questions import QUESTIONS
from rank_k.study.report import write_study_report
from rank_k.study.results import StudyResults
from rank_k.study.runner import run_cell
from rank_k.study.table import FIRST_STAGE, write_cells, write_queries

EXAMPLE = (
    "rank-k study --dataset beir:DIR --run bm25.trec --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B"
    " --strategy sliding,blocks --reasoning off,500,full --output study"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help="journal, runs, tables and report go there")
    group = parser.add_argument_group(
        "what to ask", "a grid of settings, or one that is ready; see docs/how-to/study.md"
    )
    sources = group.add_mutually_exclusive_group()
    sources.add_argument(
        "--question",
        metavar="Q",
        choices=list(QUESTIONS),
        help=f"a ready-made grid, which --list explains: {', '.join(QUESTIONS)}",
    )
    sources.add_argument(
        "--config", type=Path, metavar="FILE", help="a study in TOML, or the one that comes with Rank-K: rank-k-paper"
    )
    group.add_argument("--data", type=Path, metavar="DIR", help="where the data of the study are ($RANK_K_DATA or .)")
    group.add_argument("--only", nargs="+", metavar="NAME", help="collections, first stages, models or cells")
    group.add_argument("--list", action="store_true", help="show the cells, ask nothing")
    group = parser.add_argument_group("the grid", "values with commas between; every combination is a cell")
    add_axes(group)
    group = parser.add_argument_group("collection", "see docs/how-to/collections.md")
    group.add_argument("--dataset", nargs="+", metavar="NAME", help=DATASET_HELP)
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
    group = add_server_options(parser)
    group.add_argument(
        "--simulate",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="QRELS",
        help="a simulated judge instead, by these judgments or the collection's",
    )
    group.add_argument("--noise", default="strong", metavar="NOISE", help=f"of the simulated judge: {NOISE_HELP}")
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
    study = study_from_args(args)
    cells = select_cells(expand_cells(study), args.only or ())
    study = apply_server_options(args, restrict_study(study, cells))
    if args.list:
        print("\n".join(cell_listing(study, cells)))
        return 0
    if missing := missing_files(study):
        _print_missing(missing)
        return 2
    return _run_study(args, study, cells)


def _run_study(args: argparse.Namespace, study: Study, cells: Sequence[Cell]) -> int:
    if args.output is None:
        raise InputError("--output is missing", "name a folder for journal, runs and report")
    for module in ("ir_measures", "jinja2", "matplotlib", "scipy"):
        load(module)  # reported before the first call is paid
    connections = {model.name: connection_options(args, model) for model in study.models}
    folder = StudyFolder(args.output)
    with ExitStack() as stack:
        with progress_bar("indexing the documents", quiet=args.quiet) as update:
            collections = {c.name: stack.enter_context(LoadedCollection(c, update)) for c in study.collections}
            cells, requested = reachable_cells(cells, collections), cells
            for cell in requested:
                if cell not in cells:
                    print(f"{cell.name}: left out: at less depth all candidates are compared already", file=sys.stderr)
            _check_inputs(study, cells, folder.cells, collections)
        fingerprints = {name: collection.fingerprints for name, collection in collections.items()}
        folder.register(fingerprints, study.models, cells)
        journal = stack.enter_context(closing(Journal(folder.journal)))
        write_results = partial(_write_results, args, study, collections, folder, journal)
        try:
            _run_cells(args, study, cells, collections, connections, folder, journal)
        except KeyboardInterrupt:
            write_results(show=False)
            print(f"\nstopped; every finished call is in {folder.journal}: the same command goes on", file=sys.stderr)
            return 130
        except RankKError:
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
    """Run the cells that are not finished. Raises `RankKError` with the number of those that are."""
    for number, cell in enumerate(cells, 1):
        title = f"cell {number}/{len(cells)} {cell.name}: "
        model, collection, started = study.model(cell.model), collections[cell.collection], time.monotonic()
        status = "finished before"
        try:
            if not folder.is_finished(cell, journal):
                progress = show_progress(args.quiet, title)
                stats = run_cell(cell, collection, model, connections[cell.model], folder, progress)
                calls = f"{stats.calls:,} calls ({stats.calls - stats.new_calls:,} from the journal)"
                status = f"{stats.queries} queries, {calls}, {format_seconds(time.monotonic() - started)}"
        except RankKError as error:
            remedies = [error.remedy, "the same command goes on from there"]
            if model.serve and isinstance(error, ConnectionFailed | RetriesExhausted):
                remedies.insert(1, f"serve it: {model.serve}")
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
    """Write the tables and the report of the finished cells; if `show`, also print them. Returns the exit status."""
    runs_of_study = {(c.name, f.name) for c in study.collections for f in c.first_stages}
    known_cells = [cell for cell in folder.cells if (cell.collection, cell.first_stage) in runs_of_study]
    finished = [cell for cell in known_cells if folder.is_finished(cell, journal)]
    if not finished:
        return 0
    if not any(study.baseline in (FIRST_STAGE, cell.setting, cell.name) for cell in finished):
        study = replace(study, baseline=None)  # it is not finished yet
    unfinished = [cell.name for cell in known_cells if cell not in finished]
    results = StudyResults.collect(study, finished, collections, folder, journal, unfinished)
    write_cells(folder.path / "cells.csv", results.rows)
    write_queries(folder.path / "queries.csv", results.rows)
    write_study_report(folder.path / "report.html", results, format_command("study", add_arguments, args))
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
    """Raise `InputError` for mistakes in the measures, the baseline or the texts, before the first call.

    The baseline may be one of `earlier_cells`, those of earlier commands.
    """

    settings = {cell.name: cell.setting for cell in (*cells, *earlier_cells)}
    if study.baseline not in (None, FIRST_STAGE, *settings, *settings.values()):
        choices = ", ".join(dict.fromkeys(settings.values()))
        raise InputError(
            f"no cell is called {study.baseline!r}", f"write {FIRST_STAGE!r}, a cell's whole name or {choices}"
        )
    for name, first_stage in dict.fromkeys((cell.collection, cell.first_stage) for cell in cells):
        depth = max(cell.depth for cell in cells if (cell.collection, cell.first_stage) == (name, first_stage))
        evaluate(collections[name].qrels, collections[name].first_stage(first_stage), study.measures)
        collections[name].check_texts(first_stage, depth)


def _print_missing(missing: Sequence[MissingFile]) -> None:
    lines = [f"rank-k study: {len(missing)} things are missing; --only NAME ... leaves parts of a study out"]
    for owner, items in groupby(missing, key=lambda item: item.owner):
        lines += ["", owner]
        for item in items:
            lines += [f"  {item.location}", *([f"    {item.get}"] if item.get else [])]
    print("\n".join(lines), file=sys.stderr)


def _question_names() -> tuple[str, ...]:
    return tuple(QUESTIONS)
