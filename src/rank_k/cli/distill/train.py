"""`rank-k distill train`: train a student on selected rows, with the settings of a recipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rank_k.cli.common_flags import add_flags, positive_int, positive_seconds
from rank_k.cli.render.words import count_noun, format_seconds
from rank_k.distill.recipes import RECIPES_FOLDER, Recipe, estimate_memory, read_recipe, recipe_names
from rank_k.distill.train import TrainingRun, is_main_process, train

_PRINT_SECONDS = 5
"""Seconds between two printed steps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="training rows from distill select")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder for checkpoints and the student"
    )
    parser.add_argument(
        "--recipe",
        required=True,
        metavar="NAME",
        help=f"recipe: {', '.join(recipe_names())}, or a TOML file",
    )
    parser.add_argument("--heldout", type=Path, metavar="FILE", help="held-out rows for evaluation during training")
    parser.add_argument(
        "--max-steps", type=positive_int, metavar="N", help="stop after N steps (default: after all epochs)"
    )
    parser.add_argument(
        "--time-limit",
        type=positive_seconds,
        metavar="S",
        help="stop after S seconds in total, including loading and earlier commands of the run",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="only print an estimate of the required memory, and do not train"
    )
    add_flags(parser, "--quiet")


def run(args: argparse.Namespace) -> int:
    recipe = read_recipe(args.recipe)
    if is_main_process() and (not args.quiet or args.estimate):
        print("\n".join(_memory_lines(recipe)), file=sys.stderr)
    if args.estimate:
        return 0
    on_record = (lambda record: None) if args.quiet else ProgressPrinter(args.time_limit)
    run = TrainingRun(args.data, recipe, args.output, args.heldout, args.max_steps, args.time_limit)
    trained = train(run, on_record)
    left_out = f"; {count_noun(trained.too_long, 'row')} longer than {recipe.training.max_length:,} tokens left out"
    if is_main_process():
        print(
            f"{args.output}: {count_noun(trained.steps, 'step')} in {format_seconds(trained.seconds)}"
            f" on {count_noun(trained.rows, 'row')}"
            f"{left_out if trained.too_long else ''}",
            file=sys.stderr,
        )
    return 0


def _memory_lines(recipe: Recipe) -> list[str]:
    sizes = estimate_memory(recipe)
    breakdown = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in sizes.items())
    lines = [f"{recipe.name}: about {sum(sizes.values()) / 1e9:,.1f} GB of memory on all devices ({breakdown})"]
    if recipe.launch:
        lines.append(
            "to train on several devices:"
            f" accelerate launch --config_file {RECIPES_FOLDER / recipe.launch} -m rank_k.cli ..."
        )
    if not recipe.verified:
        lines.append("this recipe has not been tested with the complete model: check the measures on held-out rows")
    return lines


class ProgressPrinter:
    """Prints records of training: the first and the last step, a step every few seconds, and held-out measures."""

    def __init__(self, time_limit: float | None) -> None:
        self._time_limit = time_limit
        self._steps = 0
        self._first_step = 0
        self._start_seconds = 0.0
        self._printed_seconds = 0.0

    def __call__(self, record: Mapping[str, Any]) -> None:
        if record.get("bf16_requested") and not record["bf16"]:
            print(
                "training in float32 instead of bfloat16, which the recipe requests but is slow on this machine",
                file=sys.stderr,
            )
        if "steps" in record:
            self._steps, self._first_step = record["steps"], record["step"]
            self._start_seconds = self._printed_seconds = record["seconds"]
            print(f"training: {count_noun(self._steps - self._first_step, 'step')}", file=sys.stderr)
        elif "heldout" in record:
            measures = record["heldout"].items()
            values = ", ".join(f"{name} {value:.3f}" for name, value in measures if isinstance(value, float))
            print(f"step {record['step']:,}, held-out rows: {values}", file=sys.stderr)
        elif "loss" in record:
            is_end = record["step"] in (self._first_step + 1, self._steps)
            if is_end or record["seconds"] - self._printed_seconds >= _PRINT_SECONDS:
                print(self._step_line(record), file=sys.stderr)
                self._printed_seconds = record["seconds"]

    def _step_line(self, record: Mapping[str, Any]) -> str:
        step_seconds = (record["seconds"] - self._start_seconds) / (record["step"] - self._first_step)
        seconds_left = (self._steps - record["step"]) * step_seconds
        if self._time_limit is not None:
            seconds_left = min(seconds_left, max(self._time_limit - record["seconds"], 0))
        return (
            f"step {record['step']:,}/{self._steps:,}, loss {record['loss']:.4f}, {step_seconds:.1f} s/step,"
            f" {format_seconds(seconds_left)} left"
        )
