"""What people preferred, for the terminal and for programs (JSON)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rank_k.cli.render.evaluation_text import aligned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rank_k.evaluation.agreement import Agreement
    from rank_k.evaluation.preferences import ComparedPair, Preferences, Share, Sides


def notes(found: Preferences) -> Iterator[str]:
    """What one should know of the rows beside their figures."""
    standing = found.standing
    told = {
        "rows that are there twice": standing.repeated,
        "judgments replaced by later ones of the same judge": standing.replaced,
        "judgments taken back": standing.undone,
    }
    for what, number in told.items():
        if number:
            yield f"not counted, {what}: {number}"
    if found.named:
        yield f"judgments made with the systems' names in sight: {found.named}"


def lines(found: Preferences) -> list[str]:
    """Tables with a blank line between them."""
    several = f", corrected for {len(found.pairs)} pairs (Holm)" if len(found.pairs) > 1 else ""
    shown = ["preferences: the first of two systems over the second, ties counting half"]
    shown += aligned(
        ["first", "second", "queries", "judgments", "win rate", "95 % interval", "won", "tied", "lost", "p"],
        [_pair(compared) for compared in found.pairs],
        left=2,
    )
    shown += [f"every query weighs the same; intervals by Wilson, over queries; p by randomization of signs{several}"]
    judges = [[judge.name, *_sides(judge.sides), _seconds(judge.seconds)] for judge in found.judges]
    if len(judges) > 1:
        judges.append(["all", *_sides(found.sides), ""])
    shown += ["", "judges, and how often each preferred what stood on the left"]
    shown += aligned(["judge", "judgments", "ties", "left", "95 % interval", "p", "seconds"], judges)
    if found.agreement:
        shown += ["", "agreement on what more than one has judged; 95 % bootstrap intervals over queries"]
        shown += aligned(
            ["judges", "coefficient", "items", "same", "value", "95 % interval"],
            [_agreement(agreement, len(found.judges)) for agreement in found.agreement],
            left=2,
        )
    return shown


def _pair(compared: ComparedPair) -> list[str]:
    shares = (compared.won, compared.tied, compared.lost)
    return [
        *(compared.first, compared.second, str(compared.queries), str(compared.judgments)),
        *_share(compared.win_rate),
        *(f"{share.value:.3f}" for share in shares),
        _p(compared.p),
    ]


def _sides(sides: Sides) -> list[str]:
    return [str(sides.judgments), str(sides.ties), *_share(sides.share), _p(sides.p)]


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _share(share: Share | None) -> list[str]:
    return ["-", "-"] if share is None else [f"{share.value:.3f}", f"{share.low:.3f} to {share.high:.3f}"]


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"


def _agreement(agreement: Agreement, judges: int) -> list[str]:
    named = f"all {judges}" if len(agreement.judges) > 2 else ", ".join(agreement.judges)
    value = "-" if agreement.value is None else f"{agreement.value:.3f}"
    ends = "-" if agreement.low is None else f"{agreement.low:.3f} to {agreement.high:.3f}"
    return [named, agreement.coefficient, str(agreement.items), f"{agreement.observed:.3f}", value, ends]


def as_json(found: Preferences) -> str:
    """What cannot be computed is null."""
    told: dict[str, Any] = {
        "pairs": [asdict(compared) for compared in found.pairs],
        "sides": _sides_told(found.sides),
        "judges": [
            {"name": judge.name, "median_seconds": judge.seconds, **_sides_told(judge.sides)} for judge in found.judges
        ],
        "agreement": [asdict(agreement) for agreement in found.agreement],
        "judgments": len(found.standing.judgments),
        "translated": found.translated,
        "names_in_sight": found.named,
        "repeated_rows": found.standing.repeated,
        "replaced": found.standing.replaced,
        "undone": found.standing.undone,
    }
    return json.dumps(told, indent=2)


def _sides_told(sides: Sides) -> dict[str, Any]:
    return {"judgments": sides.judgments, **asdict(sides)}
