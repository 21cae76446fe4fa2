"""Flags for the options in `rank_k.options`, for all commands that use a model."""

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
    "help": "rank with a simulated model that knows these relevance judgments, instead of a real model",
}
"""The arguments of `add_argument` for --simulate."""

_VARIABLE_NAME = re.compile("[A-Z_][A-Z0-9_]*")


def add_options(
    group: argparse._ActionsContainer, options: Iterable[Option], defaults: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Add a flag for each of `options`.

    If a flag is not given, its parsed value is None. If None is a valid value of the option, there is no parsed value.

    Args:
        group: The parser or group to which the flags are added.
        options: The options.
        defaults: The defaults that differ from those in `rank_k.options`, by the name of the option.
    """
    for spec in options:
        default = defaults.get(spec.name, argparse.SUPPRESS if spec.is_nullable else None)
        help_text = spec.help if spec.name in defaults else spec.help_text
        group.add_argument(spec.flag, type=flag_type(spec.kind), default=default, metavar=spec.metavar, help=help_text)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the reranker that the user gave, by name."""
    return {
        name: value
        for name, value in vars(args).items()
        if name in OPTIONS and (value is not None or OPTIONS[name].is_nullable)
    }


def add_server_options(parser: argparse.ArgumentParser, simulation: Mapping[str, Any] | None = None) -> None:
    """Add --server, --model and the other options for the connection to a model.

    Args:
        parser: The parser of the command.
        simulation: Arguments of `add_argument` for --simulate that override the usual ones. If it is None, the command
            has neither --simulate nor --noise.
    """
    group = parser.add_argument_group("model")
    sources = group.add_mutually_exclusive_group()
    flags = options_of(ModelOptions)
    add_options(sources, [flags.pop("server")])
    group.add_argument(
        "--model",
        metavar="NAME",
        help="name of the model on the server; without --server, the name or path of embedded weights or of a distilled"
        " model (default: rank-k-nano)",
    )
    del flags["api_key"]
    group.add_argument(
        KEY_OPTION,
        metavar="NAME",
        help=f"environment variable that contains the API key of the server (default: {DEFAULT_KEY_VARIABLE})",
    )
    add_options(group, flags.values())
    if simulation is not None:
        sources.add_argument("--simulate", **{**_SIMULATE, **simulation})
        add_flags(group, "--noise")


def add_ranking_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `RankingOptions` and `InferenceOptions`, and --preset."""
    group = parser.add_argument_group("ranking", "distilled models have their own defaults")
    group.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="paper: the settings of the Rank-K paper; fast, balanced, thorough: 6, 7 or 12 windows per 100 passages,"
        " using --strategy blocks",
    )
    add_options(group, options_of(RankingOptions).values())
    add_inference_options(parser)


def add_inference_options(parser: argparse.ArgumentParser, defaults: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Add the options of `InferenceOptions`.

    Args:
        parser: The parser of the command.
        defaults: The defaults that differ from those in `rank_k.options`, by the name of the option.
    """
    add_options(parser.add_argument_group("inference"), options_of(InferenceOptions).values(), defaults)


def reranker_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `Reranker`, except model and journal.

    Raises:
        InputError: If a strategy MODULE:NAME cannot be imported, or the variable of the API key is not set.
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
    " price_in price_out price_file shard".split()
)
"""Flags that do not affect the calls. Commands that differ only in these flags resume the same run."""


def run_settings(args: argparse.Namespace, options: RerankOptions) -> dict[str, Any]:
    """Return the settings that identify a run in the journal.

    Args:
        args: The options of the command. The settings contain the options that affect the calls.
        options: The resolved options of the reranker, which the settings contain too.
    """
    flags = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    return {**flags, **options.settings(), "server_type": options.server_type, "revision": options.revision}


def api_key(server: str | None, variable: str | None) -> str | None:
    """Return the API key for `server`, or None.

    Args:
        server: The address of the server. OPENAI_API_KEY is only used for api.openai.com.
        variable: The environment variable given with --api-key-env (None: RANK_K_API_KEY).

    Raises:
        InputError: If `variable` is given but not set, or the key is malformed.
    """
    if variable is not None:
        return key_from_environment(variable)
    origin = urlsplit(base_url(server))[:2] if server is not None else None
    unset = DEFAULT_KEY_VARIABLE not in os.environ
    name = "OPENAI_API_KEY" if unset and origin == ("https", "api.openai.com") else DEFAULT_KEY_VARIABLE
    return key_from_environment(name) if os.environ.get(name) else None


def key_from_environment(variable: str, option: str = KEY_OPTION) -> str | None:
    """Return the key in an environment variable; None if it is blank.

    Args:
        variable: The name of the variable.
        option: The option with which the user gave the variable, for error messages.

    Raises:
        InputError: If the variable is not set, or the key is malformed.
    """
    if variable not in os.environ and not _VARIABLE_NAME.fullmatch(
        variable
    ):  # the message does not show the value, because it may be a key
        raise InputError(
            f"{option} takes the name of a variable, not a key", f"run: export KEY=..., and give {option} KEY"
        )
    if not os.environ.get(variable):
        raise InputError(f"the variable {variable} is not set", f"run: export {variable}=..., or leave {option} out")
    key = os.environ[variable].strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"the key in {variable} contains characters that are not printable ASCII", "copy the key again"
        )
    return key or None


def print_retry(error: Exception, wait: float) -> None:
    """Print the reason for a retry, if the next attempt is at least five seconds away.

    Args:
        error: The error of the failed call.
        wait: Seconds until the next attempt.
    """
    if wait >= 5:
        print(f"\nretrying in {wait:.0f} s: {getattr(error, 'problem', error)}", file=sys.stderr)


def import_strategies(strategies: Iterable[str]) -> None:
    """Import the strategies that are given as MODULE:NAME.

    The current folder is on the search path only during these imports, so no other module is imported from it.

    Raises:
        InputError: If a strategy cannot be imported.
    """
    for name in strategies:
        if ":" in name:
            search_path = sys.path
            sys.path = [*search_path, str(Path.cwd())]
            try:
                load_strategy_class(name)
            finally:
                sys.path = search_path
