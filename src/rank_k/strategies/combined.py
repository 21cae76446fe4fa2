"""Combine query likelihood, a listwise strategy and the first stage into one ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean, pstdev

from rank_k.optional_deps import load
from rank_k.strategies.base import Strategy, StrategyGenerator, run_validated
from rank_k.strategies.bradley_terry import RANK_OFFSET, fit_strengths
from rank_k.types import Candidate, Ranking, Round, Window, WindowResult

LIKELIHOOD_WEIGHT = 2.0
"""Weight of the query likelihoods; the listwise rankings have weight 1. It was chosen for rank-k-nano
(docs/results/rank-k-nano.md)."""

_MIN_DEVIATION = 1e-9
"""Smaller standard deviations are rounding errors."""

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Combined:
    """Score all candidates with query likelihood, and then rerank the best ones with a listwise strategy.

    The first round computes query likelihoods. The candidates are sorted by the sum of the likelihood and the
    first-stage score, and this order is the input of the listwise strategy. The final score is a weighted sum of three
    scores, each of them z-scored over the candidates: Bradley-Terry strengths without a prior (weight 1), query
    log-likelihoods (weight `LIKELIHOOD_WEIGHT`), and the first-stage score -ln(rank + 10) (weight
    `first_stage_weight`). A passage without a likelihood gets the mean.

    This strategy has no name in `STRATEGIES`; `Reranker(method="combined")` creates it. numpy is required.

    Attributes:
        strategy: The listwise strategy.
        first_stage_weight: Weight of the first stage, 0 or more (default: 1).

    Raises:
        MissingExtra: If numpy is not installed.
    """

    strategy: Strategy
    first_stage_weight: float = 1.0

    def __post_init__(self) -> None:
        load("numpy")  # fail now, before the first round has cost anything

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        ids = tuple(candidate.doc_id for candidate in candidates)
        first_round = next(run_validated(self.strategy, candidates, seed), None) if len(ids) > 1 else None
        if first_round is None:
            return Ranking.untied(ids)
        window = Window(ids, (1, len(ids)), method="likelihood")
        [likelihood_result] = yield Round((window,), Ranking.untied(ids), 1 + first_round.remaining_windows)
        first_stage = first_stage_scores(ids)
        likelihood = standardize(likelihood_result.likelihoods)
        initial_ids = rank_by_weighted_sum(ids, (1.0, likelihood), (self.first_stage_weight, first_stage))
        listwise_results: list[WindowResult] = []
        generator = run_validated(
            self.strategy, [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(initial_ids, 1)], seed
        )
        try:
            next_round = next(generator)
            while True:
                ranking = self._combined_ranking(ids, listwise_results, likelihood, first_stage)
                round_results = yield Round(next_round.windows, ranking, next_round.remaining_windows)
                listwise_results += round_results
                next_round = generator.send(round_results)
        except StopIteration:
            return self._combined_ranking(ids, listwise_results, likelihood, first_stage)

    def _combined_ranking(
        self, ids: Sequence[str], listwise_results: Sequence[WindowResult], likelihood: Scores, first_stage: Scores
    ) -> Ranking:
        strengths = comparison_scores(ids, listwise_results)
        return Ranking.untied(
            rank_by_weighted_sum(
                ids, (1.0, strengths), (LIKELIHOOD_WEIGHT, likelihood), (self.first_stage_weight, first_stage)
            )
        )


def first_stage_scores(ids: Sequence[str]) -> Scores:
    """Return z-scored first-stage scores by id. `ids` is sorted by the first stage, best first."""
    return standardize({doc_id: -log(rank + RANK_OFFSET) for rank, doc_id in enumerate(ids)})


def comparison_scores(ids: Sequence[str], listwise_results: Sequence[WindowResult]) -> Scores:
    """Return z-scored Bradley-Terry strengths by id, without the first stage as prior."""
    fitted = fit_strengths(ids, listwise_results, first_stage_weight=0)
    return standardize(dict(zip(fitted.doc_ids, fitted.strengths, strict=True)))


def standardize(scores: Scores) -> Scores:
    """Return z-scores by id: differences from the mean in standard deviations. They are 0 if all scores are equal."""
    if not scores:
        return scores
    mean, deviation = fmean(scores.values()), pstdev(scores.values())
    return {
        doc_id: (score - mean) / deviation if deviation > _MIN_DEVIATION else 0.0 for doc_id, score in scores.items()
    }


def rank_by_weighted_sum(ids: Sequence[str], *weighted_scores: tuple[float, Scores]) -> list[str]:
    """Return `ids` sorted by the weighted sum of z-scores, highest first. Equal sums keep the order of `ids`.

    Args:
        ids: The ids.
        weighted_scores: Pairs of weight and z-scores by id. A missing score counts as 0, the mean.
    """

    def total(doc_id: str) -> float:
        # rounded, because the last bits differ between machines
        return round(sum(weight * scores.get(doc_id, 0.0) for weight, scores in weighted_scores), 7)

    return sorted(ids, key=total, reverse=True)
