"""`rank-k distill export`: export a trained student as GGUF or as merged weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rank_k.distill.export import export_gguf, export_merged
from rank_k.distill.gguf_writer import QUANTIZATION_TYPES
from rank_k.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--student", required=True, type=Path, metavar="FOLDER", help="--output folder of distill train"
    )
    parser.add_argument(
        "--gguf", type=Path, metavar="FILE", help="file for the student (default: student.gguf in its folder)"
    )
    parser.add_argument(
        "--type",
        default="F16",
        choices=QUANTIZATION_TYPES,
        help="number format of the weights, unless --adapter is given",
    )
    parser.add_argument(
        "--adapter", action="store_true", help="export a LoRA adapter for the base weights instead of full weights"
    )
    parser.add_argument(
        "--name", default="", metavar="NAME", help="name of the student (default: the name of the recipe)"
    )
    parser.add_argument(
        "--merged",
        type=Path,
        metavar="FOLDER",
        help="export full weights in the format of transformers instead of GGUF",
    )


def run(args: argparse.Namespace) -> int:
    if args.gguf is not None and args.gguf.suffix != ".gguf":
        raise InputError(
            f"--gguf {args.gguf} does not end in .gguf", "add .gguf, because Rank-K recognizes weights by this ending"
        )
    if args.merged is not None:
        export_merged(args.student, args.merged)
        print(f"{args.merged}: merged weights", file=sys.stderr)
        return 0
    gguf = export_gguf(args.student, args.gguf, quantization=args.type, adapter=args.adapter, name=args.name)
    print(
        f"{gguf}: {gguf.stat().st_size / 1e6:,.1f} MB, with {gguf.stem}.json and {gguf.stem}.md\n"
        f"use it: rank-k rerank ... --model {gguf}",
        file=sys.stderr,
    )
    return 0
