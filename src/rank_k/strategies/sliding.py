"""The strategy of the Rank-K paper: a window that slides from the end of the list to its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rank_k.errors import InputError
from rank_k.strategies.base import StrategyGenerator, Ties, WindowStrategy, record_consensus, tied_ranking
from rank_k.types import Candidate, Round, Window


def window_spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Return the start and end of each window, from the end of the list to its head.

    All windows are full, unless the list is shorter than a window. The last window starts at 0.

    Args:
        length: Number of candidates. With fewer than two, there are no windows.
        window: Number of passages per window.
        stride: Number of passages that the window moves by.
    """
    if length < 2:
        return []
    full_spans = [(end - window, end) for end in range(length, window, -stride)]
    return [*full_spans, (0, min(window, length))]


def rank_spans(candidates: Sequence[Candidate], spans: Sequence[tuple[int, int]], overlap: bool) -> StrategyGenerator:
    """Rank parts of the list one after the other, one window per round.

    Args:
        candidates: The candidates, best first.
        spans: The start and end of each window, from the end of the list to its head.
        overlap: Whether consecutive windows overlap, so that a passage can rise from the end to the head of the list.
    """
    ids = [candidate.doc_id for candidate in candidates]
    ties: Ties = {}
    for finished_count, (start, end) in enumerate(spans):
        window = Window(tuple(ids[start:end]), (1 if overlap else start + 1, end))
        [result] = yield Round((window,), tied_ranking(ties, ids), len(spans) - finished_count)
        ids[start:end] = record_consensus(ties, result).doc_ids
    return tied_ranking(ties, ids)


@dataclass(frozen=True)
class Sliding(WindowStrategy):
    """Rank windows of `window` passages that move by `stride` from the end of the list to its head, one per round.

    If `stride` is smaller than `window`, the best passages of each window are also in the next one, so that a passage
    can rise from the end to the head. The defaults are the same as in the paper: windows of 20 and a stride of 10.

    Raises:
        InputError: If `window` is below 2, or `stride` is not between 1 and `window`.
    """

    stride: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stride <= self.window:
            raise InputError(f"stride is {self.stride}", f"give 1 to {self.window}, the size of the window")

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        spans = window_spans(len(candidates), self.window, self.stride)
        return rank_spans(candidates, spans, overlap=self.stride < self.window)
