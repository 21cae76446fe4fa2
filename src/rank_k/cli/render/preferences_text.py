"""Preference judgments as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rank_k.cli.render.tables import Table
from rank_k.evaluation.preferences import Preferences, Share, SideCounts


def notes(preferences: Preferences) -> Iterator[str]:
    """Yield the numbers of judgments that are not counted, and of judgments that are not blind."""
    current = preferences.current
    counts = {
        "rows left out because they are repeated": current.repeated,
        "judgments left out because the same judge replaced them later": current.replaced,
        "judgments left out because they were undone": current.undone,
        "judgments by judges who could see the names of the systems": preferences.unblinded,
    }
    yield from (f"{label}: {count}" for label, count in counts.items() if count)


def tables(preferences: Preferences) -> Iterator[Table]:
    """Yield a table of the pairs of systems, a table of the judges, and a table of their agreement."""
    correction = f", corrected for {len(preferences.pairs)} pairs (Holm)" if len(preferences.pairs) > 1 else ""
    yield Table(
        ["first", "second", "queries", "judgments", "win rate", "95 % interval", "won", "tied", "lost", "p"],
        [
            [
                *(pair.first, pair.second, pair.queries, pair.judgments),
                *_share_cells(pair.win_rate),
                *(f"{share.value:.3f}" for share in (pair.won, pair.tied, pair.lost)),
                _format_p(pair.p),
            ]
            for pair in preferences.pairs
        ],
        align="ll",
        title="preferences for the first of two systems over the second; the win rate counts a tie as half a win",
        notes=[
            "every query has the same weight; Wilson intervals over queries;"
            f" p by a randomization test of signs{correction}"
        ],
    )
    judge_rows = [
        [judge.name, *_sides_cells(judge.sides), _format(judge.median_seconds, 1)] for judge in preferences.judges
    ]
    if len(judge_rows) > 1:
        judge_rows.append(["all", *_sides_cells(preferences.sides), ""])
    yield Table(
        ["judge", "judgments", "ties", "left", "95 % interval", "p", "seconds"],
        judge_rows,
        title="judges, and the share of their judgments without ties that preferred the ranking on the left",
    )
    if preferences.agreement:
        yield Table(
            ["judges", "coefficient", "items", "same", "value", "95 % interval"],
            [
                [
                    f"all {len(preferences.judges)}" if len(agreement.judges) > 2 else ", ".join(agreement.judges),
                    *(agreement.coefficient, agreement.items, _format(agreement.observed)),
                    *(_format(agreement.value), _format_interval(agreement.low, agreement.high)),
                ]
                for agreement in preferences.agreement
            ],
            align="ll",
            title="agreement on items with more than one judge; 95 % bootstrap intervals over queries",
        )


def _sides_cells(sides: SideCounts) -> list[str]:
    return [str(sides.judgments), str(sides.ties), *_share_cells(sides.share), _format_p(sides.p)]


def _share_cells(share: Share | None) -> list[str]:
    return ["-", "-"] if share is None else [_format(share.value), _format_interval(share.low, share.high)]


def _format(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _format_interval(low: float | None, high: float | None) -> str:
    return "-" if low is None else f"{low:.3f} to {high:.3f}"


def _format_p(value: float | None) -> str:
    return "<0.0001" if value is not None and value < 0.0001 else _format(value, 4)


def as_json(preferences: Preferences) -> str:
    """Return all results as a JSON object. Values that cannot be computed are null."""
    current = preferences.current
    output: dict[str, Any] = {
        "pairs": [asdict(pair) for pair in preferences.pairs],
        "sides": _sides_to_dict(preferences.sides),
        "judges": [
            {"name": judge.name, "median_seconds": judge.median_seconds, **_sides_to_dict(judge.sides)}
            for judge in preferences.judges
        ],
        "agreement": [asdict(agreement) for agreement in preferences.agreement],
        "judgments": len(current.judgments),
        "translated": preferences.translated,
        "names_in_sight": preferences.unblinded,
        "repeated_rows": current.repeated,
        "replaced": current.replaced,
        "undone": current.undone,
    }
    return json.dumps(output, indent=2)


def _sides_to_dict(sides: SideCounts) -> dict[str, Any]:
    return {"judgments": sides.judgments, **asdict(sides)}
