"""Preference judgments: which of two rankings of a query, shown side by side without names, a judge prefers.

Each row of a JSONL file is one judgment. The page *Judge* of `rank-k serve` writes rows such as:

    {"judge": "anna", "query_id": "q7", "left": "bm25.trec", "right": "reranked.trec", "choice": "right",
     "time": "2026-05-04T09:30:00.123456+00:00", "seconds": 12.4, "depth": 10, "blind": true,
     "query": "why is the sky blue", "translation": null, "left_doc_ids": ["d3", "d9"], "right_doc_ids": ["d9", "d1"]}

`choice` is `left`, `right`, `tie`, or `undone`, which withdraws the earlier judgment of the same judge, query and
systems. `seconds` is the time until the choice. `translation` is the translation of the query that was shown, or null.
The keys `judge`, `query_id`, `left`, `right`, `choice` and `time` are required. Rows are only appended: the latest row
of a judge for a query and two systems counts, regardless of sides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import NormalDist, fmean, median
from typing import Any

from rank_k.data.lines import abbreviate, read_objects
from rank_k.errors import FormatError, InputError
from rank_k.evaluation.agreement import Agreement, compute_agreements
from rank_k.evaluation.significance import CONFIDENCE_LEVEL, holm, paired_difference
from rank_k.optional_deps import load

LEFT, RIGHT, TIE, UNDONE = "left", "right", "tie", "undone"
CHOICES = (LEFT, RIGHT, TIE)

_EXPECTED_ROW = '{"judge", "query_id", "left", "right", "choice", "time", ...} on each line (JSONL)'

Pair = tuple[str, str]
"""Two systems, in the order of their names."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """One row of a file.

    Attributes:
        judge: The name of the judge.
        query_id: The query.
        left: The name of the system on the left.
        right: The name of the system on the right.
        choice: `LEFT`, `RIGHT`, `TIE` or `UNDONE`.
        time: The time of the choice, with a time zone.
        seconds: The time until the choice; None if it is unknown.
        depth: The maximum number of passages shown of each ranking; None if it is unknown.
        blind: Whether the names of the systems were hidden.
        query: The text of the query.
        translation: The translation of the query that was shown, if any.
        left_doc_ids: The passages shown on the left.
        right_doc_ids: The passages shown on the right.
    """

    judge: str
    query_id: str
    left: str
    right: str
    choice: str
    time: datetime
    seconds: float | None = None
    depth: int | None = None
    blind: bool = True
    query: str = ""
    translation: str | None = None
    left_doc_ids: tuple[str, ...] = ()
    right_doc_ids: tuple[str, ...] = ()

    @property
    def pair(self) -> Pair:
        return (self.left, self.right) if self.left < self.right else (self.right, self.left)

    @property
    def winner(self) -> str | None:
        """The name of the system that was preferred; None for a tie."""
        return {LEFT: self.left, RIGHT: self.right}.get(self.choice)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object, as `read_judgments` reads it."""
        return asdict(self) | {"time": self.time.isoformat(timespec="microseconds")}


@dataclass(frozen=True, slots=True)
class CurrentJudgments:
    """The judgments that count.

    Attributes:
        judgments: The judgments, sorted by judge, query and systems.
        repeated: The number of rows that equal an earlier row.
        replaced: The number of judgments that their judge has replaced by a later one.
        undone: The number of judgments that their judge has withdrawn.
    """

    judgments: tuple[Judgment, ...]
    repeated: int = 0
    replaced: int = 0
    undone: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """A proportion and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """The judgments of two systems, from the view of the first system.

    Attributes:
        first: The first system.
        second: The second system.
        queries: The number of queries.
        judgments: The number of judgments.
        win_rate: The proportion of wins plus half the proportion of ties.
        won: The proportion of wins.
        tied: The proportion of ties.
        lost: The proportion of losses.
        p: The p value of the hypothesis that there is no preference, corrected by Holm for all pairs.
    """

    first: str
    second: str
    queries: int
    judgments: int
    win_rate: Share
    won: Share
    tied: Share
    lost: Share
    p: float


@dataclass(frozen=True, slots=True)
class SideCounts:
    """How often the left and the right side were preferred.

    Sides are drawn at random, so each side should be preferred half of the time, even if one system is better.

    Attributes:
        left: The number of judgments for the left side.
        right: The number of judgments for the right side.
        ties: The number of ties.
        share: The proportion of judgments for the left side, ignoring ties; None if all judgments are ties.
        p: The p value of the hypothesis that the side has no effect (exact two-sided binomial test), or None.
    """

    left: int
    right: int
    ties: int
    share: Share | None
    p: float | None

    @property
    def judgments(self) -> int:
        return self.left + self.right + self.ties


@dataclass(frozen=True, slots=True)
class JudgeSummary:
    """The judgments of one judge. `median_seconds`: the median time until a choice; None if it is unknown."""

    name: str
    sides: SideCounts
    median_seconds: float | None


@dataclass(frozen=True, slots=True)
class Preferences:
    """The summary of all judgments.

    Attributes:
        pairs: The comparison of every two systems.
        sides: How often each side was preferred.
        judges: A summary for each judge.
        agreement: The agreement of every two judges with common items, and of all judges if there are more than two.
        current: The judgments that count.
        unblinded: The number of judgments for which the names of the systems were visible.
        translated: The number of judgments for which a translation of the query was shown.
    """

    pairs: tuple[ComparedPair, ...]
    sides: SideCounts
    judges: tuple[JudgeSummary, ...]
    agreement: tuple[Agreement, ...]
    current: CurrentJudgments
    unblinded: int
    translated: int


# --- rows ---


def read_judgments(path: Path) -> list[Judgment]:
    """Return the rows of a file. Raises `FormatError` for the first invalid row."""
    return [_parse_judgment(row, path, number) for number, row in read_objects(path, _EXPECTED_ROW)]


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


_ROW_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("judge", "query_id", "left", "right"),
        ("a non-empty string", lambda value: isinstance(value, str) and value != ""),
    ),
    "choice": (f"one of {', '.join((*CHOICES, UNDONE))}", (*CHOICES, UNDONE).__contains__),
    "time": ("a time with its zone, such as 2026-05-04T09:30:00+00:00", _is_time),
    "seconds": (
        "a number from 0, or null",
        lambda value: value is None or (type(value) in (int, float) and 0 <= value < math.inf),
    ),
    "depth": ("a whole number from 1, or null", lambda value: value is None or (type(value) is int and value >= 1)),
    "blind": ("true or false", lambda value: isinstance(value, bool)),
    "query": ("a string", lambda value: isinstance(value, str)),
    "translation": ("a string, or null", lambda value: isinstance(value, str | None)),
    **dict.fromkeys(
        ("left_doc_ids", "right_doc_ids"),
        (
            "a list of strings",
            lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        ),
    ),
}
"""The expected value of each key of a row, in words and as a function that checks it."""

_REQUIRED_KEYS = ("judge", "query_id", "left", "right", "choice", "time")


def _parse_judgment(row: Mapping[str, Any], path: Path, line_number: int) -> Judgment:
    """Return a row as a `Judgment`. Raises `FormatError` with the path and the line number if it is invalid."""
    for key, (expected, is_valid) in _ROW_FIELDS.items():
        if (key in row or key in _REQUIRED_KEYS) and not is_valid(row.get(key)):
            problem = f"{key} {abbreviate(row[key])}" if key in row else f"no {key}"
            raise FormatError(path, line_number, problem, f"{key}: {expected}")
    values = {key: row[key] for key in _ROW_FIELDS if key in row}
    if values["left"] == values["right"]:
        raise FormatError(path, line_number, f"{abbreviate(values['left'])} on both sides", "two systems")
    doc_ids = {key: tuple(values.get(key, ())) for key in ("left_doc_ids", "right_doc_ids")}
    return Judgment(**values | doc_ids | {"time": datetime.fromisoformat(values["time"])})


def current_judgments(rows: Iterable[Judgment]) -> CurrentJudgments:
    """Return the rows that count, given all rows in any order."""
    row_counts = Counter(rows)
    latest: dict[tuple[str, str, Pair], Judgment] = {}
    replaced = undone = 0
    for row in sorted(row_counts, key=lambda row: (row.time, repr(row))):
        item = (row.judge, row.query_id, row.pair)
        previous = latest.pop(item, None)
        if row.choice != UNDONE:
            latest[item] = row
            replaced += previous is not None
        else:
            undone += previous is not None
    judgments = tuple(latest[item] for item in sorted(latest))
    return CurrentJudgments(judgments, row_counts.total() - len(row_counts), replaced, undone)


# --- statistics ---


def summarize_preferences(rows: Iterable[Judgment]) -> Preferences:
    """Return the statistics of judgments.

    Args:
        rows: All rows, in any order.

    Raises:
        InputError: If no judgment counts.
        MissingExtra: If numpy or scipy is not installed.
    """
    current = current_judgments(rows)
    judgments = current.judgments
    if not judgments:
        raise InputError(
            "there are no judgments, or all were withdrawn", "judge queries on the page Judge of rank-k serve"
        )
    return Preferences(
        pairs=_compare_pairs(judgments),
        sides=_count_sides(judgments),
        judges=tuple(
            JudgeSummary(name, _count_sides(rows_of_judge), _median_seconds(rows_of_judge))
            for name, rows_of_judge in _group_judgments(judgments, lambda row: row.judge).items()
        ),
        agreement=compute_agreements([(row.judge, row.query_id, row.pair, _outcome(row)) for row in judgments]),
        current=current,
        unblinded=sum(not row.blind for row in judgments),
        translated=sum(row.translation is not None for row in judgments),
    )


def estimate_share(value: float, count: int) -> Share:
    """Return a proportion with its Wilson score interval (1927).

    The bootstrap, which is used for measures, gives empty intervals if all judgments are equal, and studies with people
    have few queries. The Wilson interval keeps its confidence level for as few as ten queries (Brown, Cai and DasGupta
    2001). It assumes numbers that are 0 or 1. Other numbers with the same mean vary less, so the interval may be too
    wide for them, but not too narrow.

    Args:
        value: The mean of the numbers, which are between 0 and 1.
        count: How many numbers there are.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE_LEVEL) / 2)
    center = (value + z * z / (2 * count)) / (1 + z * z / count)
    half_width = z * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Share(value, max(0.0, min(value, center - half_width)), min(1.0, max(value, center + half_width)))


_WON, _TIED, _LOST = 0, 1, 2


def _compare_pairs(judgments: Iterable[Judgment]) -> tuple[ComparedPair, ...]:
    """Compare every two systems. All queries have equal weight, because judgments of one query are not independent."""
    pairs = []
    for (first, second), rows_of_pair in _group_judgments(judgments, lambda row: row.pair).items():
        by_query = {
            query_id: Counter(map(_outcome, rows))
            for query_id, rows in _group_judgments(rows_of_pair, lambda row: row.query_id).items()
        }
        won, tied, lost = (
            [outcomes[kind] / outcomes.total() for outcomes in by_query.values()] for kind in (_WON, _TIED, _LOST)
        )
        scores = [win + tie / 2 for win, tie in zip(won, tied, strict=True)]
        win_rate, won_share, tied_share, lost_share = (
            estimate_share(min(1.0, fmean(values)), len(by_query)) for values in (scores, won, tied, lost)
        )
        test = paired_difference(dict(zip(by_query, scores, strict=True)), dict.fromkeys(by_query, 0.5))
        pairs.append(
            ComparedPair(
                first,
                second,
                queries=len(by_query),
                judgments=len(rows_of_pair),
                win_rate=win_rate,
                won=won_share,
                tied=tied_share,
                lost=lost_share,
                p=test.randomization_p,
            )
        )
    corrected = holm([pair.p for pair in pairs])
    return tuple(replace(pair, p=p) for pair, p in zip(pairs, corrected, strict=True))


def _outcome(row: Judgment) -> int:
    """Return the outcome for the first system of the pair."""
    return _TIED if row.winner is None else _WON if row.winner == row.pair[0] else _LOST


def _count_sides(judgments: Iterable[Judgment]) -> SideCounts:
    """Count sides. Every judgment counts, because sides are drawn at random for each judgment."""
    counts = Counter(row.choice for row in judgments)
    decided_count = counts[LEFT] + counts[RIGHT]
    share = p = None
    if decided_count:
        share = estimate_share(counts[LEFT] / decided_count, decided_count)
        p = float(load("scipy.stats").binomtest(counts[LEFT], decided_count).pvalue)
    return SideCounts(counts[LEFT], counts[RIGHT], counts[TIE], share, p)


def _median_seconds(judgments: Iterable[Judgment]) -> float | None:
    seconds = [row.seconds for row in judgments if row.seconds is not None]
    return median(seconds) if seconds else None


def _group_judgments(judgments: Iterable[Judgment], key: Callable[[Judgment], Any]) -> dict[Any, list[Judgment]]:
    return {name: list(rows) for name, rows in groupby(sorted(judgments, key=key), key)}
