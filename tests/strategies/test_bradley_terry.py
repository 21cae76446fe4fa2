"""The pairwise fit: its optimum by another optimizer, what cannot matter, what must."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from rank_k.errors import InputError
from rank_k.strategies import bradley_terry
from rank_k.strategies.bradley_terry import PRIOR_PRECISION, Fit, fit
from rank_k.strategies.testing import arbitrary_ranking
from rank_k.types import Window, WindowRanking, WindowResult
from tests.support.waiting import cpu_seconds


def answered(*tiers: str, window: str = "", placed: str | None = None) -> WindowResult:
    """The outcome of a window of one-letter ids with one order."""
    ids = "".join(tiers)
    order = WindowRanking(tuple(map(tuple, tiers)), frozenset(ids if placed is None else placed), True)
    return WindowResult(Window(tuple(window or ids), (1, len(ids))), (order,))


def arbitrary(length: int, seed: int, samples: int = 1) -> tuple[tuple[str, ...], list[WindowResult]]:
    """Candidates, and answers to some windows of them: ties, forgotten ids, some without an order."""
    random = Random(seed)
    ids = tuple(f"d{i}" for i in range(length))
    outcomes = []
    for _ in range(random.randrange(1, 8)):
        window = Window(tuple(random.sample(ids, random.randint(2, min(length, 12)))), (1, length))
        outcomes.append(WindowResult(window, tuple(arbitrary_ranking(window, random) for _ in range(samples))))
    return ids, outcomes


def weights(ids: tuple[str, ...], outcomes: list[WindowResult]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """W[i, j]: by how much i has beaten j. Written out from the definition, one comparison at a time."""
    found = np.zeros((len(ids), len(ids)))
    for outcome in outcomes:
        orders = [order for order in outcome.rankings if order.is_valid]
        for order in orders:
            unit = 2 / len(outcome.window.doc_ids) / len(orders)
            tier = {d: n for n, members in enumerate(order.tiers) for d in members if d in order.ranked_ids}
            for one in tier:
                for other in tier:
                    if tier[one] < tier[other]:
                        found[ids.index(one), ids.index(other)] += unit
                    elif one != other and tier[one] == tier[other]:
                        found[ids.index(one), ids.index(other)] += unit / 2
    return found


@settings(max_examples=60)
@given(
    length=st.integers(2, 15), seed=st.integers(0, 2**32), first_stage_weight=st.floats(0, 3), samples=st.integers(1, 3)
)
def test_optimum_and_errors_agree_with_scipy(length: int, seed: int, first_stage_weight: float, samples: int) -> None:
    ids, outcomes = arbitrary(length, seed, samples)
    won = weights(ids, outcomes)
    prior = np.array([-first_stage_weight * log(rank + 10) for rank in range(length)])
    prior -= prior.mean()

    def loss(x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        lead = x[:, None] - x[None, :]
        return float((won * np.logaddexp(0, -lead)).sum() + PRIOR_PRECISION / 2 * ((x - prior) ** 2).sum())

    best = minimize(loss, prior, method="BFGS", options={"gtol": 1e-7})
    found = fit(ids, outcomes, first_stage_weight)
    assert np.allclose(found.strengths, best.x, atol=1e-4)

    lead = np.subtract.outer(np.array(found.strengths), np.array(found.strengths))
    curve = (won + won.T) / (2 + np.exp(lead) + np.exp(-lead))
    hessian = np.diag(curve.sum(1) + PRIOR_PRECISION) - curve
    assert np.allclose(np.array(found.errors) ** 2, np.diag(np.linalg.inv(hessian)), rtol=1e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), blanks=st.booleans())
def test_taking_windows_apart_changes_nothing(seed: int, blanks: bool) -> None:
    random = Random(seed)
    ids = tuple(f"d{i}" for i in range(80))
    windows = [ids[i : i + 10] for i in range(0, 40 if blanks else 80, 10)] + [tuple(random.sample(ids, 15))]
    outcomes = [WindowResult(w, (arbitrary_ranking(w, random),)) for w in (Window(shown, (1, 80)) for shown in windows)]
    whole = fit(ids, outcomes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bradley_terry, "_MAX_DENSE_SIZE", 0)
        apart = fit(ids, outcomes)
    assert np.allclose(whole.strengths, apart.strengths, atol=1e-9)
    assert np.allclose(whole.errors, apart.errors, atol=1e-9)


@settings(max_examples=40)
@given(length=st.integers(2, 40), seed=st.integers(0, 2**32))
def test_names_and_the_order_of_answers_do_not_matter(length: int, seed: int) -> None:
    ids, outcomes = arbitrary(length, seed)
    renamed = {doc_id: f"x{(7 * i) % 41}-{i}" for i, doc_id in enumerate(ids)}

    def other(order: WindowRanking) -> WindowRanking:
        tiers = tuple(tuple(renamed[d] for d in tier[::-1]) for tier in order.tiers)
        return WindowRanking(tiers, frozenset(map(renamed.__getitem__, order.ranked_ids)), order.is_valid)

    turned = [
        WindowResult(
            Window(tuple(renamed[d] for d in o.window.doc_ids), o.window.rank_range), tuple(map(other, o.rankings))
        )
        for o in outcomes[::-1]
    ]
    one, two = fit(ids, outcomes), fit(tuple(renamed.values()), turned)
    assert np.allclose(one.strengths, two.strengths, atol=1e-8)
    assert np.allclose(one.errors, two.errors, atol=1e-8)


@settings(max_examples=40)
@given(length=st.integers(2, 30), seed=st.integers(0, 2**32))
def test_the_opposite_answers_give_the_opposite_strengths(length: int, seed: int) -> None:
    ids, outcomes = arbitrary(length, seed)
    opposite = [
        WindowResult(
            o.window, tuple(WindowRanking(order.tiers[::-1], order.ranked_ids, order.is_valid) for order in o.rankings)
        )
        for o in outcomes
    ]
    one, two = fit(ids, outcomes, first_stage_weight=0), fit(ids, opposite, first_stage_weight=0)
    assert np.allclose(one.strengths, -np.array(two.strengths), atol=1e-8)
    assert np.allclose(one.errors, two.errors, atol=1e-8)


@settings(max_examples=40)
@given(length=st.integers(3, 30), seed=st.integers(0, 2**32))
def test_a_win_lifts_the_winner_and_lowers_the_loser(length: int, seed: int) -> None:
    ids, outcomes = arbitrary(length, seed)
    winner, loser = Random(seed).sample(range(length), 2)
    window = Window((ids[loser], ids[winner]), (1, length))
    order = WindowRanking(((ids[winner],), (ids[loser],)), frozenset(window.doc_ids), True)
    before, after = fit(ids, outcomes), fit(ids, [*outcomes, WindowResult(window, (order,))])
    assert after.strengths[winner] > before.strengths[winner]
    assert after.strengths[loser] < before.strengths[loser]


def test_without_evidence_the_first_stage_stands() -> None:
    ids = tuple(f"d{i}" for i in range(400))  # enough to take windows apart
    window = Window(ids[:20][::-1], (1, 400))
    found = fit(ids, [WindowResult(window, (WindowRanking.unranked(window),))])
    assert found.ranked() == ids
    assert np.allclose(found.errors, PRIOR_PRECISION**-0.5)
    assert np.allclose(np.diff(found.strengths), [log((r + 10) / (r + 11)) for r in range(399)])
    assert fit(ids, [], first_stage_weight=0).ranked() == ids
    assert fit((), []) == Fit((), (), ())


def test_one_window_without_prior_keeps_its_order_and_its_ties_stay_level() -> None:
    found = fit(tuple("abcd"), [answered("d", "bc", "a")], first_stage_weight=0)
    assert found.ranked() == tuple("dbca")
    assert found.strengths[1] == pytest.approx(found.strengths[2], abs=1e-9)


def test_an_id_that_was_not_placed_is_no_evidence() -> None:
    silent = fit(tuple("abcd"), [answered("b", "a", "c", "d", placed="ab")])
    spoken = fit(tuple("abcd"), [answered("b", "a", "c", "d")])
    assert silent.errors[3] == pytest.approx(PRIOR_PRECISION**-0.5)
    assert silent.strengths[3] - silent.strengths[2] == pytest.approx(log(12 / 13))
    assert spoken.strengths[3] < silent.strengths[3]


def test_samples_of_a_window_share_its_weight() -> None:
    [order] = answered("b", "a", "c").rankings
    window = Window(tuple("abc"), (1, 3))
    failed = WindowRanking.unranked(window)
    once = fit(tuple("abc"), [WindowResult(window, (order,))])
    for orders in ((order, order, order), (failed, order)):
        again = fit(tuple("abc"), [WindowResult(window, orders)])
        assert np.allclose(again.strengths, once.strengths)
        assert np.allclose(again.errors, once.errors)


def test_a_strange_id_is_named() -> None:
    with pytest.raises(InputError, match="'z', which is no candidate"):
        fit(tuple("ab"), [answered("a", "z")])


@pytest.mark.parametrize("first_stage_weight", [0.0, 1.0, 1e6])
def test_extreme_weights_and_contradictions_are_borne(first_stage_weight: float) -> None:
    ids = tuple(f"d{i}" for i in range(30))
    window = Window(ids, (1, 30))
    backwards = WindowRanking(tuple((d,) for d in ids[::-1]), frozenset(ids), True)
    found = fit(ids, [WindowResult(window, (backwards,))] * 500, first_stage_weight)
    assert np.isfinite(found.strengths).all()
    assert found.ranked() == (ids if first_stage_weight > 1 else ids[::-1])


@given(
    strengths=st.lists(st.floats(-20, 20), min_size=11, max_size=60),
    errors=st.lists(st.floats(0.05, 3), min_size=60, max_size=60),
    k=st.integers(1, 10),
)
def test_in_top_is_the_normal_tail_and_adds_up_to_k(strengths: list[float], errors: list[float], k: int) -> None:
    ids = tuple(map(str, range(len(strengths))))
    found = Fit(ids, tuple(strengths), tuple(errors[: len(ids)]))
    chances = found.in_top(k)
    assert set(chances) == set(ids)
    # where the k-th and the next are far apart, every threshold between them serves
    assert sum(chances.values()) == pytest.approx(k, abs=1e-6)
    z = norm.isf(np.clip(list(chances.values()), 1e-12, 1 - 1e-12))
    thresholds = np.array(strengths) + z * np.array(errors[: len(ids)])
    inside = [1e-6 < c < 1 - 1e-6 for c in chances.values()]
    assume(any(inside))
    assert np.ptp(thresholds[inside]) < 1e-4


def test_in_top_of_no_more_than_k_is_certain() -> None:
    assert fit(tuple("abc"), [answered("c", "b", "a")]).in_top(3) == dict.fromkeys("abc", 1.0)


def test_fit_of_ten_times_the_passages_takes_far_less_than_cubic_time() -> None:
    """Measured: 29 times as long; one dense matrix of all passages takes 170 times as long."""

    def fitting(length: int) -> Callable[[], object]:
        ids = tuple(f"d{i}" for i in range(length))
        random = Random(length)
        windows = [Window(ids[i :: length // 20], (1, length)) for i in range(length // 20)] + [
            Window(ids[:20], (1, 20))
        ]
        outcomes = [WindowResult(window, (arbitrary_ranking(window, random),)) for window in windows]
        return lambda: fit(ids, outcomes).in_top()

    small, large = cpu_seconds(fitting(100), fitting(1000))
    assert large < 100 * small
