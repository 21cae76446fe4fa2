"""The command `rank-k`, with one module per verb. Only the module of the verb in use is imported.

A verb's module has `EXAMPLE` (a command that runs as printed), `add_arguments(parser)` and
`run(args) -> exit status`. Exit statuses: 0 done; 1 a check of `doctor` failed; 2 wrong options or data, or a model
that does not respond; 3 done, but with `--strict` and windows left unranked; 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import io
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from rank_k.errors import RankKError

VERBS = {
    "demo": "rerank passages of Python's own documentation, and see them before and after",
    "fetch": "get the weights of the embedded model",
    "retrieve": "make a first-stage run with BM25",
    "rerank": "rerank a first-stage run with a language model that reasons",
    "simulate": "try strategies on a simulated judge: plan before you pay",
    "evaluate": "measure runs against judgments, and compare them",
    "study": "compare strategies, budgets, samples, depths and models: quality, tokens, rounds, seconds",
    "distill": "make a student: sample candidate sets, trace a teacher, select what to learn, train, export",
    "serve": "answer rerank requests over HTTP, as Cohere's, Jina's and other APIs do, and look at journals",
    "mcp": "offer reranking as a tool to assistants and agents, over the Model Context Protocol",
    "journal": "look into the file in which every call is kept",
    "doctor": "say what is installed, which model answers, and (with --probe) what it can do",
}
"""The verbs and what they do. A verb is a module of this package."""

GC_THRESHOLD = 50_000
"""Allocations between two runs of the garbage collector, instead of Python's 700. Nearly every object of a command is
freed at once or lives until its end: looking for cycles took a sixth of a run's processor time and found nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _build_parser(arguments)
    args, unknown = parser.parse_known_args(arguments)
    if not args.verb:
        parser.print_help()
        return 2
    if unknown:  # without its value, which can be a key
        name = unknown[0].partition("=")[0]
        print(f"{_command_name(args)}: there is no option {name}; see {_command_name(args)} --help", file=sys.stderr)
        return 2
    return _run_verb(args)


def _run_verb(args: argparse.Namespace) -> int:
    """Run the verb and return its exit status. Errors of the user are printed as one line, without a traceback."""
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)  # the end of the process frees the rest, cycles or not
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # reasoning traces can have any character
    try:
        code: int = _import_verb(args.verb).run(args)
        sys.stdout.flush()
    except RankKError as error:
        return _print_mistake(args, str(error))
    except KeyboardInterrupt as interruption:
        print(f"\n{interruption}" if interruption.args else f"\n{_command_name(args)}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # for example a full disk
        return _print_mistake(args, f"{error.filename or 'the system'}: {error.strerror or error}")
    except sqlite3.Error as error:
        return _print_mistake(args, f"the journal cannot be used: {error}; give another file with --journal")
    return code


@contextmanager
def resumable(journal: Path) -> Iterator[None]:
    """Say how to resume if the work in this context, whose calls `journal` stores, is interrupted with Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; every finished call is in {journal}: run the same command again to resume"
        ) from None


def format_command(
    verb: str, add_arguments: Callable[[argparse.ArgumentParser], None], args: argparse.Namespace
) -> str:
    """Return the command that parses to `args`, without options that have their default.

    Args:
        verb: The verb of the command.
        add_arguments: Adds the verb's arguments to a parser.
        args: Its arguments. Missing ones have their default.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    words = ["rank-k", verb]
    for action in sorted(parser._actions, key=lambda action: bool(action.option_strings)):  # positional ones first
        default = defaults.get(action.dest)
        value = getattr(args, action.dest, default)
        if value == default:
            continue
        name = action.option_strings[:1]
        values = value if isinstance(value, list) else [value]
        if isinstance(action, argparse._AppendAction):
            words += [word for item in values for word in (*name, str(item))]
        elif action.const is not None and value == action.const:  # of an option that is given without a value
            words += name
        else:
            words += [*name, *("none" if item is None else str(item) for item in values)]
    return shlex.join(words)


def _print_mistake(args: argparse.Namespace, message: str) -> int:
    print(f"{_command_name(args)}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _command_name(args: argparse.Namespace) -> str:
    """Return the command without its options: `rank-k`, the verb, and the step of `distill`."""
    return " ".join(filter(None, ("rank-k", args.verb, getattr(args, "step", None))))


def _import_verb(name: str) -> ModuleType:
    return importlib.import_module(f"rank_k.cli.{name}")


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser. If `arguments` name a verb, only its arguments are added."""
    from rank_k import __version__

    parser = _OneLineErrorParser(
        prog="rank-k",
        description="Listwise reranking by language models that reason.",
        epilog="example: rank-k demo",
    )
    parser.add_argument("--version", action="version", version=f"rank-k {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    requested = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, help_text in VERBS.items():
        if name == requested:
            add_verb(verbs, name, help_text, _import_verb(name))
        else:
            verbs.add_parser(name, help=help_text)  # listed, but not imported
    return parser


def add_verb(verbs: argparse._SubParsersAction[Any], name: str, help_text: str, module: ModuleType) -> None:
    """Add the verb `name`, which `module` implements."""
    verb = verbs.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example: {module.EXAMPLE}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(verb)


class _OneLineErrorParser(argparse.ArgumentParser):
    """Prints an error as one line, without the usage, which is long."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except empty ones."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not action.default or action.required:
            return action.help
        return super()._get_help_string(action)
