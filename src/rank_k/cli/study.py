"""`rank-k study`: a grid of ways to rerank, on a real collection with a real model, through one journal."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_k.cli.collection import DATASET, index_progress
from rank_k.cli.model import add_replies, add_server, api_key, say_retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rank_k.engine import Tally
    from rank_k.evaluation.studies.folder import StudyFolder
    from rank_k.evaluation.studies.opened import Missing, Opened
    from rank_k.evaluation.studies.plan import Cell, Collection, ModelPlan, Study

NAME = "study"
HELP = "compare strategies, budgets, samples, depths and models on a collection: quality, tokens, rounds, seconds"
EXAMPLE = (
    "rank-k study --dataset beir:DIR --run bm25.trec --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B"
    " --strategies sliding,blocks --think off,500,full --output study"
)

_AXES = {
    "strategies": ("strategy", "S,...", "of rerank's, and the presets fast, balanced and thorough (sliding)"),
    "think": ("think", "T,...", "full, off, auto, reasoning tokens per window (full)"),
    "samples": ("samples", "K,...", "looks at each window (1)"),
    "depths": ("depth", "N,...", "candidates compared per query (100)"),
    "windows": ("window", "N,...", "passages shown at a time (20)"),
    "strides": ("stride", "N,...", "by which windows slide (10)"),
    "fuse": ("fuse", "A,...", "weight of the first stage's order, for blocks (1)"),
    "passage_tokens": ("passage_tokens", "N,...", "to which passages are cut (450)"),
    "splits": (
        "split",
        "S,...",
        "none, or TOKENS[:OVERLAP[:MOST]]: documents cut into passages, the best counts (none)",
    ),
}
"""Option -> the setting of a cell that it varies, and its help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help="journal, runs, tables and report go there")
    group = parser.add_argument_group("what to ask", "a grid of settings, or one that is ready; see docs/studies.md")
    group.add_argument(
        "--question",
        metavar="Q",
        choices=_questions(),
        help=f"a ready-made grid, which --list explains: {', '.join(_questions())}",
    )
    group.add_argument("--preset", metavar="NAME", help="a study that comes with the package: rank-k-paper")
    group.add_argument("--config", type=Path, metavar="FILE", help="a study in TOML")
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="where a preset's or FILE's data are ($RANK_K_DATA or .)"
    )
    group.add_argument("--only", nargs="+", metavar="NAME", help="collections, first stages, models or cells")
    group.add_argument("--list", action="store_true", help="show the cells, ask nothing")
    group = parser.add_argument_group("the grid", "values with commas between; every combination is a cell")
    for option, (_, values, told) in _AXES.items():
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
    group.add_argument("--noise", default="strong", choices=("none", "strong", "weak"), help="of the simulated judge")
    add_replies(parser.add_argument_group("asking"))
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
    from rank_k.cli.study_text import listing
    from rank_k.evaluation.studies.opened import missing
    from rank_k.evaluation.studies.plan import cells_of, chosen, restricted

    study = _study(args)
    cells = chosen(cells_of(study), args.only or ())
    study = _with_server(args, restricted(study, cells))
    if args.list:
        print("\n".join(listing(study, cells)))
        return 0
    if lacking := missing(study):
        _tell_missing(lacking)
        return 2
    return _run(args, study, cells)


def _run(args: argparse.Namespace, study: Study, cells: Sequence[Cell]) -> int:
    from rank_k.errors import InputError
    from rank_k.evaluation.studies.folder import StudyFolder
    from rank_k.evaluation.studies.opened import Opened, reachable
    from rank_k.extras import load
    from rank_k.journal import Journal

    if args.output is None:
        raise InputError("--output is missing", "name a folder for journal, runs and report")
    for module in ("ir_measures", "jinja2", "matplotlib", "scipy"):
        load(module)  # found out before the first call is paid
    reach = {model.name: _reach(args, model) for model in study.models}
    folder = StudyFolder(args.output)
    with ExitStack() as stack:
        progress = index_progress(args.quiet)
        opened = {c.name: stack.enter_context(Opened(c, progress)) for c in study.collections}
        cells = reachable(cells, opened)
        _check(study, cells, opened)
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
    opened: Mapping[str, Opened],
    reach: Mapping[str, Mapping[str, Any]],
    folder: StudyFolder,
    journal: Any,
) -> None:
    """Rerank what is not finished. Raises a `RankKError` that says how far one has come."""
    from rank_k.cli.progress import Progress, clock
    from rank_k.errors import GaveUp, RankKError, Unreachable
    from rank_k.evaluation.studies.running import rerank_cell

    for number, cell in enumerate(cells, 1):
        title = f"cell {number}/{len(cells)} {cell.name}: "
        if folder.is_finished(cell, journal):
            _say(args, f"{title}finished before")
            continue
        started = time.monotonic()

        def watch(tally: Callable[[], Tally], queries: int, title: str = title) -> AbstractContextManager[Any]:
            return Progress(tally, queries, quiet=args.quiet, title=title)

        model = study.model(cell.model)
        try:
            tally = rerank_cell(cell, opened[cell.collection], model, reach[cell.model], folder, watch)
        except RankKError as error:
            _answer(args, study, opened, folder, journal, whole=False)
            problem = f"{cell.name}: {error.problem}; {number - 1} of {len(cells)} cells are finished in {folder.path}"
            served = f"serve it: {model.serve}" if model.serve and isinstance(error, Unreachable | GaveUp) else ""
            remedy = "; ".join(filter(None, (error.remedy, served, "the same command goes on from there")))
            raise RankKError(problem, remedy) from error
        asked = f"{tally.calls:,} calls ({tally.calls - tally.asked:,} from the journal)"
        _say(args, f"{title}{tally.queries} queries, {asked}, {clock(time.monotonic() - started)}")


def _answer(
    args: argparse.Namespace,
    study: Study,
    opened: Mapping[str, Opened],
    folder: StudyFolder,
    journal: Any,
    *,
    whole: bool,
) -> int:
    """Write and show what is known by now. An answer that is not `whole` is written only."""
    from rank_k.cli.study_text import notes, tables
    from rank_k.evaluation.studies.answer import Answer
    from rank_k.evaluation.studies.page import write_page
    from rank_k.evaluation.studies.table import write_cells, write_queries

    mine = {(c.name, f.name) for c in study.collections for f in c.first_stages}
    known = [cell for cell in folder.cells if (cell.collection, cell.first_stage) in mine]
    finished = [cell for cell in known if folder.is_finished(cell, journal)]
    if not finished:
        return 0
    answer = Answer.of(study, finished, opened, folder, journal, [c.name for c in known if c not in finished])
    write_cells(folder.path / "cells.csv", answer.rows)
    write_queries(folder.path / "queries.csv", answer.rows)
    write_page(folder.path / "report.html", answer, _command(args))
    if not whole:
        return 0
    print(json.dumps(answer.told(), indent=2) if args.json else "\n".join(tables(answer)))
    print("\n".join([*notes(answer), f"report: {folder.path / 'report.html'}"]), file=sys.stderr)
    return 3 if args.strict and any(row.cost.unranked for row in answer.rows) else 0


def _check(study: Study, cells: Sequence[Cell], opened: Mapping[str, Opened]) -> None:
    """What can be found out before the first call: measures, the baseline's name, every text."""
    from rank_k.errors import InputError
    from rank_k.evaluation.measures import evaluate
    from rank_k.evaluation.studies.table import FIRST_STAGE

    some = opened[cells[0].collection]
    evaluate(some.qrels, {}, study.measures)
    known = dict.fromkeys(name for cell in cells for name in (cell.setting, cell.name))
    if study.baseline not in (None, FIRST_STAGE, *known):
        settings = ", ".join(dict.fromkeys(cell.setting for cell in cells))
        raise InputError(
            f"no cell is called {study.baseline!r}", f"write {FIRST_STAGE!r}, a cell's whole name or {settings}"
        )
    depths: dict[tuple[str, str], int] = {}
    for cell in cells:
        run = (cell.collection, cell.first_stage)
        depths[run] = max(cell.depth, depths.get(run, 0))
    for (collection, first_stage), depth in depths.items():
        opened[collection].check_texts(first_stage, depth)


def _command(args: argparse.Namespace) -> str:
    """The command that has the options of `args` that are not as they would be without it."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["rank-k", NAME]
    for action in parser._actions:
        value = getattr(args, action.dest, action.default)
        if value == action.default or action.dest == "help":
            continue
        values = value if isinstance(value, list | tuple) else [value]
        words += [action.option_strings[-1], *(str(one) for one in values if value is not True and one != Path())]
    return shlex.join(words)


def _say(args: argparse.Namespace, line: str) -> None:
    if not args.quiet:
        print(line, file=sys.stderr)


def _tell_missing(lacking: Sequence[Missing]) -> None:
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


# --- options -> study ------------------------------------------------------------------------------


def _questions() -> tuple[str, ...]:
    from rank_k.evaluation.studies.questions import QUESTIONS

    return tuple(QUESTIONS)


def _study(args: argparse.Namespace) -> Study:
    from rank_k.errors import InputError
    from rank_k.evaluation.studies.config import preset_file, read_study

    if args.simulate is not None and args.server is not None:
        raise InputError("--simulate and --server exclude each other", "leave one out")
    named = [option for option in ("question", "preset", "config") if getattr(args, option) is not None]
    if len(named) > 1:
        raise InputError(f"--{named[0]} and --{named[1]} exclude each other", "leave one out")
    if args.preset is None and args.config is None:
        return _from_options(args)
    of_options = (*_AXES, "dataset", "queries", "documents", "qrels", "run", "query_fields", "model", *_ASKED)
    for option in of_options:
        if getattr(args, option) not in (None, *_ASKED.get(option, ())):
            raise InputError(
                f"--{option.replace('_', '-')} and --{named[0]} exclude each other",
                "write a study of your own: --config FILE",
            )
    file = args.config or preset_file(args.preset)
    data = args.data or (
        Path(folder) if (folder := os.environ.get("RANK_K_DATA")) else file.parent if args.config else Path()
    )
    study = read_study(file, data)
    measures = tuple(args.measures) if args.measures else study.measures
    return replace(study, measures=measures, baseline=args.baseline or study.baseline)


_ASKED: dict[str, tuple[Any, ...]] = {
    "temperature": (0.5,),
    "top_p": (),
    "max_tokens": (),
    "constrain": ("auto",),
    "prompt": (),
}
"""Options of a cell that are no axes, with what they are if not given."""


def _from_options(args: argparse.Namespace) -> Study:
    from rank_k.evaluation.studies.plan import ModelPlan, Study, setting
    from rank_k.evaluation.studies.questions import QUESTIONS

    given = {axis: _values(args, option) for option, (axis, _, _) in _AXES.items() if getattr(args, option) is not None}
    parsed = {axis: [setting(axis, value) for value in values] for axis, values in given.items()}
    question = None if args.question is None else QUESTIONS[args.question]
    grids = ({},) if question is None else question.grids
    varied = {axis for grid in grids for axis in grid}
    grids = tuple({**grid, **{a: v for a, v in parsed.items() if a in grid or a not in varied}} for grid in grids)
    fixed = {axis: getattr(args, axis) for axis in ("max_tokens", "temperature", "top_p")}
    model = ModelPlan(
        _model_name(args),
        args.model,
        args.server,
        args.dialect,
        args.model_revision,
        args.context,
        args.prompt,
        args.api_key_env,
        settings={**fixed, "constrain": args.constrain == "auto"},
    )
    collections = _collections(args)
    title = f"Ways to rerank {', '.join(collection.name for collection in collections)}"
    return Study(
        title if question is None else question.title,
        collections,
        (model,),
        grids,
        "" if question is None else question.about,
        tuple(args.measures or ("nDCG@10",)),
        args.baseline,
        by_difficulty=question is not None and question.by_difficulty,
        by_round=question is not None and question.by_round,
    )


def _values(args: argparse.Namespace, option: str) -> list[str]:
    values = [value.strip() for value in getattr(args, option).split(",")]
    return [value for value in values if value] or [""]


def _model_name(args: argparse.Namespace) -> str:
    if args.simulate is not None:
        return "judge"
    if args.model:
        return str(args.model).rstrip("/").rpartition("/")[2]
    return "embedded" if args.server is None else "model"


def _collections(args: argparse.Namespace) -> tuple[Collection, ...]:
    """One for each data set and kind of query."""
    from rank_k.errors import InputError
    from rank_k.evaluation.studies.plan import Collection, FirstStage

    datasets: Sequence[str | None] = args.dataset or (None,)
    given: Sequence[Path] = args.run or ()
    kinds: Sequence[str | None] = args.query_fields or (None,)
    if len(datasets) > 1:
        for option in ("queries", "documents", "qrels"):
            if getattr(args, option) is not None:
                raise InputError(
                    f"--{option} cannot stand for several data sets", "write a study of your own: --config FILE"
                )
        if given and len(given) != len(datasets):
            raise InputError(
                f"{len(given)} runs for {len(datasets)} data sets", "give one --run for each, in their order"
            )
    found = []
    for number, dataset in enumerate(datasets):
        runs = given if len(datasets) == 1 else given[number : number + 1]
        first_stages = tuple(FirstStage(_run_name(file), file) for file in runs) or (FirstStage("own"),)
        for fields in kinds:
            name = _collection_name(dataset) + (f"-{fields}" if len(kinds) > 1 else "")
            found.append(Collection(name, first_stages, dataset, args.queries, args.documents, args.qrels, fields))
    for kind, names in (("data sets", [c.name for c in found]), ("runs", [f.name for f in found[0].first_stages])):
        if len(set(names)) < len(names):
            raise InputError(f"two {kind} are called alike ({', '.join(names)})", "rename one")
    return tuple(found)


def _collection_name(dataset: str | None) -> str:
    if dataset is None:
        return "collection"
    scheme, colon, place = dataset.partition(":")
    name = place.rstrip("/").rpartition("/")[2] if colon else dataset
    return f"bright-{name}" if scheme == "bright" else name


def _run_name(file: Path) -> str:
    name = re.sub(r"(\.(trec|txt|json|run|gz|zst))+$", "", file.name)
    return name.removeprefix("run.") or file.name


def _with_server(args: argparse.Namespace, study: Study) -> Study:
    """The study's models as --server and --simulate would have them reached."""
    from rank_k.errors import InputError

    if args.simulate is not None:
        judgments = args.simulate if args.simulate != Path() else None
        if judgments is not None and not judgments.exists():
            raise InputError(f"--simulate {judgments} is not there", "name a file of judgments, or none")
        models = (replace(model, simulate=args.noise, judgments=judgments, prompt=None) for model in study.models)
        return replace(study, models=tuple(models))
    if args.server is not None:
        if len(study.models) > 1:
            names = ", ".join(model.name for model in study.models)
            raise InputError(f"--server is one for {len(study.models)} models ({names})", "choose one with --only")
        return replace(study, models=tuple(replace(model, server=args.server) for model in study.models))
    return study


def _reach(args: argparse.Namespace, model: ModelPlan) -> dict[str, Any]:
    """How the model is reached, as options of `Reranker`."""
    told = {"concurrency": args.concurrency, "read_timeout": args.read_timeout, "on_retry": say_retry}
    if model.simulate:
        return {**told, "prompt": None}
    return {
        **told,
        "server": model.server,
        "api_key": api_key(model.server, args.api_key_env or model.api_key_env),
        "dialect": model.dialect,
        "revision": model.revision,
        "context": args.context or model.context,
        "prompt": model.prompt,
    }
