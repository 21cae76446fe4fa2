"""The Bradley-Terry fit: its optimum against another optimizer, invariances, and the effect of results."""

from __future__ import annotations

from math import log
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from rank_k.errors import InputError
from rank_k.strategies.bradley_terry import PRIOR_PRECISION, BradleyTerryFit, fit_strengths
from rank_k.strategies.testing import arbitrary_ranking
from rank_k.types import Window, WindowRanking, WindowResult


def result_of(*tiers: str, window: str = "", placed: str | None = None) -> WindowResult:
    """The outcome of a window of one-letter ids with one order."""
    ids = "".join(tiers)
    order = WindowRanking(tuple(map(tuple, tiers)), frozenset(ids if placed is None else placed), True)
    return WindowResult(Window(tuple(window or ids), (1, len(ids))), (order,))


def arbitrary_results(length: int, seed: int, samples: int = 1) -> tuple[tuple[str, ...], list[WindowResult]]:
    """Candidates, and answers to some windows of them: ties, forgotten ids, some without an order."""
    random = Random(seed)
    ids = tuple(f"d{i}" for i in range(length))
    results = []
    for _ in range(random.randrange(1, 8)):
        window = Window(tuple(random.sample(ids, random.randint(2, min(length, 12)))), (1, length))
        results.append(WindowResult(window, tuple(arbitrary_ranking(window, random) for _ in range(samples))))
    return ids, results


def win_weights(ids: tuple[str, ...], results: list[WindowResult]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """W[i, j]: by how much i has beaten j. Written out from the definition, one comparison at a time."""
    matrix = np.zeros((len(ids), len(ids)))
    for result in results:
        rankings = [ranking for ranking in result.rankings if ranking.is_valid]
        for ranking in rankings:
            unit = 2 / len(result.window.doc_ids) / len(rankings)
            tier = {d: n for n, members in enumerate(ranking.tiers) for d in members if d in ranking.ranked_ids}
            for first in tier:
                for second in tier:
                    if tier[first] < tier[second]:
                        matrix[ids.index(first), ids.index(second)] += unit
                    elif first != second and tier[first] == tier[second]:
                        matrix[ids.index(first), ids.index(second)] += unit / 2
    return matrix


@settings(max_examples=60)
@given(
    length=st.integers(2, 15), seed=st.integers(0, 2**32), first_stage_weight=st.floats(0, 3), samples=st.integers(1, 3)
)
def test_fit_matches_the_scipy_optimum_and_errors(
    length: int, seed: int, first_stage_weight: float, samples: int
) -> None:
    ids, results = arbitrary_results(length, seed, samples)
    wins = win_weights(ids, results)
    prior = np.array([-first_stage_weight * log(rank + 10) for rank in range(length)])
    prior -= prior.mean()

    def loss(x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        differences = x[:, None] - x[None, :]
        return float((wins * np.logaddexp(0, -differences)).sum() + PRIOR_PRECISION / 2 * ((x - prior) ** 2).sum())

    optimum = minimize(loss, prior, method="BFGS", options={"gtol": 1e-7})
    fitted = fit_strengths(ids, results, first_stage_weight)
    assert np.allclose(fitted.strengths, optimum.x, atol=1e-4)

    differences = np.subtract.outer(np.array(fitted.strengths), np.array(fitted.strengths))
    curvature = (wins + wins.T) / (2 + np.exp(differences) + np.exp(-differences))
    hessian = np.diag(curvature.sum(1) + PRIOR_PRECISION) - curvature
    assert np.allclose(np.array(fitted.errors) ** 2, np.diag(np.linalg.inv(hessian)), rtol=1e-5)


@settings(max_examples=40)
@given(length=st.integers(2, 40), seed=st.integers(0, 2**32))
def test_fit_is_independent_of_ids_and_result_order(length: int, seed: int) -> None:
    ids, results = arbitrary_results(length, seed)
    new_ids = {doc_id: f"x{(7 * i) % 41}-{i}" for i, doc_id in enumerate(ids)}

    def rename(order: WindowRanking) -> WindowRanking:
        tiers = tuple(tuple(new_ids[d] for d in tier[::-1]) for tier in order.tiers)
        return WindowRanking(tiers, frozenset(map(new_ids.__getitem__, order.ranked_ids)), order.is_valid)

    renamed_results = [
        WindowResult(
            Window(tuple(new_ids[d] for d in result.window.doc_ids), result.window.rank_range),
            tuple(map(rename, result.rankings)),
        )
        for result in results[::-1]
    ]
    original, changed = fit_strengths(ids, results), fit_strengths(tuple(new_ids.values()), renamed_results)
    assert np.allclose(original.strengths, changed.strengths, atol=1e-8)
    assert np.allclose(original.errors, changed.errors, atol=1e-8)


@settings(max_examples=40)
@given(length=st.integers(2, 30), seed=st.integers(0, 2**32))
def test_fit_of_reversed_rankings_negates_strengths(length: int, seed: int) -> None:
    ids, results = arbitrary_results(length, seed)
    reversed_results = [
        WindowResult(
            result.window,
            tuple(WindowRanking(order.tiers[::-1], order.ranked_ids, order.is_valid) for order in result.rankings),
        )
        for result in results
    ]
    original, reversed_fit = (
        fit_strengths(ids, results, first_stage_weight=0),
        fit_strengths(ids, reversed_results, first_stage_weight=0),
    )
    assert np.allclose(original.strengths, -np.array(reversed_fit.strengths), atol=1e-8)
    assert np.allclose(original.errors, reversed_fit.errors, atol=1e-8)


@settings(max_examples=40)
@given(length=st.integers(3, 30), seed=st.integers(0, 2**32))
def test_fit_raises_winners_and_lowers_losers(length: int, seed: int) -> None:
    ids, results = arbitrary_results(length, seed)
    winner, loser = Random(seed).sample(range(length), 2)
    window = Window((ids[loser], ids[winner]), (1, length))
    order = WindowRanking(((ids[winner],), (ids[loser],)), frozenset(window.doc_ids), True)
    before, after = fit_strengths(ids, results), fit_strengths(ids, [*results, WindowResult(window, (order,))])
    assert after.strengths[winner] > before.strengths[winner]
    assert after.strengths[loser] < before.strengths[loser]


def test_fit_without_comparisons_returns_the_prior() -> None:
    ids = tuple(f"d{i}" for i in range(400))
    window = Window(ids[:20][::-1], (1, 400))
    fitted = fit_strengths(ids, [WindowResult(window, (WindowRanking.unranked(window),))])
    assert fitted.ranked_ids() == ids
    assert np.allclose(fitted.errors, PRIOR_PRECISION**-0.5)
    assert np.allclose(np.diff(fitted.strengths), [log((r + 10) / (r + 11)) for r in range(399)])
    assert fit_strengths(ids, [], first_stage_weight=0).ranked_ids() == ids
    assert fit_strengths((), []) == BradleyTerryFit((), (), ())


def test_fit_of_one_window_keeps_its_order_and_ties() -> None:
    fitted = fit_strengths(tuple("abcd"), [result_of("d", "bc", "a")], first_stage_weight=0)
    assert fitted.ranked_ids() == tuple("dbca")
    assert fitted.strengths[1] == pytest.approx(fitted.strengths[2], abs=1e-9)


def test_fit_ignores_unranked_ids() -> None:
    partial_fit = fit_strengths(tuple("abcd"), [result_of("b", "a", "c", "d", placed="ab")])
    complete_fit = fit_strengths(tuple("abcd"), [result_of("b", "a", "c", "d")])
    assert partial_fit.errors[3] == pytest.approx(PRIOR_PRECISION**-0.5)
    assert partial_fit.strengths[3] - partial_fit.strengths[2] == pytest.approx(log(12 / 13))
    assert complete_fit.strengths[3] < partial_fit.strengths[3]


def test_fit_divides_a_windows_weight_among_samples() -> None:
    [order] = result_of("b", "a", "c").rankings
    window = Window(tuple("abc"), (1, 3))
    failed = WindowRanking.unranked(window)
    single_fit = fit_strengths(tuple("abc"), [WindowResult(window, (order,))])
    for orders in ((order, order, order), (failed, order)):
        repeated_fit = fit_strengths(tuple("abc"), [WindowResult(window, orders)])
        assert np.allclose(repeated_fit.strengths, single_fit.strengths)
        assert np.allclose(repeated_fit.errors, single_fit.errors)


def test_fit_rejects_unknown_ids() -> None:
    with pytest.raises(InputError, match="'z', which is not a candidate"):
        fit_strengths(tuple("ab"), [result_of("a", "z")])


@pytest.mark.parametrize("first_stage_weight", [0.0, 1.0, 1e6])
def test_fit_converges_for_extreme_weights_and_contradictions(first_stage_weight: float) -> None:
    ids = tuple(f"d{i}" for i in range(30))
    window = Window(ids, (1, 30))
    backwards = WindowRanking(tuple((d,) for d in ids[::-1]), frozenset(ids), True)
    fitted = fit_strengths(ids, [WindowResult(window, (backwards,))] * 500, first_stage_weight)
    assert np.isfinite(fitted.strengths).all()
    assert fitted.ranked_ids() == (ids if first_stage_weight > 1 else ids[::-1])


@given(
    strengths=st.lists(st.floats(-20, 20), min_size=11, max_size=60),
    errors=st.lists(st.floats(0.05, 3), min_size=60, max_size=60),
    k=st.integers(1, 10),
)
def test_in_top_probabilities_sum_to_k(strengths: list[float], errors: list[float], k: int) -> None:
    ids = tuple(map(str, range(len(strengths))))
    fitted = BradleyTerryFit(ids, tuple(strengths), tuple(errors[: len(ids)]))
    probabilities = fitted.top_k_probabilities(k)
    assert set(probabilities) == set(ids)
    # where the k-th and the next are far apart, every threshold between them serves
    assert sum(probabilities.values()) == pytest.approx(k, abs=1e-6)
    z = norm.isf(np.clip(list(probabilities.values()), 1e-12, 1 - 1e-12))
    thresholds = np.array(strengths) + z * np.array(errors[: len(ids)])
    inside = [1e-6 < probability < 1 - 1e-6 for probability in probabilities.values()]
    assume(any(inside))
    assert np.ptp(thresholds[inside]) < 1e-4


def test_in_top_is_one_for_at_most_k_passages() -> None:
    assert fit_strengths(tuple("abc"), [result_of("c", "b", "a")]).top_k_probabilities(3) == dict.fromkeys("abc", 1.0)
