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

PRECISION = 0.15
"""Of the prior. Chosen, as the other constants here, by simulation (docs/strategies.md says how)."""

RANK_OFFSET = 10
"""Added to the first-stage rank (from 0) before the logarithm: the first ten hardly differ in merit."""

_DENSE = 128
"""Up to so many passages, inverting the whole is faster than taking the windows one by one."""

_LEAF = 64
"""Larger matrices are handled in parts. BLAS gives them to several threads, which wait for each other a hundred
times longer than they work where something else, such as a model, keeps the cores busy."""

_ENOUGH = 1e-6
"""A step of Newton's so small is the last: what it leaves is of the order of its square."""

_MOST_STEPS = 100


@dataclass(frozen=True, slots=True)
class Fit:
    """Strengths in log-odds, centered like the prior around 0, and their standard errors, one per id of `doc_ids`."""

    doc_ids: tuple[str, ...]
    strengths: tuple[float, ...]
    errors: tuple[float, ...]

    def ranked(self) -> tuple[str, ...]:
        """The ids, strongest first; equal ones as they stand in `doc_ids`."""
        strength = dict(zip(self.doc_ids, self.strengths, strict=True))
        # rounded, so that the last bits, which differ between machines, decide nothing
        return tuple(sorted(self.doc_ids, key=lambda doc_id: -round(strength[doc_id], 7)))

    def in_top(self, k: int = 10) -> Mapping[str, float]:
        """Per id, the probability of being among the `k` best: of lying above the threshold at which `k` are
        expected to. 1 for all where there are no more than `k`."""
        if k >= len(self.doc_ids):
            return dict.fromkeys(self.doc_ids, 1.0)
        scaled = [
            (strength, 1 / (error * sqrt(2))) for strength, error in zip(self.strengths, self.errors, strict=True)
        ]

        def above(threshold: float) -> list[float]:
            return [erfc((threshold - strength) * scale) / 2 for strength, scale in scaled]

        low = min(self.strengths) - 10 * max(self.errors)
        high = max(self.strengths) + 10 * max(self.errors)
        threshold = sum(sorted(self.strengths)[-k - 1 :][:2]) / 2  # between the kth and the next
        for _ in range(_MOST_STEPS):  # Newton's steps; halvings where one would lead out of what is known
            chances = above(threshold)
            excess = sum(chances) - k
            if abs(excess) < 1e-11:  # well below any difference that matters
                break
            low, high = (threshold, high) if excess > 0 else (low, threshold)
            slope = sum(scale * exp(-(((threshold - strength) * scale) ** 2)) for strength, scale in scaled) / sqrt(pi)
            ahead = threshold + excess / slope if slope else high
            threshold = ahead if low < ahead < high else (low + high) / 2
        return dict(zip(self.doc_ids, chances, strict=True))


def fit(doc_ids: Sequence[str], outcomes: Iterable[WindowResult], first_stage_weight: float = 1.0) -> Fit:
    """The strengths of `doc_ids`, best of the first stage first, given all that was answered about them.

    `fuse` is the weight of the first stage: the prior means are -fuse x ln(rank + 10), centered. In a window of w
    passages every pair weighs 2 / w, so that a window weighs as much as the w - 1 comparisons that sorting needs at
    least; ties count half each way; the samples of a window share its weight. Only ids that the model placed count.

    Raises `InputError` for an id in `outcomes` that is not in `doc_ids`, and `MissingExtra` without numpy.
    """
    ids = tuple(doc_ids)
    if not ids:
        return Fit((), (), ())
    np = load("numpy")
    prior = np.array([-first_stage_weight * log(rank + RANK_OFFSET) for rank in range(len(ids))])
    prior -= prior.mean()
    pairs, homes = _evidence(ids, outcomes)
    apart = _apart(homes) if len(ids) > _DENSE else []
    here = _Point.at(prior, pairs, prior)
    for _ in range(_MOST_STEPS):
        curvature = _Curvature(pairs, here.chance, apart, len(ids))
        step = curvature.solve(_gradient(pairs, here, prior))
        # The posterior is concave: close enough every full step is uphill, and far away a shorter one is.
        while (ahead := _Point.at(here.strengths + step, pairs, prior)).posterior < here.posterior - 1e-9:
            step /= 2
        here = ahead
        if abs(step).max() < _ENOUGH:
            break
    errors = np.sqrt(curvature.variances())
    return Fit(ids, tuple(here.strengths.tolist()), tuple(errors.tolist()))


class _Pairs(NamedTuple):
    """Comparisons of passages `one` and `other` (positions): weight won by `one`, and weight in all."""

    one: Indices
    other: Indices
    won: Floats
    weight: Floats


def _evidence(ids: Sequence[str], outcomes: Iterable[WindowResult]) -> tuple[_Pairs, list[set[int]]]:
    """The comparisons in `outcomes`, and for each passage the numbers of the windows that compare it."""
    np = load("numpy")
    position = {doc_id: i for i, doc_id in enumerate(ids)}
    homes: list[set[int]] = [set() for _ in ids]
    parts: list[tuple[Any, Any, Any, Any]] = []
    for number, outcome in enumerate(outcomes):
        if strange := next((doc_id for doc_id in outcome.window.doc_ids if doc_id not in position), None):
            raise InputError(f"an outcome holds {strange!r}, which is no candidate", "fit outcomes of one query only")
        ranked = [order for order in outcome.rankings if order.is_valid]
        for order in ranked:
            placed, tiers = _placed(order, position)
            first, second = _pairs_of(len(placed))
            ranks, tier = np.array(placed, dtype=np.int64), np.array(tiers)
            one, other = ranks[first], ranks[second]
            weight = np.full(len(first), 2 / len(outcome.window.doc_ids) / len(ranked))
            parts.append((one, other, np.where(tier[first] == tier[second], weight / 2, weight), weight))
            for i in placed:
                homes[i].add(number)
    if not parts:
        nothing = np.zeros(0)
        return _Pairs(nothing.astype(np.int64), nothing.astype(np.int64), nothing, nothing), homes
    return _Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True))), homes


@lru_cache
def _pairs_of(size: int) -> tuple[Indices, Indices]:
    first, second = load("numpy").triu_indices(size, 1)
    return first, second


def _placed(order: WindowRanking, position: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """Positions of the passages that the model placed, best first, and the tier of each."""
    found = [(position[d], number) for number, tier in enumerate(order.tiers) for d in tier if d in order.ranked_ids]
    return [i for i, _ in found], [number for _, number in found]


def _apart(homes: Sequence[set[int]]) -> list[list[int]]:
    """Sets of passages that no window compares with each other: those of which each has been in one window only,
    by window. Those that were in none go twenty by twenty, as any division of them is right."""
    groups: dict[int, list[int]] = {}
    unseen = 0
    for i, windows in enumerate(homes):
        if not windows:
            unseen += 1
            groups.setdefault(-1 - unseen // 20, []).append(i)
        elif len(windows) == 1:
            groups.setdefault(next(iter(windows)), []).append(i)
    return list(groups.values())


class _Point(NamedTuple):
    """Where the search is. `chance`: by pair, that `one` wins. `posterior`: the logarithm of the posterior density,
    but for a constant."""

    strengths: Floats
    chance: Floats
    posterior: float

    @classmethod
    def at(cls, strengths: Floats, pairs: _Pairs, prior: Floats) -> _Point:
        np = load("numpy")
        lead = strengths[pairs.one] - strengths[pairs.other]
        likely = np.logaddexp(0, lead)
        likelihood = (pairs.won * lead - pairs.weight * likely).sum()
        posterior = float(likelihood - PRECISION / 2 * ((strengths - prior) ** 2).sum())
        return cls(strengths, np.exp(lead - likely), posterior)


def _gradient(pairs: _Pairs, here: _Point, prior: Floats) -> Floats:
    surplus = pairs.won - pairs.weight * here.chance
    return (
        _summed(pairs.one, surplus, len(prior))
        - _summed(pairs.other, surplus, len(prior))
        - PRECISION * (here.strengths - prior)
    )


def _summed(positions: Indices, values: Floats, length: int) -> Floats:
    np = load("numpy")
    counted = np.bincount(positions, values, length)
    return counted.astype(np.float64, copy=False)  # type: ignore[no-any-return]  # of nothing it counts whole numbers


class _Curvature:
    """Minus the second derivative of the posterior where pairs have `chance`: symmetric and positive definite.

    A passage that has been in one window only meets the rest through that window. Each set of `apart` is therefore
    eliminated by itself (block elimination), and what remains to be solved at once are the passages that several
    windows share: 40 of 1,000 instead of all.
    """

    def __init__(self, pairs: _Pairs, chance: Floats, apart: Sequence[Sequence[int]], length: int) -> None:
        np = load("numpy")
        self._np, self._length = np, length
        curve = pairs.weight * chance * (1 - chance)
        upper = _summed(pairs.one * length + pairs.other, curve, length * length).reshape(length, length)
        whole = -(upper + upper.T)
        whole.flat[:: length + 1] = PRECISION - whole.sum(axis=1)
        self._core = whole
        self._sets: list[tuple[Sequence[int], Floats, Floats]] = []
        if not apart:
            return
        in_sets = {i for group in apart for i in group}
        self._shared = np.array([i for i in range(length) if i not in in_sets], dtype=np.int64)
        core = whole[np.ix_(self._shared, self._shared)]
        for group in apart:
            towards = whole[np.ix_(group, self._shared)]
            inverse = _inverse(whole[np.ix_(group, group)])
            bridge = _product(inverse, towards)
            core -= _product(towards.T, bridge)
            self._sets.append((group, inverse, bridge))
        self._core = _inverse(core)

    def solve(self, right: Floats) -> Floats:
        """x of curvature @ x = right."""
        np = self._np
        if not self._sets:
            return _solution(self._core, right[:, None])[:, 0]
        solution = np.zeros(self._length)
        remaining = right[self._shared] - sum(bridge.T @ right[group] for group, _, bridge in self._sets)
        shared = solution[self._shared] = np.einsum("ij,j", self._core, remaining)
        for group, inverse, bridge in self._sets:
            solution[group] = inverse @ right[group] - bridge @ shared
        return solution  # type: ignore[no-any-return]

    def variances(self) -> Floats:
        """The diagonal of the inverse."""
        np = self._np
        if not self._sets:
            return _inverse(self._core).diagonal()
        found = np.zeros(self._length)
        found[self._shared] = self._core.diagonal()
        for group, inverse, bridge in self._sets:
            found[group] = inverse.diagonal() + (_product(bridge, self._core) * bridge).sum(axis=1)
        return found  # type: ignore[no-any-return]


def _inverse(matrix: Floats) -> Floats:
    """Of a symmetric positive definite matrix, by halves."""
    np = load("numpy")
    if len(matrix) <= _LEAF:
        return np.linalg.inv(matrix)  # type: ignore[no-any-return]
    half = len(matrix) // 2
    first = _inverse(matrix[:half, :half])
    bridge = _product(first, matrix[:half, half:])
    second = _inverse(matrix[half:, half:] - _product(bridge.T, matrix[:half, half:]))
    corner = -_product(bridge, second)
    return np.block([[first - _product(corner, bridge.T), corner], [corner.T, second]])  # type: ignore[no-any-return]


def _solution(matrix: Floats, right: Floats) -> Floats:
    """x of matrix @ x = right, for a symmetric positive definite matrix and several columns, by halves."""
    np = load("numpy")
    if len(matrix) <= _LEAF:
        return np.linalg.solve(matrix, right)  # type: ignore[no-any-return]
    half = len(matrix) // 2
    bridge = matrix[:half, half:]
    beside = bridge.shape[1]
    solved = _solution(matrix[:half, :half], np.concatenate([bridge, right[:half]], axis=1))
    across, alone = solved[:, :beside], solved[:, beside:]
    second = _solution(
        matrix[half:, half:] - _product(bridge.T, across),
        right[half:] - _product(bridge.T, alone),
    )
    return np.concatenate([alone - _product(across, second), second])  # type: ignore[no-any-return]


def _product(left: Floats, right: Floats) -> Floats:
    """Of two matrices, by halves of the longest side."""
    np = load("numpy")
    (rows, inner), columns = left.shape, right.shape[1]
    if rows * inner * columns <= _LEAF**3:
        return left @ right
    longest = max(rows, inner, columns)
    half = longest // 2
    if longest == inner:
        return _product(left[:, :half], right[:half]) + _product(left[:, half:], right[half:])
    if longest == rows:
        return np.concatenate([_product(left[:half], right), _product(left[half:], right)])  # type: ignore[no-any-return]
    return np.concatenate([_product(left, right[:, :half]), _product(left, right[:, half:])], axis=1)  # type: ignore[no-any-return]
