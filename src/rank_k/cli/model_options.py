"""The options that name a model and say how it is asked, shared by the verbs that ask one."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rank_k.models.base import Model
    from rank_k.strategies.base import Strategy

DEFAULT_KEY_VARIABLE = "RANK_K_API_KEY"
KEY_OPTION = "--api-key-env"

NOISE_HELP = "none, strong, weak, or a FILE from rank-k journal fit-noise"

_VARIABLE_NAME = re.compile("[A-Z_][A-Z0-9_]*")


def add_server_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --server, --model and what belongs to them."""
    group = parser.add_argument_group("model")
    group.add_argument("--server", metavar="URL", help="OpenAI-compatible server; without it, the embedded model")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="its name on the server; embedded, a student or weights by name or path (rank-k-nano)",
    )
    key_help = f"variable that holds the API key ({DEFAULT_KEY_VARIABLE})"
    group.add_argument(KEY_OPTION, metavar="NAME", help=key_help)
    group.add_argument("--server-type", default="auto", metavar="NAME", help="kind of server, see docs/servers.md")
    group.add_argument(
        "--context-length", type=positive_int, metavar="TOKENS", help="its context, where the server does not say"
    )
    group.add_argument("--model-revision", default="", metavar="TEXT", help="tells weights of one name apart")
    return group


def add_method(group: argparse._ActionsContainer) -> None:
    """--method: what is ranked by."""
    group.add_argument(
        "--method",
        choices=("listwise", "likelihood", "combined"),
        help="of passages, or of the query after each one (see docs/embedded.md), or both; a student has its own."
        " Likelihood is the default of embedded weights that were not trained to compare, unless options ask for what"
        " only comparison has, such as --reasoning; given, it takes the embedded weights without the student",
    )


def add_ranking_options(parser: argparse.ArgumentParser) -> None:
    """How windows are made and asked."""
    group = parser.add_argument_group("asking")
    add_method(group)
    group.add_argument(
        "--strategy",
        metavar="NAME",
        help="sliding (the default but for students), single, topdown, blocks, tournament, setwise or MODULE:NAME",
    )
    group.add_argument("--depth", type=positive_int, default=100, metavar="N", help="candidates compared per query")
    group.add_argument(
        "--window", type=positive_int, metavar="N", help="passages shown at a time (20; a student's own)"
    )
    group.add_argument(
        "--stride", type=positive_int, metavar="N", help="by which a window slides (10; a student's own)"
    )
    group.add_argument(
        "--first-stage-weight",
        type=non_negative_float,
        default=1.0,
        metavar="A",
        help="weight of the first stage's order, for blocks or combined",
    )
    add_window_options(group)
    group.add_argument(
        "--preset",
        choices=("paper", "fast", "balanced", "thorough"),
        help="the paper's settings exactly, which are the defaults; or blocks with 6, 7 or 12 windows per 100 passages",
    )


def add_window_options(group: argparse._ArgumentGroup, samples: int = 1) -> None:
    """How a window is asked about, however it came about."""
    group.add_argument(
        "--reasoning", metavar="T", help="full (a student: its own), off, auto, or reasoning tokens per window"
    )
    group.add_argument(
        "--samples",
        type=positive_int,
        default=samples,
        metavar="K",
        help="ask each window K times, in different orders",
    )
    group.add_argument(
        "--passage-tokens",
        type=positive_int,
        metavar="N",
        help="passages are cut to this (450; by likelihood 64; a student's)",
    )
    add_response_options(group)


def add_response_options(group: argparse._ArgumentGroup) -> None:
    """How a single question is put and answered."""
    group.add_argument(
        "--constrained", default="auto", choices=("auto", "off"), help="hold answers to a ranking's grammar"
    )
    group.add_argument(
        "--prompt", type=Path, metavar="FILE", help="compact, or a template's file: text, rerank.py, YAML"
    )
    group.add_argument("--max-tokens", type=positive_int, metavar="N", help="thought and answer (8000; embedded 512)")
    group.add_argument(
        "--temperature",
        type=temperature,
        default="default",
        metavar="T",
        help="0.5, or a student's; none: the server's",
    )
    group.add_argument("--top-p", type=non_negative_float, metavar="P", help="nucleus sampling")
    group.add_argument("--concurrency", type=positive_int, metavar="N", help="questions at a time (16; embedded 1)")
    group.add_argument(
        "--read-timeout", type=positive_seconds, metavar="S", help="drop a call silent for so long (never)"
    )


def reranker_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `Reranker` from the options of `add_server_options`, and
    `add_ranking_options`."""
    if args.preset == "paper":
        _apply_paper_preset(args)
    return {
        **window_options(args),
        "method": args.method,
        "strategy": _make_strategy(args),
        "depth": args.depth,
        "window": args.window,
        "stride": args.stride,
        "first_stage_weight": args.first_stage_weight,
    }


def window_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those that do not say how windows are made: from the options of `add_server_options` and
    `add_window_options`."""
    return {
        "server": args.server,
        "api_key": api_key(args.server, args.api_key_env),
        "server_type": args.server_type,
        "revision": args.model_revision,
        "context_length": args.context_length,
        "reasoning": args.reasoning,
        "samples": args.samples,
        "constrained": args.constrained == "auto",
        "passage_tokens": args.passage_tokens,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "prompt": args.prompt,
        "concurrency": args.concurrency,
        "read_timeout": args.read_timeout,
        "on_retry": print_retry,
    }


def simulated_model(qrels: Path, noise: str) -> Model:
    from rank_k.data.trec import read_qrels
    from rank_k.models.simulated import SimulatedModel
    from rank_k.simulation.noise_file import noise_by_name

    return SimulatedModel(read_qrels(qrels), noise_by_name(noise))


def simulated_passage_model(qrels: Path, noise: str) -> Model:
    """The judge for passages of the documents that are judged: each is worth what its document is."""
    from rank_k.data.long_documents import DocumentGrades
    from rank_k.data.trec import read_qrels
    from rank_k.models.simulated import SimulatedModel
    from rank_k.simulation.noise_file import noise_by_name

    grades = {query_id: DocumentGrades(document_grades) for query_id, document_grades in read_qrels(qrels).items()}
    return SimulatedModel(grades, noise_by_name(noise))


def api_key(server: str | None, variable: str | None) -> str | None:
    """Return the key for `server`. OPENAI_API_KEY is used for api.openai.com only; `variable`, if given,
    must be set."""
    from rank_k.models.http import base_url

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
    from rank_k.errors import InputError

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


def positive_int(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def non_negative_float(text: str) -> float:
    """A number from 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def temperature(text: str) -> float | str | None:
    """A number from 0; "default"; None for "none", the server's own. For argparse."""
    return text if text == "default" else None if text == "none" else non_negative_float(text)


def positive_seconds(text: str) -> float:
    """A time longer than nothing, for argparse."""
    value = non_negative_float(text)
    if not value:
        raise argparse.ArgumentTypeError("it must be more than 0 seconds")
    return value


def import_strategies(strategies: Iterable[str]) -> None:
    """Import those that are a user's own, MODULE:NAME, from the current folder too: the installed command does not
    look there, and nothing but these is to be taken from it. Raises `InputError` if one cannot be."""
    from rank_k.strategies import load_strategy_class

    for name in strategies:
        if ":" in name:
            search_path = sys.path
            sys.path = [*search_path, str(Path.cwd())]
            try:
                load_strategy_class(name)
            finally:
                sys.path = search_path


def _make_strategy(args: argparse.Namespace) -> str | Strategy | None:
    """The strategy's name, or the strategy itself where a preset says more than a name; None if neither is given."""
    from rank_k.errors import InputError
    from rank_k.strategies import PRESETS, make_strategy

    if args.preset is None:
        import_strategies([args.strategy] if args.strategy else [])
        return None if args.strategy is None else str(args.strategy)
    if args.preset == "paper":
        return str(_paper_settings()["strategy"])
    for name in ("strategy", "window", "stride"):
        if getattr(args, name) not in (None, _paper_settings()[name]):
            raise InputError(f"--preset {args.preset} and --{name} exclude each other", "leave one out")
    return make_strategy(**PRESETS[args.preset], first_stage_weight=args.first_stage_weight)


def _paper_settings() -> dict[str, Any]:
    """The Rank-K paper's settings, by option."""
    from rank_k.reranker import PAPER_SETTINGS

    return {"depth": 100, "top_p": None, **PAPER_SETTINGS}


def _apply_paper_preset(args: argparse.Namespace) -> None:
    """Make all options the paper's. Raises `InputError` for one that was given and is not."""
    from rank_k.errors import InputError

    for name, value in _paper_settings().items():
        if getattr(args, name) not in (None, "default", value):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"--preset paper and {option} {getattr(args, name)} exclude each other", "leave one out")
        setattr(args, name, value)
