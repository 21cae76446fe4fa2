"""`rank-k distill`: train a student on the reasoning traces of a teacher. Each step is a file of this package."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

from rank_k.cli import Command, add_command

STEPS = {
    "sample": Command(
        "sample sets of candidates from first-stage runs",
        "rank-k distill sample --runs bm25.trec splade.trec --queries queries.jsonl --documents corpus.jsonl.gz"
        " --queries-count 50000 --output sets.jsonl",
    ),
    "trace": Command(
        "rank the sets with a teacher and store its reasoning traces in a journal",
        "rank-k distill trace --sets sets.jsonl --server https://teacher.example/v1 --model deepseek-reasoner"
        " --samples 4 --journal traces.sqlite",
    ),
    "select": Command(
        "select traces from the journal as training rows of prompt and completion",
        "rank-k distill select --journal traces.sqlite --qrels qrels.trec --rule short --output sft.jsonl",
    ),
    "train": Command(
        "train a student on the rows; running the same command again resumes from the last checkpoint",
        "rank-k distill train --data sft.jsonl --heldout heldout.jsonl --recipe smollm2-135m --output student",
    ),
    "export": Command(
        "export the student as GGUF with its settings and model card, or as merged weights",
        "rank-k distill export --student student --adapter",
    ),
}
"""The steps, in the order in which they are run. The module of a step has the same functions as that of a
subcommand."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(title="steps", metavar="STEP", dest="step", required=True)
    for name, step in STEPS.items():
        add_command(steps, name, step, _import_step(name))


def run(args: argparse.Namespace) -> int:
    code: int = _import_step(args.step).run(args)
    return code


def _import_step(name: str) -> ModuleType:
    return importlib.import_module(f"rank_k.cli.distill.{name}")


def add_exclude_queries(group: argparse._ArgumentGroup) -> None:
    """Add the option that keeps evaluation queries out of training data."""
    group.add_argument(
        "--exclude-queries",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="evaluation queries; training queries that are identical or similar to one of them are left out",
    )
