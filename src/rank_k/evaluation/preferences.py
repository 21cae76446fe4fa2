"""What people prefer: two rankings of a query side by side, names hidden, and which of them somebody would rather have.

One row of JSONL is one judgment, as the page *Judge* of `rank-k serve` keeps it:

    {"judge": "anna", "query_id": "q7", "left": "bm25.trec", "right": "reranked.trec", "choice": "right",
     "time": "2026-05-04T09:30:00.123456+00:00", "seconds": 12.4, "depth": 10, "blind": true,
     "query": "why is the sky blue", "translation": null, "left_doc_ids": ["d3", "d9"], "right_doc_ids": ["d9", "d1"]}

`choice` is `left`, `right` or `tie`, or `undone`, which takes back what the judge had said of these two before.
`seconds`: for how long it was looked at. `translation`: of the query, as it was shown; null if none was. The keys of
the first two lines are needed, the others may be absent. Nothing is ever changed in such a file: what stands is the
latest row of a judge on a query and two systems, whatever side they stood on.
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

from rank_k.data.lines import read_objects
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
    """One row. Times have a zone. `depth`: how many passages of each ranking were to be shown, `*_doc_ids`: those that
    were. `seconds` and `depth` are None where nobody said."""

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
        """As JSON has it: what `parse_judgment` reads."""
        return asdict(self) | {"time": self.time.isoformat(timespec="microseconds")}


@dataclass(frozen=True, slots=True)
class CurrentJudgments:
    """The judgments that count. `repeated`: rows that were there before, word for word; `replaced` and `undone`:
    judgments that their judge has given anew, or taken back."""

    judgments: tuple[Judgment, ...]
    repeated: int = 0
    replaced: int = 0
    undone: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """A share and its 95 % interval, or None where there is nothing to take a share of."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """What judges made of two systems. `won`, `tied`, `lost` are the first one's; `win_rate` is `won` and half of
    `tied`. `p`: of there being no preference, corrected by Holm for all pairs."""

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
    """How often the left side was preferred to the right: half of the time, for sides are drawn by chance, whatever
    the systems are worth. `p`: of a judge who looks at the rankings alone (exact binomial test, two-sided)."""

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
    """`seconds`: the median, None if nobody counted."""

    name: str
    sides: SideCounts
    median_seconds: float | None


@dataclass(frozen=True, slots=True)
class Preferences:
    """`agreement`: of every two judges who have judged something in common, and of all where there are more than
    two. `unblinded`: judgments made with names in sight. `translated`: with the query's translation."""

    pairs: tuple[ComparedPair, ...]
    sides: SideCounts
    judges: tuple[JudgeSummary, ...]
    agreement: tuple[Agreement, ...]
    current: CurrentJudgments
    unblinded: int
    translated: int


# --- rows ---


def read_judgments(path: Path) -> list[Judgment]:
    """The rows of one file. Raises `FormatError` for the first that is not as it should be."""
    return [parse_judgment(row, path, number) for number, row in read_objects(path, _EXPECTED_ROW)]


def parse_judgment(row: Mapping[str, Any], path: Path, line_number: int) -> Judgment:
    """A row as a value. Raises `FormatError`, with path and line number."""

    def validated(key: str, expected: str, is_valid: Callable[[Any], bool], default: Any = None) -> Any:
        value = row.get(key, default)
        if not is_valid(value):
            value_or_missing = f"no {key}" if key not in row else f"{key} {_abbreviate(value)}"
            raise FormatError(path, line_number, value_or_missing, f"{key}: {expected}")
        return value

    def required_text(key: str) -> str:
        value_or_missing: str = validated(
            key, "a non-empty string", lambda value: isinstance(value, str) and value != ""
        )
        return value_or_missing

    def string_list(key: str) -> tuple[str, ...]:
        return tuple(validated(key, "a list of strings", _are_strings, default=()))

    judge, query_id, left, right = map(required_text, ("judge", "query_id", "left", "right"))
    if left == right:
        raise FormatError(path, line_number, f"{_abbreviate(left)} on both sides", "two systems")
    choice = validated("choice", f"one of {', '.join((*CHOICES, UNDONE))}", (*CHOICES, UNDONE).__contains__)
    time = validated("time", "a time with its zone, such as 2026-05-04T09:30:00+00:00", _is_time)
    seconds = validated("seconds", "a number from 0, or null", lambda value: value is None or _is_amount(value))
    depth = validated("depth", "a whole number from 1, or null", lambda value: value is None or _is_count(value))
    return Judgment(
        judge=judge,
        query_id=query_id,
        left=left,
        right=right,
        choice=choice,
        time=datetime.fromisoformat(time),
        seconds=seconds,
        depth=depth,
        blind=validated("blind", "true or false", lambda value: isinstance(value, bool), default=True),
        query=validated("query", "a string", lambda value: isinstance(value, str), default=""),
        translation=validated("translation", "a string, or null", lambda value: isinstance(value, str | None)),
        left_doc_ids=string_list("left_doc_ids"),
        right_doc_ids=string_list("right_doc_ids"),
    )


def current_judgments(rows: Iterable[Judgment]) -> CurrentJudgments:
    """Those of `rows` that count, whatever order they come in; sorted by judge, query and systems."""
    all_rows = list(rows)
    distinct_rows = set(all_rows)
    latest: dict[tuple[str, str, Pair], Judgment] = {}
    replaced = undone = 0
    for row in sorted(distinct_rows, key=lambda row: (row.time, repr(row))):
        item = (row.judge, row.query_id, row.pair)
        previous = latest.pop(item, None)
        if row.choice != UNDONE:
            latest[item] = row
            replaced += previous is not None
        else:
            undone += previous is not None
    judgments = tuple(latest[item] for item in sorted(latest))
    return CurrentJudgments(judgments, len(all_rows) - len(distinct_rows), replaced, undone)


# --- what they come to ---


def summarize_preferences(rows: Iterable[Judgment]) -> Preferences:
    """Everything that is told of judgments, in whatever order they come.

    Raises `InputError` if none of them stands, `MissingExtra` without numpy and scipy.
    """
    current = current_judgments(rows)
    judgments = current.judgments
    if not judgments:
        raise InputError("there are no judgments, or all were taken back", "judge some on the page of rank-k serve")
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


def estimate_share(value: float, count: int, level: float = CONFIDENCE_LEVEL) -> Share:
    """`value`, the mean of `count` numbers between 0 and 1, with its interval by Wilson's score (Wilson 1927).

    Not the bootstrap that intervals of measures here come from: that shrinks to nothing where all say the same, and a
    study by people has few queries; Wilson's holds what it promises for as few as ten (Brown, Cai and DasGupta 2001).
    Made for numbers that are 0 or 1. Others of the same mean vary less, so that it is too wide then, never too narrow.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    center = (value + z * z / (2 * count)) / (1 + z * z / count)
    half_width = z * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Share(value, max(0.0, min(value, center - half_width)), min(1.0, max(value, center + half_width)))


def _compare_pairs(judgments: Iterable[Judgment]) -> tuple[ComparedPair, ...]:
    """Each query weighs the same, however many have judged it, and counts once: its judgments are not independent."""
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
        p = test.randomization_p
        pairs.append(
            ComparedPair(
                first, second, len(by_query), len(rows_of_pair), win_rate, won_share, tied_share, lost_share, p
            )
        )
    corrected = holm([pair.p for pair in pairs])
    return tuple(replace(pair, p=p) for pair, p in zip(pairs, corrected, strict=True))


_WON, _TIED, _LOST = 0, 1, 2


def _outcome(row: Judgment) -> int:
    """For the first of its pair."""
    return _TIED if row.winner is None else _WON if row.winner == row.pair[0] else _LOST


def _count_sides(judgments: Iterable[Judgment]) -> SideCounts:
    """Here every judgment counts: the sides of each were drawn anew."""
    counts = Counter(row.choice for row in judgments)
    decided_count = counts[LEFT] + counts[RIGHT]
    if not decided_count:
        return SideCounts(0, 0, counts[TIE], None, None)
    p = float(load("scipy.stats").binomtest(counts[LEFT], decided_count).pvalue)
    return SideCounts(
        counts[LEFT], counts[RIGHT], counts[TIE], estimate_share(counts[LEFT] / decided_count, decided_count), p
    )


def _median_seconds(judgments: Iterable[Judgment]) -> float | None:
    seconds = [row.seconds for row in judgments if row.seconds is not None]
    return median(seconds) if seconds else None


def _group_judgments(judgments: Iterable[Judgment], key: Callable[[Judgment], Any]) -> dict[Any, list[Judgment]]:
    return {name: list(rows) for name, rows in groupby(sorted(judgments, key=key), key)}


# --- what may stand in a row ---


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_strings(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _abbreviate(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
