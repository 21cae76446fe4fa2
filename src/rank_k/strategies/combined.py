"""A first look at each passage by itself, comparison from there, and a ranking by both and the first stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log
from statistics import fmean, pstdev

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.strategies.base import Strategy, StrategyGenerator, run_validated
from rank_k.strategies.bradley_terry import RANK_OFFSET, fit_strengths
from rank_k.types import Candidate, Ranking, Round, Window, WindowResult

LIKELIHOOD_WEIGHT = 2.0
"""The weight of the likelihoods beside the comparisons' 1, chosen for rank-k-nano (docs/student.md says on what)."""

_MIN_DEVIATION = 1e-9
"""A deviation that is no more than rounding."""

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Combined:
    """All candidates by likelihood; then `strategy`, for which the order by likelihood and first stage is what the
    first stage's is elsewhere.

    The ranking is by the sum of what the three say, each in standard deviations from its mean over the candidates: the
    strengths that fit the comparisons best (`bradley_terry.fit`, without a prior), `LIKELIHOOD_WEIGHT` times the
    likelihoods, and `first_stage_weight` times -ln(rank + 10) for the first stage, as in that fit. A passage without a
    likelihood has the mean one.

    It has no name in `STRATEGIES`: `Reranker(method="combined")` makes one of any strategy. Needs numpy. Raises
    `InputError` for a weight that makes no sense and `MissingExtra` without numpy.
    """

    strategy: Strategy
    first_stage_weight: float = 1.0

    def __post_init__(self) -> None:
        if not isfinite(self.first_stage_weight) or self.first_stage_weight < 0:
            raise InputError(
                f"first_stage_weight is {self.first_stage_weight}",
                "give 0 (ignore the first stage) or more; 1 is usual",
            )
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
    """What the first stage says of `ids`, best first."""
    return standardize({doc_id: -log(rank + RANK_OFFSET) for rank, doc_id in enumerate(ids)})


def comparison_scores(ids: Sequence[str], listwise_results: Sequence[WindowResult]) -> Scores:
    """What the comparisons say: the strengths that fit them best, without a prior."""
    fitted = fit_strengths(ids, listwise_results, first_stage_weight=0)
    return standardize(dict(zip(fitted.doc_ids, fitted.strengths, strict=True)))


def standardize(scores: Scores) -> Scores:
    """In standard deviations from the mean; zeros where all are equal."""
    if not scores:
        return scores
    mean, deviation = fmean(scores.values()), pstdev(scores.values())
    return {
        doc_id: (score - mean) / deviation if deviation > _MIN_DEVIATION else 0.0 for doc_id, score in scores.items()
    }


def rank_by_weighted_sum(ids: Sequence[str], *weighted_scores: tuple[float, Scores]) -> list[str]:
    """`ids` by the sum of their scores, highest first; equal ones as they stand. One that is missing is a mean one."""

    def total(doc_id: str) -> float:
        # rounded, so that the last bits, which differ between machines, decide nothing
        return round(sum(weight * scores.get(doc_id, 0.0) for weight, scores in weighted_scores), 7)

    return sorted(ids, key=total, reverse=True)
