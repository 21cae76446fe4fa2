"""Read the answers of a run as observations, from which the noise of the model is estimated.

The answers of earlier rounds select the passages of later windows, so the errors in later windows are not a random
sample. An observation therefore marks the passages that no earlier round presented, and only these are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from rank_k.journal import WindowRecord
from rank_k.types import WindowRanking
from rank_k.window.prompt_builder import presented_order


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer for one window.

    Attributes:
        query_id: The query.
        doc_ids: The passages of the window, in the order in which the prompt presented them.
        ranking: The parsed answer.
        unseen: The passages that no earlier round presented.
        sample: The number of the sample, from 0.
    """

    query_id: str
    doc_ids: tuple[str, ...]
    ranking: WindowRanking
    unseen: frozenset[str]
    sample: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether the model ranked every passage."""
        return self.ranking.is_valid and len(self.ranking.ranked_ids) == len(self.doc_ids)

    def comparable(self) -> dict[str, tuple[int, int]]:
        """Return, for each unseen passage that the model ranked, its position in the prompt and its tier, from 0."""
        if not self.ranking.is_valid:
            return {}
        tiers = {doc_id: number for number, tier in enumerate(self.ranking.tiers) for doc_id in tier}
        ids = self.unseen & self.ranking.ranked_ids
        return {doc_id: (position, tiers[doc_id]) for position, doc_id in enumerate(self.doc_ids) if doc_id in ids}


def observations_of(records: Iterable[WindowRecord]) -> list[Observation]:
    """Return the observations of a run.

    Args:
        records: The windows of the run, ordered by query and round. Windows that were scored by query likelihood are
            ignored, because the model did not compare their passages.
    """
    observations: list[Observation] = []
    listwise = (record for record in records if record.window.method == "listwise")
    for query_id, query_records in groupby(listwise, key=lambda record: record.query_id):
        earlier_ids: frozenset[str] = frozenset()
        for _, round_records in groupby(query_records, key=lambda record: record.round):
            presented_ids = earlier_ids
            for record in round_records:
                window_ids = record.window.doc_ids
                presented_ids |= set(window_ids)
                # A sample in which auto mode reasoned has two rankings. Later rankings then cannot be matched to the
                # order in which their sample presented the passages.
                rankings = record.rankings[:1] if record.repairs.get("windows_reasoned") else record.rankings
                unseen = frozenset(window_ids) - earlier_ids
                observations += [
                    Observation(query_id, presented_order(query_id, window_ids, sample), ranking, unseen, sample)
                    for sample, ranking in enumerate(rankings)
                ]
            earlier_ids = presented_ids
    return observations
