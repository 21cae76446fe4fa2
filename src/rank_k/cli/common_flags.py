"""Flags that several commands share, and checks of flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rank_k.errors import InputError, RankKError
from rank_k.option_values import ValueKind, number, whole_number


def flag_type(kind: ValueKind) -> Callable[[str], Any]:
    """Return the function that argparse calls to parse values of a kind."""

    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except (ValueError, KeyError, RankKError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind.expected}") from error

    return parse


positive_int = flag_type(whole_number(1))
positive_seconds = flag_type(number(exclusive=True))
non_negative_float = flag_type(number())

NOISE_HELP = "none, strong, weak, or a FILE from rank-k journal fit-noise"
DATASET_HELP = "beir:DIR, bright:SUBSET, python-docs or an ir_datasets id"

_FLAGS: dict[str, dict[str, Any]] = {
    "--dataset": {
        "metavar": "NAME",
        "help": f"data set with queries, documents and qrels: {DATASET_HELP}",
    },
    "--queries": {
        "type": Path,
        "metavar": "FILE",
        "help": "queries: JSONL with _id and text, TSV, or TREC topics (default: those of the data set)",
    },
    "--documents": {
        "type": Path,
        "metavar": "FILE",
        "help": "documents: JSONL with _id, title and text, or TSV (default: those of the data set)",
    },
    "--qrels": {
        "type": Path,
        "metavar": "FILE",
        "help": "relevance judgments: TREC or BEIR qrels (default: those of the data set)",
    },
    "--run": {
        "type": Path,
        "metavar": "FILE",
        "help": "first-stage run: TREC run or score.json (default: that of the data set)",
    },
    "--limit": {
        "type": positive_int,
        "default": argparse.SUPPRESS,  # so that it is a setting of a run only if it is given
        "metavar": "N",
        "help": "use only the first N queries",
    },
    "--only": {
        "nargs": "+",
        "default": argparse.SUPPRESS,
        "metavar": "ID",
        "help": "use only the queries with these ids",
    },
    "--noise": {"default": "strong", "metavar": "NOISE", "help": f"errors of the simulated model: {NOISE_HELP}"},
    "--measures": {
        "nargs": "+",
        "metavar": "M",
        "help": "measures in the notation of ir_measures, the most important one first (default: nDCG@10; for evaluate"
        " also nDCG@20 AP RR@10 R@100 Judged@10)",
    },
    "--price-in": {"type": non_negative_float, "metavar": "P", "help": "price of a million prompt tokens"},
    "--price-out": {
        "type": non_negative_float,
        "metavar": "P",
        "help": "price of a million completion tokens, including reasoning",
    },
    "--json": {"action": "store_true", "help": "print JSON instead of tables"},
    "--strict": {
        "action": "store_true",
        "help": "exit with status 3 if a window was left in input order or a query unfinished",
    },
    "--quiet": {"action": "store_true", "help": "print no progress and no summary"},
}


def add_flags(group: argparse._ActionsContainer, *flags: str) -> None:
    """Add some of the flags that commands share."""
    for flag in flags:
        group.add_argument(flag, **_FLAGS[flag])


def select_queries(args: argparse.Namespace, query_ids: Iterable[str]) -> list[str]:
    """Return the ids of the queries that --only and --limit select, in their order.

    Args:
        args: The options of the command.
        query_ids: The ids of all queries.

    Raises:
        InputError: If --only names a query that is not there.
    """
    known_ids = list(query_ids)
    only = set(getattr(args, "only", known_ids))
    if unknown_ids := only.difference(known_ids):
        raise InputError(f"--only {min(unknown_ids)}: there is no such query", "give ids of the queries file")
    return [query_id for query_id in known_ids if query_id in only][: getattr(args, "limit", None)]


def reject_flags(args: argparse.Namespace, names: Iterable[str], problem: str, remedy: str) -> None:
    """Check that none of the options `names` was given.

    Args:
        args: The options of the command. One that was not given is None, False or an empty list.
        names: The names of options in `args`.
        problem: What is wrong if one was given; `{flag}` stands for its flag.
        remedy: What to do instead.

    Raises:
        InputError: For the first of the options that was given.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False and value != []:
            raise InputError(problem.format(flag=f"--{name.replace('_', '-')}"), remedy)
