"""The command `rank-k`: one verb a file. Only the verb that is asked for is imported.

A verb's module has `HELP` (one line), `EXAMPLE` (a command that runs as printed), `add_arguments(parser)` and
`run(args) -> exit code`. Exit codes: 0 done; 1 something in the input did not hold; 2 a mistake in options or
data, or a model that cannot be had; 3 done, but with `--strict` and windows left unranked; 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

VERBS = (
    "demo",
    "fetch",
    "retrieve",
    "rerank",
    "simulate",
    "evaluate",
    "study",
    "distill",
    "serve",
    "mcp",
    "journal",
    "doctor",
)

GC_THRESHOLD = 50_000
"""Objects made before Python looks for cycles among them, instead of 700. Nearly all that a command makes is either
freed at once or lives until its end, so that looking finds nothing: it was a sixth of a run's processor time."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _build_parser(arguments)
    args, unknown = parser.parse_known_args(arguments)
    if not args.verb:
        parser.print_help()
        return 2
    if unknown:  # named without its value, which may be a key
        name = unknown[0].partition("=")[0]
        print(f"{_command_name(args)}: there is no option {name}; see {_command_name(args)} --help", file=sys.stderr)
        return 2
    return _run_verb(args)


def _run_verb(args: argparse.Namespace) -> int:
    """Run the verb; a user's mistake comes out as one line, an interruption without a traceback."""
    from rank_k.errors import RankKError

    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)  # what is left then goes with the process, cycles or not
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a trace may hold what the terminal cannot show
    try:
        code: int = _import_verb(args.verb).run(args)
        sys.stdout.flush()
    except RankKError as error:
        return _print_mistake(args, str(error))
    except KeyboardInterrupt:
        print(f"\n{_command_name(args)}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a file that was taken away
        return _print_mistake(args, f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:
        from sqlite3 import Error as DatabaseError

        if not isinstance(error, DatabaseError):
            raise
        return _print_mistake(args, f"the journal cannot be used: {error}; give another file with --journal")
    return code


def _print_mistake(args: argparse.Namespace, message: str) -> int:
    print(f"{_command_name(args)}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _command_name(args: argparse.Namespace) -> str:
    """The command as far as it names what is done: the verb, and the step of one that has steps."""
    return " ".join(filter(None, ("rank-k", args.verb, getattr(args, "step", None))))


def _import_verb(name: str) -> ModuleType:
    return importlib.import_module(f"rank_k.cli.{name}")


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; of the verbs, only the one named is filled in."""
    from rank_k import __version__

    parser = _OneLineErrorParser(
        prog="rank-k",
        description="Listwise reranking by language models that reason.",
        epilog="example: rank-k demo",
    )
    parser.add_argument("--version", action="version", version=f"rank-k {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    requested = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name in VERBS:
        if requested in VERBS and name != requested:
            verbs.add_parser(name)  # known, but not needed now
            continue
        add_verb(verbs, name, _import_verb(name))
    return parser


def add_verb(verbs: argparse._SubParsersAction[Any], name: str, module: ModuleType) -> None:
    """What `module` says of itself, as the verb `name`."""
    verb = verbs.add_parser(
        name,
        help=module.HELP,
        description=module.HELP,
        epilog=f"example: {module.EXAMPLE}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(verb)


class _OneLineErrorParser(argparse.ArgumentParser):
    """Says what is wrong in one line. The usage, which is long, is there for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but for those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "") or action.required:
            return action.help
        return super()._get_help_string(action)
