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
        ids = [candidate.doc_id for candidate in candidates]
        ties: Ties = {}
        spans = window_spans(len(ids), self.window, self.stride)
        for finished_count, (start, end) in enumerate(spans):
            best_rank = 1 if self.stride < self.window else start + 1
            window = Window(tuple(ids[start:end]), (best_rank, end))
            [result] = yield Round((window,), tied_ranking(ties, ids), len(spans) - finished_count)
            ids[start:end] = record_consensus(ties, result).doc_ids
        return tied_ranking(ties, ids)
