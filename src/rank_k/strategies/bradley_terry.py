"""One strength per passage from everything that was answered: Bradley-Terry with the first stage as prior.

A passage placed before another has beaten it, with probability 1 / (1 + exp(strength of the other - its own))
(Bradley and Terry, 1952). The strengths are the most probable ones (MAP) under independent normal priors around
what the first stage says; their standard errors come from the curvature there (Laplace's approximation).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import erfc, exp, log, pi, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from rank_k.errors import InputError
from rank_k.optional_deps import load
from rank_k.types import WindowRanking, WindowResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Indices: TypeAlias = NDArray[np.int64]

PRIOR_PRECISION = 0.15
"""Of the prior. Chosen, as the other constants here, by simulation (docs/strategies.md says how)."""

RANK_OFFSET = 10
"""Added to the first-stage rank (from 0) before the logarithm: the first ten hardly differ in merit."""

_MAX_DENSE_SIZE = 128
"""Up to so many passages, inverting the whole is faster than taking the windows one by one."""

_MAX_BLOCK_SIZE = 64
"""Larger matrices are handled in parts. BLAS gives them to several threads, which wait for each other a hundred
times longer than they work where something else, such as a model, keeps the cores busy."""

_STEP_TOLERANCE = 1e-6
"""A step of Newton's so small is the last: what it leaves is of the order of its square."""

_MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class BradleyTerryFit:
    """Strengths in log-odds, centered like the prior around 0, and their standard errors, one per id of `doc_ids`."""

    doc_ids: tuple[str, ...]
    strengths: tuple[float, ...]
    errors: tuple[float, ...]

    def ranked_ids(self) -> tuple[str, ...]:
        """The ids, strongest first; equal ones as they stand in `doc_ids`."""
        strength = dict(zip(self.doc_ids, self.strengths, strict=True))
        # rounded, so that the last bits, which differ between machines, decide nothing
        return tuple(sorted(self.doc_ids, key=lambda doc_id: -round(strength[doc_id], 7)))

    def top_k_probabilities(self, k: int = 10) -> Mapping[str, float]:
        """Per id, the probability of being among the `k` best: of lying above the threshold at which `k` are
        expected to. 1 for all where there are no more than `k`."""
        if k >= len(self.doc_ids):
            return dict.fromkeys(self.doc_ids, 1.0)
        scaled_strengths = [
            (strength, 1 / (error * sqrt(2))) for strength, error in zip(self.strengths, self.errors, strict=True)
        ]

        def tail_probabilities(threshold: float) -> list[float]:
            return [erfc((threshold - strength) * scale) / 2 for strength, scale in scaled_strengths]

        low = min(self.strengths) - 10 * max(self.errors)
        high = max(self.strengths) + 10 * max(self.errors)
        threshold = sum(sorted(self.strengths)[-k - 1 :][:2]) / 2  # between the kth and the next
        for _ in range(_MAX_STEPS):  # Newton's steps; halvings where one would lead out of what is known
            probabilities = tail_probabilities(threshold)
            excess = sum(probabilities) - k
            if abs(excess) < 1e-11:  # well below any difference that matters
                break
            low, high = (threshold, high) if excess > 0 else (low, threshold)
            slope = sum(
                scale * exp(-(((threshold - strength) * scale) ** 2)) for strength, scale in scaled_strengths
            ) / sqrt(pi)
            next_threshold = threshold + excess / slope if slope else high
            threshold = next_threshold if low < next_threshold < high else (low + high) / 2
        return dict(zip(self.doc_ids, probabilities, strict=True))


def fit_strengths(
    doc_ids: Sequence[str], results: Iterable[WindowResult], first_stage_weight: float = 1.0
) -> BradleyTerryFit:
    """The strengths of `doc_ids`, best of the first stage first, given all that was answered about them.

    `first_stage_weight` w: the prior means are -w x ln(rank + 10), centered. In a window of n
    passages every pair weighs 2 / n, so that a window weighs as much as the n - 1 comparisons that sorting needs at
    least; ties count half each way; the samples of a window share its weight. Only ids that the model placed count.

    Raises `InputError` for an id in `results` that is not in `doc_ids`, and `MissingExtra` without numpy.
    """
    ids = tuple(doc_ids)
    if not ids:
        return BradleyTerryFit((), (), ())
    np = load("numpy")
    prior = np.array([-first_stage_weight * log(rank + RANK_OFFSET) for rank in range(len(ids))])
    prior -= prior.mean()
    comparisons, windows_by_position = _collect_comparisons(ids, results)
    groups = _independent_groups(windows_by_position) if len(ids) > _MAX_DENSE_SIZE else []
    point = _SearchPoint.at(prior, comparisons, prior)
    for _ in range(_MAX_STEPS):
        curvature = _Curvature(comparisons, point.win_probability, groups, len(ids))
        step = curvature.solve(_gradient(comparisons, point, prior))
        # The posterior is concave: close enough every full step is uphill, and far away a shorter one is.
        while (
            next_point := _SearchPoint.at(point.strengths + step, comparisons, prior)
        ).log_posterior < point.log_posterior - 1e-9:
            step /= 2
        point = next_point
        if abs(step).max() < _STEP_TOLERANCE:
            break
    errors = np.sqrt(curvature.variances())
    return BradleyTerryFit(ids, tuple(point.strengths.tolist()), tuple(errors.tolist()))


class _Comparisons(NamedTuple):
    """Comparisons of passages `first` and `second` (positions): weight of the wins of `first`, and total weight."""

    first: Indices
    second: Indices
    wins: Floats
    weight: Floats


def _collect_comparisons(ids: Sequence[str], results: Iterable[WindowResult]) -> tuple[_Comparisons, list[set[int]]]:
    """The comparisons in `results`, and for each passage the numbers of the windows that compare it."""
    np = load("numpy")
    position = {doc_id: i for i, doc_id in enumerate(ids)}
    windows_by_position: list[set[int]] = [set() for _ in ids]
    parts: list[tuple[Any, Any, Any, Any]] = []
    for window_number, result in enumerate(results):
        if unknown_id := next((doc_id for doc_id in result.window.doc_ids if doc_id not in position), None):
            raise InputError(
                f"an outcome holds {unknown_id!r}, which is no candidate", "fit outcomes of one query only"
            )
        valid_rankings = [ranking for ranking in result.rankings if ranking.is_valid]
        for ranking in valid_rankings:
            ranked_positions, tiers = _ranked_positions(ranking, position)
            first_index, second_index = _index_pairs(len(ranked_positions))
            positions, tier = np.array(ranked_positions, dtype=np.int64), np.array(tiers)
            first, second = positions[first_index], positions[second_index]
            weight = np.full(len(first_index), 2 / len(result.window.doc_ids) / len(valid_rankings))
            parts.append((first, second, np.where(tier[first_index] == tier[second_index], weight / 2, weight), weight))
            for i in ranked_positions:
                windows_by_position[i].add(window_number)
    if not parts:
        empty = np.zeros(0)
        return _Comparisons(empty.astype(np.int64), empty.astype(np.int64), empty, empty), windows_by_position
    return _Comparisons(*(np.concatenate(column) for column in zip(*parts, strict=True))), windows_by_position


@lru_cache
def _index_pairs(size: int) -> tuple[Indices, Indices]:
    first, second = load("numpy").triu_indices(size, 1)
    return first, second


def _ranked_positions(ranking: WindowRanking, position: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Positions of the passages that the model placed, best first, and the tier of each."""
    positions = [
        (position[doc_id], number)
        for number, tier in enumerate(ranking.tiers)
        for doc_id in tier
        if doc_id in ranking.ranked_ids
    ]
    return [i for i, _ in positions], [number for _, number in positions]


def _independent_groups(windows_by_position: Sequence[set[int]]) -> list[list[int]]:
    """Sets of passages that no window compares with each other: those of which each has been in one window only,
    by window. Those that were in none go twenty by twenty, as any division of them is right."""
    groups: dict[int, list[int]] = {}
    unseen_count = 0
    for i, windows in enumerate(windows_by_position):
        if not windows:
            unseen_count += 1
            groups.setdefault(-1 - unseen_count // 20, []).append(i)
        elif len(windows) == 1:
            groups.setdefault(next(iter(windows)), []).append(i)
    return list(groups.values())


class _SearchPoint(NamedTuple):
    """One step of the search. `win_probability`: per pair, that `first` wins. `log_posterior`: up to a constant."""

    strengths: Floats
    win_probability: Floats
    log_posterior: float

    @classmethod
    def at(cls, strengths: Floats, comparisons: _Comparisons, prior: Floats) -> _SearchPoint:
        np = load("numpy")
        differences = strengths[comparisons.first] - strengths[comparisons.second]
        log_normalizers = np.logaddexp(0, differences)
        log_likelihood = (comparisons.wins * differences - comparisons.weight * log_normalizers).sum()
        log_posterior = float(log_likelihood - PRIOR_PRECISION / 2 * ((strengths - prior) ** 2).sum())
        return cls(strengths, np.exp(differences - log_normalizers), log_posterior)


def _gradient(comparisons: _Comparisons, point: _SearchPoint, prior: Floats) -> Floats:
    residuals = comparisons.wins - comparisons.weight * point.win_probability
    return (
        _sum_by_position(comparisons.first, residuals, len(prior))
        - _sum_by_position(comparisons.second, residuals, len(prior))
        - PRIOR_PRECISION * (point.strengths - prior)
    )


def _sum_by_position(positions: Indices, values: Floats, length: int) -> Floats:
    np = load("numpy")
    sums = np.bincount(positions, values, length)
    return sums.astype(np.float64, copy=False)  # type: ignore[no-any-return]  # of nothing it counts whole numbers


class _Curvature:
    """Minus the second derivative of the posterior where pairs have `win_probability`: symmetric and positive definite.

    A passage that has been in one window only meets the rest through that window. Each of `groups` is therefore
    eliminated by itself (block elimination), and what remains to be solved at once are the passages that several
    windows share: 40 of 1,000 instead of all.
    """

    def __init__(
        self, comparisons: _Comparisons, win_probability: Floats, groups: Sequence[Sequence[int]], length: int
    ) -> None:
        np = load("numpy")
        self._np, self._length = np, length
        pair_curvature = comparisons.weight * win_probability * (1 - win_probability)
        upper = _sum_by_position(
            comparisons.first * length + comparisons.second, pair_curvature, length * length
        ).reshape(length, length)
        hessian = -(upper + upper.T)
        hessian.flat[:: length + 1] = PRIOR_PRECISION - hessian.sum(axis=1)
        self._core = hessian
        self._eliminated_groups: list[tuple[Sequence[int], Floats, Floats]] = []
        if not groups:
            return
        grouped_positions = {i for group in groups for i in group}
        self._shared = np.array([i for i in range(length) if i not in grouped_positions], dtype=np.int64)
        core = hessian[np.ix_(self._shared, self._shared)]
        for group in groups:
            coupling = hessian[np.ix_(group, self._shared)]
            inverse = _invert(hessian[np.ix_(group, group)])
            bridge = _multiply(inverse, coupling)
            core -= _multiply(coupling.T, bridge)
            self._eliminated_groups.append((group, inverse, bridge))
        self._core = _invert(core)

    def solve(self, right: Floats) -> Floats:
        """x of curvature @ x = right."""
        np = self._np
        if not self._eliminated_groups:
            return _solve(self._core, right[:, None])[:, 0]
        solution = np.zeros(self._length)
        remaining = right[self._shared] - sum(bridge.T @ right[group] for group, _, bridge in self._eliminated_groups)
        shared = solution[self._shared] = np.einsum("ij,j", self._core, remaining)
        for group, inverse, bridge in self._eliminated_groups:
            solution[group] = inverse @ right[group] - bridge @ shared
        return solution  # type: ignore[no-any-return]

    def variances(self) -> Floats:
        """The diagonal of the inverse."""
        np = self._np
        if not self._eliminated_groups:
            return _invert(self._core).diagonal()
        variances = np.zeros(self._length)
        variances[self._shared] = self._core.diagonal()
        for group, inverse, bridge in self._eliminated_groups:
            variances[group] = inverse.diagonal() + (_multiply(bridge, self._core) * bridge).sum(axis=1)
        return variances  # type: ignore[no-any-return]


def _invert(matrix: Floats) -> Floats:
    """Of a symmetric positive definite matrix, by halves."""
    np = load("numpy")
    if len(matrix) <= _MAX_BLOCK_SIZE:
        return np.linalg.inv(matrix)  # type: ignore[no-any-return]
    half = len(matrix) // 2
    first = _invert(matrix[:half, :half])
    bridge = _multiply(first, matrix[:half, half:])
    second = _invert(matrix[half:, half:] - _multiply(bridge.T, matrix[:half, half:]))
    corner = -_multiply(bridge, second)
    return np.block([[first - _multiply(corner, bridge.T), corner], [corner.T, second]])  # type: ignore[no-any-return]


def _solve(matrix: Floats, right: Floats) -> Floats:
    """x of matrix @ x = right, for a symmetric positive definite matrix and several columns, by halves."""
    np = load("numpy")
    if len(matrix) <= _MAX_BLOCK_SIZE:
        return np.linalg.solve(matrix, right)  # type: ignore[no-any-return]
    half = len(matrix) // 2
    bridge = matrix[:half, half:]
    bridge_columns = bridge.shape[1]
    solved = _solve(matrix[:half, :half], np.concatenate([bridge, right[:half]], axis=1))
    first_bridge, first_solution = solved[:, :bridge_columns], solved[:, bridge_columns:]
    second_solution = _solve(
        matrix[half:, half:] - _multiply(bridge.T, first_bridge),
        right[half:] - _multiply(bridge.T, first_solution),
    )
    return np.concatenate([first_solution - _multiply(first_bridge, second_solution), second_solution])  # type: ignore[no-any-return]


def _multiply(left: Floats, right: Floats) -> Floats:
    """Of two matrices, by halves of the longest side."""
    np = load("numpy")
    (rows, inner), columns = left.shape, right.shape[1]
    if rows * inner * columns <= _MAX_BLOCK_SIZE**3:
        return left @ right
    longest = max(rows, inner, columns)
    half = longest // 2
    if longest == inner:
        return _multiply(left[:, :half], right[:half]) + _multiply(left[:, half:], right[half:])
    if longest == rows:
        return np.concatenate([_multiply(left[:half], right), _multiply(left[half:], right)])  # type: ignore[no-any-return]
    return np.concatenate([_multiply(left, right[:, :half]), _multiply(left, right[:, half:])], axis=1)  # type: ignore[no-any-return]
