"""The command `rank-k`, with one module per subcommand. Only the module of the requested subcommand is imported.

The module of a subcommand has `add_arguments(parser)` and `run(args) -> exit status`. `args.command_line` is the
command as the user typed it. Exit statuses: 0 done; 1 a check of `doctor` failed; 2 wrong options or data, or a model
that does not respond; 3 done, but no window could be ranked or, with `--strict`, not every window; 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import io
import os
import shlex
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from rank_k.errors import RankKError


class Command(NamedTuple):
    """The help text and an example of a subcommand or of a step of `distill`."""

    help: str
    example: str


VERBS = {
    "demo": Command("rerank passages of Python's documentation, and show the rankings before and after", "rank-k demo"),
    "fetch": Command("download the weights of the embedded model", "rank-k fetch"),
    "retrieve": Command(
        "create a first-stage run with BM25",
        "rank-k retrieve --documents corpus.jsonl.gz --queries queries.jsonl --output bm25.trec",
    ),
    "rerank": Command(
        "rerank a first-stage run with a reasoning language model",
        "rank-k rerank --run bm25.trec --queries queries.jsonl --documents corpus.jsonl.gz --output reranked.trec"
        " --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B",
    ),
    "merge": Command(
        "merge the outputs of rank-k rerank --shard into one run and one journal",
        "rank-k merge reranked.trec reranked.1of2.trec reranked.2of2.trec",
    ),
    "batch": Command(
        "rerank a run through the batch API of a provider, or through files of requests",
        "rank-k batch next --run bm25.trec --queries queries.jsonl --documents corpus.jsonl.gz --output reranked.trec"
        " --folder requests --model hltcoe/Rank-K-32B --strategy blocks",
    ),
    "simulate": Command(
        "estimate quality, calls and cost of strategies with a simulated model",
        "rank-k simulate --run bm25.trec --qrels qrels.trec --noise strong --call-seconds 20+2.5w --concurrency 16,64",
    ),
    "evaluate": Command(
        "evaluate runs with relevance judgments, and compare them",
        "rank-k evaluate --qrels qrels.trec bm25.trec reranked.trec --baseline bm25.trec --report report.html",
    ),
    "study": Command(
        "run a grid of strategies, reasoning budgets, samples, depths and models, and report quality and cost",
        "rank-k study --dataset beir:DIR --run bm25.trec --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B"
        " --strategy sliding,blocks --reasoning off,500,full --output study",
    ),
    "distill": Command(
        "train a small model (student) to rerank like a large one (teacher)",
        "rank-k distill sample --help",
    ),
    "serve": Command(
        "serve the rerank APIs of Cohere, Jina and others over HTTP, and a web page that shows rankings and journals",
        "rank-k serve --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B --journal calls.sqlite",
    ),
    "mcp": Command(
        "serve reranking as a tool for assistants and agents, with the Model Context Protocol",
        "rank-k mcp --server http://localhost:8000/v1 --model hltcoe/Rank-K-32B --journal calls.sqlite",
    ),
    "journal": Command(
        "show, export or summarize the calls in a journal", "rank-k journal cost reranked.trec.journal.sqlite"
    ),
    "doctor": Command(
        "show what is installed, whether the model responds and, with --probe, what it can do", "rank-k doctor --probe"
    ),
}
"""The subcommands by name. Each is a module of this package."""

GC_THRESHOLD = 50_000
"""The number of allocations between two runs of the garbage collector, instead of Python's 700. Reference counting
already frees nearly all objects of a command. With Python's default, searching for cycles took a sixth of the processor
time of a run and found none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        argv: The arguments after `rank-k` (default: the arguments of this process).
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _build_parser(arguments)
    args, unknown = parser.parse_known_args(arguments)
    if not args.verb:
        parser.print_help()
        return 2
    if unknown:  # the message does not show the value, because it may be a key
        name = unknown[0].partition("=")[0]
        return _print_user_error(args, f"there is no option {name}; see {_command_name(args)} --help")
    args.command_line = shlex.join(("rank-k", *arguments))
    return _run_verb(args)


def _run_verb(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status. User errors are printed in one line, without a traceback."""
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)  # skips the last garbage collection: the end of the process frees all memory
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # reasoning traces can have any character
    try:
        code: int = _import_verb(args.verb).run(args)
        sys.stdout.flush()
    except RankKError as error:
        return _print_user_error(args, str(error))
    except KeyboardInterrupt as interruption:
        print(f"\n{interruption}" if interruption.args else f"\n{_command_name(args)}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # for example a full disk
        return _print_user_error(args, f"{error.filename or 'the system'}: {error.strerror or error}")
    except sqlite3.Error as error:
        return _print_user_error(args, f"the journal cannot be used: {error}; give another file with --journal")
    return code


@contextmanager
def resumable(journal: Path) -> Iterator[None]:
    """If the work in this context is interrupted, raise a `KeyboardInterrupt` with a message that says how to resume.

    The work is interrupted by Ctrl-C, SIGTERM and SIGUSR1. Job schedulers send the latter two before they end a job.

    Args:
        journal: The journal that stores the calls of the work.
    """
    names = ("SIGTERM", "SIGUSR1") if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, _interrupt) for name in names if (number := getattr(signal, name, None))}
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; every finished call is in {journal}: run the same command again to resume"
        ) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _print_user_error(args: argparse.Namespace, message: str) -> int:
    print(f"{_command_name(args)}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _command_name(args: argparse.Namespace) -> str:
    """Return the command without its options: `rank-k`, the subcommand, and its step if it has steps."""
    return " ".join(filter(None, ("rank-k", args.verb, getattr(args, "step", None))))


def _import_verb(name: str) -> ModuleType:
    return importlib.import_module(f"rank_k.cli.{name}")


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser. Only the subcommand that `arguments` name gets its own arguments."""
    from rank_k import __version__

    parser = _OneLineErrorParser(
        prog="rank-k",
        description="Listwise reranking with reasoning language models.",
        epilog="example: rank-k demo",
    )
    parser.add_argument("--version", action="version", version=f"rank-k {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    requested = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, command in VERBS.items():
        if name == requested:
            add_command(verbs, name, command, _import_verb(name))
        else:
            verbs.add_parser(name, help=command.help)  # listed in the help text, but not imported
    return parser


def add_command(commands: argparse._SubParsersAction[Any], name: str, command: Command, module: ModuleType) -> None:
    """Add a subcommand, or a step of `distill`.

    Args:
        commands: The object to which the command is added.
        name: The name of the command.
        command: The help text and the example of the command.
        module: The module that defines the arguments of the command.
    """
    parser = commands.add_parser(
        name,
        help=command.help,
        description=command.help,
        epilog=f"example: {command.example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)


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
