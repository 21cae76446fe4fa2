"""What people preferred, for the terminal and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rank_k.cli.render.evaluation_text import align_table
from rank_k.evaluation.agreement import Agreement
from rank_k.evaluation.preferences import ComparedPair, Preferences, Share, SideCounts


def notes(preferences: Preferences) -> Iterator[str]:
    """What one should know of the rows beside their figures."""
    current = preferences.current
    counts = {
        "rows that are there twice": current.repeated,
        "judgments replaced by later ones of the same judge": current.replaced,
        "judgments taken back": current.undone,
    }
    for label, count in counts.items():
        if count:
            yield f"not counted, {label}: {count}"
    if preferences.unblinded:
        yield f"judgments made with the systems' names in sight: {preferences.unblinded}"


def lines(preferences: Preferences) -> list[str]:
    """Tables with a blank line between them."""
    correction = f", corrected for {len(preferences.pairs)} pairs (Holm)" if len(preferences.pairs) > 1 else ""
    output = ["preferences: the first of two systems over the second, ties counting half"]
    output += align_table(
        ["first", "second", "queries", "judgments", "win rate", "95 % interval", "won", "tied", "lost", "p"],
        [_pair_row(compared) for compared in preferences.pairs],
        left_columns=2,
    )
    output += [
        f"every query weighs the same; intervals by Wilson, over queries; p by randomization of signs{correction}"
    ]
    judge_rows = [
        [judge.name, *_sides_row(judge.sides), _format_seconds(judge.median_seconds)] for judge in preferences.judges
    ]
    if len(judge_rows) > 1:
        judge_rows.append(["all", *_sides_row(preferences.sides), ""])
    output += ["", "judges, and how often each preferred what stood on the left"]
    output += align_table(["judge", "judgments", "ties", "left", "95 % interval", "p", "seconds"], judge_rows)
    if preferences.agreement:
        output += ["", "agreement on what more than one has judged; 95 % bootstrap intervals over queries"]
        output += align_table(
            ["judges", "coefficient", "items", "same", "value", "95 % interval"],
            [_agreement_row(agreement, len(preferences.judges)) for agreement in preferences.agreement],
            left_columns=2,
        )
    return output


def _pair_row(pair: ComparedPair) -> list[str]:
    shares = (pair.won, pair.tied, pair.lost)
    return [
        *(pair.first, pair.second, str(pair.queries), str(pair.judgments)),
        *_share_cells(pair.win_rate),
        *(f"{share.value:.3f}" for share in shares),
        _format_p(pair.p),
    ]


def _sides_row(sides: SideCounts) -> list[str]:
    return [str(sides.judgments), str(sides.ties), *_share_cells(sides.share), _format_p(sides.p)]


def _format_p(value: float | None) -> str:
    return "-" if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _share_cells(share: Share | None) -> list[str]:
    return ["-", "-"] if share is None else [f"{share.value:.3f}", f"{share.low:.3f} to {share.high:.3f}"]


def _format_seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"


def _agreement_row(agreement: Agreement, judges: int) -> list[str]:
    judge_names = f"all {judges}" if len(agreement.judges) > 2 else ", ".join(agreement.judges)
    value = "-" if agreement.value is None else f"{agreement.value:.3f}"
    bounds = "-" if agreement.low is None else f"{agreement.low:.3f} to {agreement.high:.3f}"
    return [judge_names, agreement.coefficient, str(agreement.items), f"{agreement.observed:.3f}", value, bounds]


def as_json(preferences: Preferences) -> str:
    """What cannot be computed is null."""
    output: dict[str, Any] = {
        "pairs": [asdict(pair) for pair in preferences.pairs],
        "sides": _sides_to_dict(preferences.sides),
        "judges": [
            {"name": judge.name, "median_seconds": judge.median_seconds, **_sides_to_dict(judge.sides)}
            for judge in preferences.judges
        ],
        "agreement": [asdict(agreement) for agreement in preferences.agreement],
        "judgments": len(preferences.current.judgments),
        "translated": preferences.translated,
        "names_in_sight": preferences.unblinded,
        "repeated_rows": preferences.current.repeated,
        "replaced": preferences.current.replaced,
        "undone": preferences.current.undone,
    }
    return json.dumps(output, indent=2)


def _sides_to_dict(sides: SideCounts) -> dict[str, Any]:
    return {"judgments": sides.judgments, **asdict(sides)}
