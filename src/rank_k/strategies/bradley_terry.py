"""Bradley-Terry: one strength per passage from all windows, with the first stage as prior.

A passage that is ranked above another has beaten it, with probability 1 / (1 + exp(strength of the other - its own))
(Bradley and Terry, 1952). The strengths are the most probable ones (MAP) under independent normal priors around
the first stage's; their standard errors come from the curvature there (Laplace's approximation).
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
"""Of the prior. Chosen, as the other constants here, by simulation (docs/results/strategies.md)."""

RANK_OFFSET = 10
"""Added to the first-stage rank (from 0) before the logarithm: the first ten hardly differ in merit."""

_STEP_TOLERANCE = 1e-6
"""The last of Newton's steps: the error that remains is of the order of its square."""

_MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class BradleyTerryFit:
    """Strengths in log-odds, centered like the prior around 0, and their standard errors, one per id of `doc_ids`."""

    doc_ids: tuple[str, ...]
    strengths: tuple[float, ...]
    errors: tuple[float, ...]

    def ranked_ids(self) -> tuple[str, ...]:
        """Return the ids, strongest first; equal ones in the order of `doc_ids`."""
        strength = dict(zip(self.doc_ids, self.strengths, strict=True))
        # rounded, so that the last bits, which differ between machines, decide nothing
        return tuple(sorted(self.doc_ids, key=lambda doc_id: -round(strength[doc_id], 7)))

    def top_k_probabilities(self, k: int = 10) -> Mapping[str, float]:
        """Return, per id, the probability of being among the `k` best.

        That is the probability that its strength exceeds the threshold above which `k` passages are expected.
        All are 1 where there are no more than `k`.
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
            if abs(excess) < 1e-11:  # well below any difference that matters
                break
            low, high = (threshold, high) if excess > 0 else (low, threshold)
        return dict(zip(self.doc_ids, probabilities, strict=True))


def fit_strengths(
    doc_ids: Sequence[str], results: Iterable[WindowResult], first_stage_weight: float = 1.0
) -> BradleyTerryFit:
    """Return the most probable strengths of `doc_ids` given the rankings of windows in `results`.

    In a window of n passages every pair weighs 2 / n, so that a window weighs as much as the n - 1 comparisons that
    sorting needs at least; ties count half each way; the samples of a window share its weight. Only ids that the model
    ranked count. Newton's method finds the maximum; time grows with the cube of the number of ids.

    Args:
        doc_ids: The candidates, best of the first stage first.
        results: Ranked windows of these candidates.
        first_stage_weight: w in the prior means -w x ln(rank + 10), which are centered (default: 1).

    Raises:
        InputError: An id in `results` is not in `doc_ids`.
        MissingExtra: numpy is not installed.
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
        """Return ln of the posterior, up to a constant, and the probability that the first of each pair wins."""
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
        # The posterior is concave: close to the maximum every full step is uphill, and far away a shorter one is.
        while (evaluated := evaluate(strengths + step))[0] < minimum:
            step /= 2
        strengths = strengths + step
        log_posterior, win_probability = evaluated
        if abs(step).max() < _STEP_TOLERANCE:
            break
    errors = np.sqrt(np.linalg.inv(curvature).diagonal())
    return BradleyTerryFit(ids, tuple(strengths.tolist()), tuple(errors.tolist()))


def _win_weights(ids: Sequence[str], results: Iterable[WindowResult]) -> Floats:
    """Return the matrix of weights with which passage i has beaten passage j, by their positions in `ids`."""
    np = load("numpy")
    position = {doc_id: i for i, doc_id in enumerate(ids)}
    wins: Floats = np.zeros((len(ids), len(ids)))
    for result in results:
        if unknown_id := next((doc_id for doc_id in result.window.doc_ids if doc_id not in position), None):
            raise InputError(
                f"an outcome holds {unknown_id!r}, which is no candidate", "fit outcomes of one query only"
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
