"""`rank-k distill`: from a teacher's traces to a student that reranks, one step a file."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

from rank_k.cli import add_verb

NAME = "distill"
HELP = "make a student: sample candidate sets, trace a teacher, select what to learn, train, export"
EXAMPLE = "rank-k distill sample --help"

STEPS = ("sample", "trace", "select", "train", "export")
"""In the order in which data flows. A step's module has what a verb's has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(title="steps", metavar="STEP", dest="step", required=True)
    for name in STEPS:
        add_verb(steps, name, _import_step(name))


def run(args: argparse.Namespace) -> int:
    code: int = _import_step(args.step).run(args)
    return code


def _import_step(name: str) -> ModuleType:
    return importlib.import_module(f"rank_k.cli.distill.{name}")
