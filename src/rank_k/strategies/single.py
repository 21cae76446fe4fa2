"""Rank only the first window. All other candidates keep their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rank_k.strategies.base import StrategyGenerator, WindowStrategy
from rank_k.strategies.sliding import rank_spans, window_spans
from rank_k.types import Candidate


@dataclass(frozen=True)
class Single(WindowStrategy):
    """Rank the first `window` candidates, in a single window. The other candidates follow in their order."""

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        head_span = window_spans(len(candidates), self.window, stride=self.window)[-1:]
        return rank_spans(candidates, head_span, overlap=False)
