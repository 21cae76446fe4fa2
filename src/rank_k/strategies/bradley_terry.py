"""The Bradley-Terry model (1952): estimate one strength per passage from the rankings of all windows.

A passage with strength a is ranked above a passage with strength b with probability 1 / (1 + exp(b - a)). The estimates
are maximum a posteriori: the prior of each strength is a normal distribution whose mean depends on the rank in the
first stage. Their standard errors come from the curvature of the posterior at its maximum (Laplace approximation).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import erfc, log, sqrt
from typing import TYPE_CHECKING, TypeAlias

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.types import WindowResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

PRIOR_PRECISION = 0.15
"""Precision (1 / variance) of the normal priors. This and the other constants were chosen by simulation
(docs/how-to/strategies.md)."""

RANK_OFFSET = 10
"""Added to the first-stage rank, counted from 0, before taking the logarithm. It makes the first ten ranks similar."""

_STEP_TOLERANCE = 1e-6
"""Newton's method ends when no strength changes by more than this. The remaining error is about its square."""

_MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class BradleyTerryFit:
    """A fitted model.

    Attributes:
        doc_ids: The candidates, in the order of the first stage.
        strengths: The strength of each candidate, in log-odds. The average of the prior means is 0.
        errors: The standard error of each strength.
    """

    doc_ids: tuple[str, ...]
    strengths: tuple[float, ...]
    errors: tuple[float, ...]

    def ranked_ids(self) -> tuple[str, ...]:
        """Return the ids sorted by strength, highest first. Equal strengths keep the order of `doc_ids`."""
        strength = dict(zip(self.doc_ids, self.strengths, strict=True))
        # rounded, because the last bits differ between machines
        return tuple(sorted(self.doc_ids, key=lambda doc_id: -round(strength[doc_id], 7)))

    def top_k_probabilities(self, k: int = 10) -> Mapping[str, float]:
        """Return, for each id, the probability that the candidate is among the `k` best.

        This is the probability that the strength exceeds a threshold. The threshold is chosen so that the expected
        number of candidates above it is `k`. With at most `k` candidates, all probabilities are 1.
        """
        if k >= len(self.doc_ids):
            return dict.fromkeys(self.doc_ids, 1.0)
        scaled = [
            (strength, 1 / (error * sqrt(2))) for strength, error in zip(self.strengths, self.errors, strict=True)
        ]
        low = min(self.strengths) - 10 * max(self.errors)
        high = max(self.strengths) + 10 * max(self.errors)
        for _ in range(_MAX_STEPS):  # bisection
            threshold = (low + high) / 2
            probabilities = [erfc((threshold - strength) * scale) / 2 for strength, scale in scaled]
            excess = sum(probabilities) - k
            if abs(excess) < 1e-11:  # far below any difference that matters
                break
            low, high = (threshold, high) if excess > 0 else (low, threshold)
        return dict(zip(self.doc_ids, probabilities, strict=True))


def fit_strengths(
    doc_ids: Sequence[str], results: Iterable[WindowResult], first_stage_weight: float = 1.0
) -> BradleyTerryFit:
    """Fit the strengths of candidates to the rankings of windows.

    In a window of n passages, each pair has the weight 2 / n. A window then weighs as much as n - 1 comparisons, the
    minimum for sorting n passages. A tie counts as half a win for both passages. The samples of a window share its
    weight. Passages that the model left out are ignored. The time grows with the cube of the number of candidates.

    Args:
        doc_ids: The candidates, in the order of the first stage (best first).
        results: Ranked windows of these candidates.
        first_stage_weight: Weight w of the first stage (default: 1). The prior mean of a strength is -w ln(rank + 10),
            minus the mean of these values over all candidates; ranks count from 0.

    Raises:
        InputError: If `results` has an id that is not in `doc_ids`.
        MissingExtra: If numpy is not installed.
    """
    ids = tuple(doc_ids)
    if not ids:
        return BradleyTerryFit((), (), ())
    np = load("numpy")
    prior = np.array([-first_stage_weight * log(rank + RANK_OFFSET) for rank in range(len(ids))])
    prior -= prior.mean()
    wins = _win_weights(ids, results)
    first, second = np.nonzero(np.triu(wins + wins.T, 1))  # the pairs that were compared
    won, weight = wins[first, second], wins[first, second] + wins[second, first]

    def evaluate(strengths: Floats) -> tuple[float, Floats]:
        """Return the log-posterior up to a constant, and the probability that the first passage of each pair wins."""
        differences = strengths[first] - strengths[second]
        log_normalizers = np.logaddexp(0, differences)
        log_likelihood = (won * differences - weight * log_normalizers).sum()
        log_prior = -PRIOR_PRECISION / 2 * ((strengths - prior) ** 2).sum()
        return float(log_likelihood + log_prior), np.exp(differences - log_normalizers)

    strengths = prior
    log_posterior, win_probability = evaluate(strengths)
    for _ in range(_MAX_STEPS):
        residuals = won - weight * win_probability
        gradient = np.bincount(first, residuals, len(ids)) - np.bincount(second, residuals, len(ids))
        curvature = np.zeros_like(wins)
        curvature[first, second] = curvature[second, first] = -weight * win_probability * (1 - win_probability)
        np.fill_diagonal(curvature, PRIOR_PRECISION - curvature.sum(axis=1))
        step = np.linalg.solve(curvature, gradient - PRIOR_PRECISION * (strengths - prior))
        minimum = log_posterior - 1e-9
        # The log-posterior is concave: a step that is short enough increases it.
        while (evaluated := evaluate(strengths + step))[0] < minimum:
            step /= 2
        strengths = strengths + step
        log_posterior, win_probability = evaluated
        if abs(step).max() < _STEP_TOLERANCE:
            break
    errors = np.sqrt(np.linalg.inv(curvature).diagonal())
    return BradleyTerryFit(ids, tuple(strengths.tolist()), tuple(errors.tolist()))


def _win_weights(ids: Sequence[str], results: Iterable[WindowResult]) -> Floats:
    """Return a matrix: element [i, j] is the total weight of the wins of `ids[i]` over `ids[j]`."""
    np = load("numpy")
    position = {doc_id: i for i, doc_id in enumerate(ids)}
    wins: Floats = np.zeros((len(ids), len(ids)))
    for result in results:
        if unknown_id := next((doc_id for doc_id in result.window.doc_ids if doc_id not in position), None):
            raise InputError(
                f"a window contains {unknown_id!r}, which is not a candidate", "pass the windows of one query only"
            )
        valid_rankings = [ranking for ranking in result.rankings if ranking.is_valid]
        for ranking in valid_rankings:
            ranked = [
                (position[doc_id], number)
                for number, tier in enumerate(ranking.tiers)
                for doc_id in tier
                if doc_id in ranking.ranked_ids
            ]
            positions, tiers = np.array(ranked).reshape(-1, 2).T
            outcome = (tiers[:, None] < tiers) + (tiers[:, None] == tiers) / 2
            wins[np.ix_(positions, positions)] += 2 / len(result.window.doc_ids) / len(valid_rankings) * outcome
    return wins
