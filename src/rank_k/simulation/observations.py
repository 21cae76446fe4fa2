"""The answers of a run as observations of windows, and a query's observations as arrays: what noise is fitted to.

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
from rank_k.window.prompt_builder import presented_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer about one window: `doc_ids` in the order shown, the parsed ranking, and the passages that no earlier
    round showed (`unseen`)."""

    query_id: str
    doc_ids: tuple[str, ...]
    ranking: WindowRanking
    unseen: frozenset[str]
    sample: int = 0


def observations_of(records: Iterable[WindowRecord]) -> list[Observation]:
    """Return the observations of a run, from its windows in the order of their calls. Windows scored by query
    likelihood compare nothing and are left out."""
    observations: list[Observation] = []
    earlier_ids_by_query: dict[str, set[str]] = {}  # by query, in rounds before the present one
    current_round: dict[str, tuple[int, set[str]]] = {}
    for record in records:
        if record.window.method != "listwise":
            continue
        round_number, round_ids = current_round.get(record.query_id, (record.round, set()))
        earlier_ids = earlier_ids_by_query.setdefault(record.query_id, set())
        if round_number != record.round:
            earlier_ids |= round_ids
            round_ids = set()
        window_ids = record.window.doc_ids
        current_round[record.query_id] = record.round, round_ids | set(window_ids)
        # with two answers to one sample it is not known any more in which order later samples were shown
        rankings = record.rankings[:1] if record.repairs.get("windows_reasoned") else record.rankings
        for sample, ranking in enumerate(rankings):
            doc_ids = presented_order(record.query_id, window_ids, sample)
            observations.append(
                Observation(record.query_id, doc_ids, ranking, frozenset(window_ids) - earlier_ids, sample)
            )
    return observations


class Comparisons:
    """One query's comparisons of two unseen passages in one observation, as arrays.

    The first passage of a pair is the one whose grade is not lower. `outcomes`: 1 where it came first, 0 where the
    other did, 1/2 for a tie. `grade_gap`: difference of grades. `middle_loss`: what of it is lost on passages in the
    middle, for a `middle` of 1. `position_lead`: how much earlier it was shown, as a fraction of the window.
    `window_size`: passages in the window.
    """

    def __init__(self, grades: Mapping[str, int], observations: Sequence[Observation]) -> None:
        np = load("numpy")
        ids = sorted({doc_id for observation in observations for doc_id in observation.doc_ids})
        index_by_id = {doc_id: i for i, doc_id in enumerate(ids)}
        self.grade = np.array([float(grades.get(doc_id, 0)) for doc_id in ids])
        self.observations = [ObservationArrays(observation, index_by_id) for observation in observations]
        columns = [_compare_pairs(arrays, self.grade) for arrays in self.observations]
        self.grade_gap, self.middle_loss, self.position_lead, self.window_size, self.outcomes = (
            np.concatenate(column) for column in zip(*columns, strict=True)
        )


class ObservationArrays:
    """An observation as arrays over its unseen passages that the model ranked: ids, positions shown, tiers."""

    def __init__(self, observation: Observation, index_by_id: Mapping[str, int]) -> None:
        np = load("numpy")
        tier_by_id = {
            doc_id: tier_number for tier_number, tier_ids in enumerate(observation.ranking.tiers) for doc_id in tier_ids
        }
        rows = [
            (index_by_id[doc_id], position, tier_by_id[doc_id])
            for position, doc_id in enumerate(observation.doc_ids)
            if doc_id in observation.unseen
            and observation.ranking.is_valid
            and doc_id in observation.ranking.ranked_ids
        ]
        self.ids, self.positions, self.tiers = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        self.window_ids = np.array([index_by_id[doc_id] for doc_id in observation.doc_ids])
        self.id_set = frozenset(observation.doc_ids)


def _compare_pairs(arrays: ObservationArrays, grade: Floats) -> tuple[Any, ...]:
    np = load("numpy")
    window_size = len(arrays.window_ids)
    better, worse = np.triu_indices(len(arrays.ids), 1)
    swap = grade[arrays.ids[better]] < grade[arrays.ids[worse]]
    better, worse = np.where(swap, worse, better), np.where(swap, better, worse)
    relative_position = arrays.positions / max(window_size - 1, 1)
    middle_loss = (grade[arrays.ids] - grade[arrays.window_ids].mean()) * (
        4 * relative_position * (1 - relative_position) if window_size > 2 else 0.0
    )
    outcomes = (np.sign(arrays.tiers[worse] - arrays.tiers[better]) + 1) / 2
    return (
        grade[arrays.ids[better]] - grade[arrays.ids[worse]],
        middle_loss[better] - middle_loss[worse],
        relative_position[worse] - relative_position[better],
        np.full(len(better), float(window_size)),
        outcomes,
    )
