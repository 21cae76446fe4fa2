"""`rank-k distill export`: a trained student as something that can be loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rank_k.distill.export import export_gguf, export_merged
from rank_k.distill.gguf_writer import QUANTIZATION_TYPES
from rank_k.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--student", required=True, type=Path, metavar="FOLDER", help="the --output of distill train")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="where to (student.gguf in that folder)")
    parser.add_argument("--type", default="F16", choices=QUANTIZATION_TYPES, help="how whole weights are stored")
    parser.add_argument(
        "--adapter", action="store_true", help="a LoRA adapter for the weights trained on, not the whole"
    )
    parser.add_argument("--name", default="", metavar="NAME", help="what it is called (as the recipe)")
    parser.add_argument("--merged", type=Path, metavar="FOLDER", help="whole weights in transformers' format instead")


def run(args: argparse.Namespace) -> int:
    if args.gguf is not None and args.gguf.suffix != ".gguf":
        raise InputError(f"--gguf {args.gguf} has no .gguf at its end", "add it: that is how weights are told")
    if args.merged is not None:
        export_merged(args.student, args.merged)
        print(f"{args.merged}: merged weights", file=sys.stderr)
        return 0
    gguf = export_gguf(args.student, args.gguf, quantization=args.type, adapter=args.adapter, name=args.name)
    print(
        f"{gguf}: {gguf.stat().st_size / 1e6:,.1f} MB, with {gguf.stem}.json and {gguf.stem}.md\n"
        f"rank-k rerank ... --model {gguf}",
        file=sys.stderr,
    )
    return 0
