"""Flags of the options in `rank_k.options`, shared by the commands that rerank."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from rank_k.cli.common_flags import add_flags, flag_type
from rank_k.errors import InputError
from rank_k.models.http import base_url
from rank_k.options import (
    OPTIONS,
    PRESETS,
    InferenceOptions,
    ModelOptions,
    Option,
    RankingOptions,
    RerankOptions,
    options_of,
)
from rank_k.strategies import load_strategy_class

DEFAULT_KEY_VARIABLE = "RANK_K_API_KEY"
KEY_OPTION = "--api-key-env"

_SIMULATE: Mapping[str, Any] = {
    "type": Path,
    "metavar": "QRELS",
    "help": "use a simulated model that knows these judgments, for planning",
}
"""How `add_argument` adds --simulate."""

_VARIABLE_NAME = re.compile("[A-Z_][A-Z0-9_]*")


def add_options(
    group: argparse._ActionsContainer, options: Iterable[Option], defaults: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Add the flags of `options`. `defaults`: by name, where a command has others than `rank_k.options`.

    A flag that is not given is None, or no attribute at all where None is a value of its own.
    """
    for spec in options:
        default = defaults.get(spec.name, argparse.SUPPRESS if spec.is_nullable else None)
        help_text = spec.help if spec.name in defaults else spec.help_text
        group.add_argument(spec.flag, type=flag_type(spec.kind), default=default, metavar=spec.metavar, help=help_text)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a reranker that were given, by name."""
    return {
        name: value
        for name, value in vars(args).items()
        if name in OPTIONS and (value is not None or OPTIONS[name].is_nullable)
    }


def add_server_options(parser: argparse.ArgumentParser, simulation: Mapping[str, Any] | None = None) -> None:
    """Add --server, --model and the other options of a model.

    Args:
        parser: The parser of the command.
        simulation: Arguments of `add_argument` for --simulate other than the usual ones. If None, there is neither
            --simulate nor --noise.
    """
    group = parser.add_argument_group("model")
    sources = group.add_mutually_exclusive_group()
    flags = options_of(ModelOptions)
    add_options(sources, [flags.pop("server")])
    group.add_argument(
        "--model",
        metavar="NAME",
        help="name of the model on the server; without a server, name or path of a distilled model or of weights"
        " (default: rank-k-nano)",
    )
    del flags["api_key"]
    group.add_argument(
        KEY_OPTION,
        metavar="NAME",
        help=f"environment variable with the key of the server (default: {DEFAULT_KEY_VARIABLE})",
    )
    add_options(group, flags.values())
    if simulation is not None:
        sources.add_argument("--simulate", **{**_SIMULATE, **simulation})
        add_flags(group, "--noise")


def add_ranking_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide the windows and how the model is asked about them."""
    group = parser.add_argument_group("ranking", "a distilled model has its own defaults")
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="the settings of the Rank-K paper, or the strategy blocks with 6 (fast), 7 (balanced) or 12 (thorough)"
        " windows per 100 passages",
    )
    add_options(group, options_of(RankingOptions).values())
    add_inference_options(parser)


def add_inference_options(parser: argparse.ArgumentParser, defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Add the options of how the model is asked about a window."""
    add_options(parser.add_argument_group("inference"), options_of(InferenceOptions).values(), defaults)


def reranker_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `Reranker`, without its model and journal.

    Raises:
        InputError: If a strategy of the user's own cannot be imported, or the key's variable is not set.
    """
    options = given_options(args)
    if "strategy" in options:
        import_strategies([options["strategy"]])
    return {
        **options,
        "preset": getattr(args, "preset", None),
        "api_key": api_key(args.server, args.api_key_env),
        "on_retry": print_retry,
    }


_NOT_SETTINGS = frozenset(
    "verb command_line quiet strict report concurrency api_key_env read_timeout max_seconds token_budget"
    " price_in price_out price_file".split()
)
"""Flags that do not change the calls: with others of them, it is the same run."""


def run_settings(args: argparse.Namespace, options: RerankOptions) -> dict[str, Any]:
    """Return the settings of a journal's run: the flags that decide its calls, and the resolved options."""
    flags = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    return {**flags, **options.settings(), "server_type": options.server_type, "revision": options.revision}


def api_key(server: str | None, variable: str | None) -> str | None:
    """Return the key for `server`. OPENAI_API_KEY is used for api.openai.com only; `variable`, if given,
    must be set."""

    if variable is not None:
        return key_from_environment(variable)
    origin = urlsplit(base_url(server))[:2] if server is not None else None
    unset = DEFAULT_KEY_VARIABLE not in os.environ
    name = "OPENAI_API_KEY" if unset and origin == ("https", "api.openai.com") else DEFAULT_KEY_VARIABLE
    return key_from_environment(name) if os.environ.get(name) else None


def key_from_environment(variable: str, option: str = KEY_OPTION) -> str | None:
    """The key in the environment variable `variable`, which must be set; None if it is blank. Raises `InputError`.

    `option`: the one by which the variable was named.
    """
    if variable not in os.environ and not _VARIABLE_NAME.fullmatch(variable):  # not shown: it may be the key itself
        raise InputError(f"{option} takes the name of a variable, not a key", f"export KEY=..., {option} KEY")
    if not os.environ.get(variable):
        raise InputError(f"the variable {variable} is not set", f"export {variable}=... or leave {option} out")
    key = os.environ[variable].strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key in {variable} holds characters that no key has", "copy it again")
    return key or None


def print_retry(error: Exception, wait: float) -> None:
    if wait >= 5:
        print(f"\nwaiting {wait:.0f} s: {getattr(error, 'problem', error)}", file=sys.stderr)


def import_strategies(strategies: Iterable[str]) -> None:
    """Import those that are a user's own, MODULE:NAME, from the current folder too: the installed command does not
    look there, and nothing but these is to be taken from it. Raises `InputError` if one cannot be."""

    for name in strategies:
        if ":" in name:
            search_path = sys.path
            sys.path = [*search_path, str(Path.cwd())]
            try:
                load_strategy_class(name)
            finally:
                sys.path = search_path
