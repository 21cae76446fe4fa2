"""Query likelihood, then a listwise strategy, and a final ranking from both and the first stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean, pstdev

from rank_k.optional_deps import load
from rank_k.strategies.base import Strategy, StrategyGenerator, check_first_stage_weight, run_validated
from rank_k.strategies.bradley_terry import RANK_OFFSET, fit_strengths
from rank_k.types import Candidate, Ranking, Round, Window, WindowResult

LIKELIHOOD_WEIGHT = 2.0
"""The weight of the likelihoods beside the comparisons' 1, chosen for rank-k-nano (docs/results/rank-k-nano.md)."""

_MIN_DEVIATION = 1e-9
"""A deviation that is no more than rounding."""

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Combined:
    """Score all candidates by query likelihood, then run `strategy` on the order by likelihood and first stage.

    The final score is a weighted sum of three scores, each z-scored over the candidates: Bradley-Terry strengths
    (`fit_strengths` without a prior; weight 1), query log-likelihoods (`LIKELIHOOD_WEIGHT`) and the first stage's
    -ln(rank + 10) (`first_stage_weight`). A passage without a likelihood has the mean one.

    It has no name in `STRATEGIES`: `Reranker(method="combined")` makes one from any strategy. Needs numpy. Raises
    `InputError` for an invalid weight and `MissingExtra` without numpy.
    """

    strategy: Strategy
    first_stage_weight: float = 1.0

    def __post_init__(self) -> None:
        check_first_stage_weight(self.first_stage_weight)
        load("numpy")  # now, not after everything has been paid for

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
    """Return the z-scored first-stage scores of `ids`, best first."""
    return standardize({doc_id: -log(rank + RANK_OFFSET) for rank, doc_id in enumerate(ids)})


def comparison_scores(ids: Sequence[str], listwise_results: Sequence[WindowResult]) -> Scores:
    """Return the z-scored Bradley-Terry strengths of `ids`, fitted without a prior."""
    fitted = fit_strengths(ids, listwise_results, first_stage_weight=0)
    return standardize(dict(zip(fitted.doc_ids, fitted.strengths, strict=True)))


def standardize(scores: Scores) -> Scores:
    """Return `scores` in standard deviations from the mean (z-scores); zeros where all are equal."""
    if not scores:
        return scores
    mean, deviation = fmean(scores.values()), pstdev(scores.values())
    return {
        doc_id: (score - mean) / deviation if deviation > _MIN_DEVIATION else 0.0 for doc_id, score in scores.items()
    }


def rank_by_weighted_sum(ids: Sequence[str], *weighted_scores: tuple[float, Scores]) -> list[str]:
    """Return `ids` by the weighted sum of their z-scores, highest first; equal sums keep the order of `ids`. A missing
    score counts as the mean, 0."""

    def total(doc_id: str) -> float:
        # rounded, so that the last bits, which differ between machines, decide nothing
        return round(sum(weight * scores.get(doc_id, 0.0) for weight, scores in weighted_scores), 7)

    return sorted(ids, key=total, reverse=True)
