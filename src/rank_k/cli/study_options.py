"""The options of `rank-k study`, and the study that they describe."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rank_k.cli.common_flags import reject_flags
from rank_k.cli.model_options import add_options, api_key, import_strategies, print_retry
from rank_k.errors import InputError
from rank_k.options import OPTIONS, STUDY_OPTIONS
from rank_k.simulation.noise_file import noise_by_name
from rank_k.study.config import config_file, read_study
from rank_k.study.grid import Collection, FirstStage, ModelPlan, Study, parse_setting
from rank_k.study.questions import QUESTIONS


def add_axes(group: argparse._ArgumentGroup) -> None:
    """Add a flag with several values for each axis of the grid, and --prompt."""
    for spec in STUDY_OPTIONS.values():
        group.add_argument(spec.flag, metavar=f"{spec.metavar},...", help=spec.help_text)
    add_options(group, [OPTIONS["prompt"]])


def study_from_args(args: argparse.Namespace) -> Study:
    """Return the study of --config, or else the study that the options describe.

    Raises:
        InputError: If an option is invalid, or contradicts a different option.
    """
    if args.config is None:
        return _study_from_options(args)
    collection_options = ("dataset", "queries", "documents", "qrels", "run", "query_fields")
    reject_flags(
        args,
        (*STUDY_OPTIONS, *collection_options, "prompt", "model"),
        "{flag} and --config exclude each other",
        "change the setting in the file that is given with --config",
    )
    file = config_file(args.config)
    is_user_file = file == args.config
    data = args.data or (
        Path(folder) if (folder := os.environ.get("RANK_K_DATA")) else file.parent if is_user_file else Path()
    )
    study = read_study(file, data)
    measures = tuple(args.measures) if args.measures else study.measures
    return replace(study, measures=measures, baseline=args.baseline or study.baseline)


def _study_from_options(args: argparse.Namespace) -> Study:
    import_strategies([] if args.strategy is None else _values(args, "strategy"))
    parsed = {
        axis: [parse_setting(axis, value) for value in _values(args, axis)]
        for axis in STUDY_OPTIONS
        if getattr(args, axis) is not None
    }
    question = None if args.question is None else QUESTIONS[args.question]
    grids = ({},) if question is None else question.grids
    varied = {axis for grid in grids for axis in grid}
    grids = tuple(
        {**grid, **{axis: values for axis, values in parsed.items() if axis in grid or axis not in varied}}
        for grid in grids
    )
    model = ModelPlan(
        _model_name(args),
        args.model,
        args.server,
        args.server_type or "auto",
        args.revision or "",
        args.context_length,
        args.prompt,
        args.api_key_env,
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
    """Return a collection for each data set and value of --query-fields."""
    datasets: Sequence[str | None] = args.dataset or (None,)
    run_files: Sequence[Path] = args.run or ()
    field_sets: Sequence[str | None] = args.query_fields or (None,)
    if len(datasets) > 1:
        reject_flags(
            args,
            ("queries", "documents", "qrels"),
            "{flag} cannot be used with several data sets",
            "write a study in TOML and give it with --config FILE",
        )
        if run_files and len(run_files) != len(datasets):
            raise InputError(
                f"there are {len(run_files)} runs for {len(datasets)} data sets",
                "give one run for each, in the same order",
            )
    collections = []
    for number, dataset in enumerate(datasets):
        runs = run_files if len(datasets) == 1 else run_files[number : number + 1]
        first_stages = tuple(FirstStage(_run_name(file), file) for file in runs) or (FirstStage("own"),)
        for fields in field_sets:
            name = _collection_name(dataset) + (f"-{fields}" if len(field_sets) > 1 else "")
            collections.append(
                Collection(name, first_stages, dataset, args.queries, args.documents, args.qrels, fields)
            )
    for label, names in (
        ("data sets", [c.name for c in collections]),
        ("runs", [f.name for f in collections[0].first_stages]),
    ):
        if len(set(names)) < len(names):
            raise InputError(f"two {label} have the same name ({', '.join(names)})", "rename one of them")
    return tuple(collections)


def _collection_name(dataset: str | None) -> str:
    if dataset is None:
        return "collection"
    scheme, colon, path = dataset.partition(":")
    name = path.rstrip("/").rpartition("/")[2] if colon else dataset
    return f"bright-{name}" if scheme == "bright" else name


def _run_name(file: Path) -> str:
    name = re.sub(r"(\.(trec|txt|json|run|gz|zst))+$", "", file.name)
    return name.removeprefix("run.") or file.name


def apply_server_options(args: argparse.Namespace, study: Study) -> Study:
    """Return the study with --server or --simulate applied to its models.

    Args:
        args: The options of the command.
        study: The study.

    Raises:
        InputError: If --simulate or --noise is invalid, or --server is given for several models.
    """
    if args.simulate is not None:
        qrels = args.simulate if args.simulate != Path() else None
        if qrels is not None and not qrels.exists():
            raise InputError(
                f"--simulate {qrels}: there is no such file",
                "give a file with relevance judgments, or --simulate alone to use those of the collection",
            )
        noise_by_name(args.noise)  # an error in --noise is reported now
        models = (replace(model, simulate=args.noise, judgments=qrels, prompt=None) for model in study.models)
        return replace(study, models=tuple(models))
    if args.server is not None:
        if len(study.models) > 1:
            names = ", ".join(model.name for model in study.models)
            raise InputError(
                f"--server cannot be used for {len(study.models)} models ({names})", "choose a model with --only"
            )
        return replace(study, models=tuple(replace(model, server=args.server) for model in study.models))
    return study


def connection_options(args: argparse.Namespace, model: ModelPlan) -> dict[str, Any]:
    """Return the options of `Reranker` for the connection to the model, and its prompt."""
    options = {"concurrency": args.concurrency, "read_timeout": args.read_timeout, "on_retry": print_retry}
    if model.simulate:
        return {**options, "prompt": None}
    return {
        **options,
        "server": model.server,
        "api_key": api_key(model.server, args.api_key_env or model.api_key_env),
        "server_type": model.server_type,
        "revision": model.revision,
        "context_length": args.context_length or model.context_length,
        "prompt": model.prompt,
    }
