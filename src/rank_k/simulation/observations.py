"""The answers of a run as looks at windows, and a query's looks as arrays of comparisons: what noise is read from.

Later windows hold passages that earlier answers put there: their errors are a selection. Pairs count only where neither
passage was shown in an earlier round, which makes them as good as drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from rank_k.journal import WindowRecord
from rank_k.optional_deps import load
from rank_k.types import WindowRanking
from rank_k.window.listwise import sample_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer about one window: the passages as they were shown, the order read, and which of the passages had
    not been shown in an earlier round."""

    query_id: str
    shown: tuple[str, ...]
    order: WindowRanking
    unseen: frozenset[str]
    sample: int = 0


def observations_of(records: Iterable[WindowRecord]) -> list[Observation]:
    """The looks that a run took, from its windows in the order asked; those by likelihood, which compare nothing, are
    left out."""
    found: list[Observation] = []
    seen: dict[str, set[str]] = {}  # by query, in rounds before the present one
    current: dict[str, tuple[int, set[str]]] = {}
    for record in records:
        if record.window.method != "listwise":
            continue
        number, now = current.get(record.query_id, (record.round, set()))
        before = seen.setdefault(record.query_id, set())
        if number != record.round:
            before |= now
            now = set()
        ids = record.window.doc_ids
        current[record.query_id] = record.round, now | set(ids)
        # with two answers to one look it is not known any more in which order later ones were shown
        orders = record.rankings[:1] if record.repairs.get("windows_reasoned") else record.rankings
        for sample, order in enumerate(orders):
            shown = sample_order(record.query_id, ids, sample)
            found.append(Observation(record.query_id, shown, order, frozenset(ids) - before, sample))
    return found


class Comparisons:
    """One query's comparisons of two unseen passages in one look, as arrays.

    `first`: 1 where the one came first, 0 where the other did, 1/2 for a tie; `other` and `one` are ordered so that
    the grade of `one` is not lower. `gap`: difference of grades; `blurred`: what of it is lost on passages in the
    middle, for a `middle` of 1; `lead`: how much earlier `one` was shown, as a part of the window; `size`: of the
    window.
    """

    def __init__(self, grades: Mapping[str, int], looks: Sequence[Observation]) -> None:
        np = load("numpy")
        ids = sorted({doc_id for look in looks for doc_id in look.shown})
        number = {doc_id: i for i, doc_id in enumerate(ids)}
        self.grade = np.array([float(grades.get(doc_id, 0)) for doc_id in ids])
        self.looks = [ObservedPairs(look, number) for look in looks]
        parts = [_compared(seen, self.grade) for seen in self.looks]
        self.gap, self.blurred, self.lead, self.size, self.first = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )


class ObservedPairs:
    """A look as arrays over its unseen passages that the model placed: numbers, places shown, tiers."""

    def __init__(self, look: Observation, number: Mapping[str, int]) -> None:
        np = load("numpy")
        tier = {doc_id: n for n, tied in enumerate(look.order.tiers) for doc_id in tied}
        kept = [
            (number[doc_id], place, tier[doc_id])
            for place, doc_id in enumerate(look.shown)
            if doc_id in look.unseen and look.order.is_valid and doc_id in look.order.ranked_ids
        ]
        self.ids, self.places, self.tiers = np.array(kept, dtype=np.int64).reshape(-1, 3).T
        self.all = np.array([number[doc_id] for doc_id in look.shown])
        self.members = frozenset(look.shown)


def _compared(seen: ObservedPairs, grade: Floats) -> tuple[Any, ...]:
    np = load("numpy")
    size = len(seen.all)
    one, other = np.triu_indices(len(seen.ids), 1)
    swap = grade[seen.ids[one]] < grade[seen.ids[other]]
    one, other = np.where(swap, other, one), np.where(swap, one, other)
    part = seen.places / max(size - 1, 1)
    away = (grade[seen.ids] - grade[seen.all].mean()) * (4 * part * (1 - part) if size > 2 else 0.0)
    first = (np.sign(seen.tiers[other] - seen.tiers[one]) + 1) / 2
    return (
        grade[seen.ids[one]] - grade[seen.ids[other]],
        away[one] - away[other],
        part[other] - part[one],
        np.full(len(one), float(size)),
        first,
    )
