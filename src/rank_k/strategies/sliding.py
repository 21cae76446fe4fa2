"""The paper's strategy: a window that slides from the end of the list to its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rank_k.errors import InputError
from rank_k.strategies.base import StrategyGenerator, Ties, WindowStrategy, record_consensus, tied_ranking
from rank_k.types import Candidate, Round, Window


def window_spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Return (start, end) of each window over a list of `length`, from the end to the head.

    Every span is full unless the list is shorter than a window, the last one starts at 0, and a list of fewer than
    two passages has none.
    """
    if length < 2:
        return []
    full_spans = [(end - window, end) for end in range(length, window, -stride)]
    return [*full_spans, (0, min(window, length))]


def rank_spans(candidates: Sequence[Candidate], spans: Sequence[tuple[int, int]], overlap: bool) -> StrategyGenerator:
    """Rank spans of the list of candidates one after the other, each in a round of its own.

    Args:
        candidates: the candidates, best first.
        spans: (start, end) of each window, from the end of the list to the head.
        overlap: whether neighboring spans share passages, so that a passage can rise to the head of the list.
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
    """`window` passages at a time, moving by `stride`; one window a round.

    With stride below window the best of each window are carried into the next, so that a passage can rise
    from the end to the head in one pass. Defaults: 20 and 10, as in the paper.
    """

    stride: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stride <= self.window:
            raise InputError(f"stride is {self.stride}", f"give 1 to {self.window}, the window's size")

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        spans = window_spans(len(candidates), self.window, self.stride)
        return rank_spans(candidates, spans, overlap=self.stride < self.window)
