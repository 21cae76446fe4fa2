"""Flags that several commands share, and functions that check flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rank_k.errors import InputError, RankKError
from rank_k.option_values import ValueKind, number, whole_number


def flag_type(kind: ValueKind) -> Callable[[str], Any]:
    """Return a function that parses values of this kind for argparse."""

    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except (ValueError, KeyError, RankKError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind.expected}") from error

    return parse


positive_int = flag_type(whole_number(1))
positive_seconds = flag_type(number(exclusive=True))
non_negative_float = flag_type(number())

NOISE_HELP = (
    "none (never), strong (like a strong model), weak (like a weak model), or a FILE from rank-k journal fit-noise"
)
DATASET_HELP = "beir:DIR, bright:SUBSET, python-docs or an ir_datasets id"

_FLAGS: dict[str, dict[str, Any]] = {
    "--dataset": {
        "metavar": "NAME",
        "help": f"data set with queries, documents and qrels: {DATASET_HELP}",
    },
    "--queries": {
        "type": Path,
        "metavar": "FILE",
        "help": "queries: JSONL with _id and text, TSV, or TREC topics (default: the queries of the data set)",
    },
    "--documents": {
        "type": Path,
        "metavar": "FILE",
        "help": "documents: JSONL with _id, title and text, or TSV (default: the documents of the data set)",
    },
    "--qrels": {
        "type": Path,
        "metavar": "FILE",
        "help": "relevance judgments: TREC or BEIR qrels (default: the qrels of the data set)",
    },
    "--run": {
        "type": Path,
        "metavar": "FILE",
        "help": "first-stage run: TREC run or score.json (default: the run of the data set)",
    },
    "--limit": {
        "type": positive_int,
        "default": argparse.SUPPRESS,  # the settings of a run contain the limit only if it is given
        "metavar": "N",
        "help": "use only the first N queries",
    },
    "--only": {
        "nargs": "+",
        "default": argparse.SUPPRESS,
        "metavar": "ID",
        "help": "use only the queries with these ids",
    },
    "--noise": {"default": "strong", "metavar": "NOISE", "help": f"how often the simulated model errs: {NOISE_HELP}"},
    "--measures": {
        "nargs": "+",
        "metavar": "M",
        "help": "measures in the notation of ir_measures, the primary measure first (default: nDCG@10; for evaluate"
        " also nDCG@20 AP RR@10 R@100 Judged@10)",
    },
    "--price-in": {"type": non_negative_float, "metavar": "P", "help": "price per million prompt tokens"},
    "--price-out": {
        "type": non_negative_float,
        "metavar": "P",
        "help": "price per million completion tokens, including reasoning",
    },
    "--json": {"action": "store_true", "help": "print JSON instead of tables"},
    "--strict": {
        "action": "store_true",
        "help": "exit with status 3 if a window could not be ranked or a query was not finished",
    },
    "--quiet": {"action": "store_true", "help": "do not print progress or a summary"},
}


def add_flags(group: argparse._ActionsContainer, *flags: str) -> None:
    """Add the given flags, such as "--queries", to a parser or group."""
    for flag in flags:
        group.add_argument(flag, **_FLAGS[flag])


def select_queries(args: argparse.Namespace, query_ids: Iterable[str]) -> list[str]:
    """Return the ids of the queries that --only and --limit select, in the order of `query_ids`.

    Args:
        args: The options of the command.
        query_ids: The ids of all queries.

    Raises:
        InputError: If --only names a query that is not in `query_ids`.
    """
    known_ids = list(query_ids)
    only = set(getattr(args, "only", known_ids))
    if unknown_ids := only.difference(known_ids):
        raise InputError(f"--only {min(unknown_ids)}: there is no such query", "give ids of the queries file")
    return [query_id for query_id in known_ids if query_id in only][: getattr(args, "limit", None)]


def reject_flags(args: argparse.Namespace, names: Iterable[str], problem: str, remedy: str) -> None:
    """Check that none of the options `names` was given.

    Args:
        args: The options of the command. An option that was not given is None, False or an empty list.
        names: The names of the options in `args`.
        problem: The error message if an option was given. `{flag}` stands for its flag.
        remedy: What the user should do instead.

    Raises:
        InputError: If one of the options was given. The message names the first of them.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False and value != []:
            raise InputError(problem.format(flag=f"--{name.replace('_', '-')}"), remedy)
