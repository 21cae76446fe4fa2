"""Prices of tokens, from options or from a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from rank_k.cli.common_flags import add_flags
from rank_k.errors import FormatError, InputError
from rank_k.types import Usage


class Prices(NamedTuple):
    """Prices per million tokens.

    Attributes:
        prompt: The price of prompt tokens.
        completion: The price of completion tokens.
        cached: The price of prompt tokens that the server read from its cache (default: the price of prompt tokens).
    """

    prompt: float
    completion: float
    cached: float | None = None

    def cost_of(self, usage: Usage) -> float:
        """Return the cost of these tokens."""
        cached_price = self.prompt if self.cached is None else self.cached
        uncached_tokens = max(usage.prompt_tokens - usage.cached_tokens, 0)
        prompt_cost = uncached_tokens * self.prompt + usage.cached_tokens * cached_price
        return (prompt_cost + usage.completion_tokens * self.completion) / 1e6


def add_price_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --price-in, --price-out and --price-file."""
    add_flags(parser, "--price-in", "--price-out")
    parser.add_argument(
        "--price-file",
        type=Path,
        metavar="FILE",
        help='prices by model, as JSON: {"model": {"in": 0.5, "out": 2, "cached": 0.1}, ...}',
    )


def prices_for_model(args: argparse.Namespace, model: str) -> Prices | None:
    """Return the prices for `model`; None if no option gives prices.

    Raises:
        InputError: If only one of the two prices is given, or --price-file has no prices for `model`.
        FormatError: If --price-file has the wrong format.
        OSError: If --price-file cannot be read.
    """
    if args.price_file is None:
        if args.price_in is None and args.price_out is None:
            return None
        if args.price_in is None or args.price_out is None:
            given, missing = ("--price-in", "--price-out") if args.price_out is None else ("--price-out", "--price-in")
            raise InputError(f"{given} is given without {missing}", "give both prices; a price can be 0")
        return Prices(args.price_in, args.price_out)
    try:
        table = json.loads(args.price_file.read_text(encoding="utf-8"))
        prices = table[model]
        cached = prices.get("cached")
        return Prices(float(prices["in"]), float(prices["out"]), None if cached is None else float(cached))
    except KeyError as error:
        raise InputError(
            f"--price-file {args.price_file} has no {error} for the model {model}", 'write {"in": ..., "out": ...}'
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(
            args.price_file,
            0,
            "the file does not map model names to prices",
            'for example {"model": {"in": 0.5, "out": 2}}',
        ) from error
