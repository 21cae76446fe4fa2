"""Comparing runs: by hand, and against scipy's own tests."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from collections.abc import Callable, Iterable
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from rank_k.errors import InputError
from rank_k.evaluation.significance import PairedDifference, bootstrap_interval, holm, paired_difference

SAMPLES = {
    "identical": np.random.default_rng(1).normal(0.0, 0.1, 40),
    "better": np.random.default_rng(2).normal(0.05, 0.1, 43),
    "skewed": np.random.default_rng(3).exponential(0.1, 97) - 0.09,
    "mostly equal": np.random.default_rng(4).normal(0.1, 0.1, 60) * (np.arange(60) % 4 == 0),
    "few": np.array([0.1, 0.2, -0.05, 0.3, 0.12, 0.0, 0.04]),
}


def values_by_query(values: Iterable[float]) -> dict[str, float]:
    return {f"q{number:03}": float(value) for number, value in enumerate(values)}


def difference_from_zero(values: Iterable[float]) -> PairedDifference:
    """The comparison whose differences are `values`."""
    values_by_id = values_by_query(values)
    return paired_difference(values_by_id, dict.fromkeys(values_by_id, 0.0))


# --- against scipy ---


@pytest.mark.parametrize("name", SAMPLES)
def test_bootstrap_interval_matches_scipy(name: str) -> None:
    values = SAMPLES[name]
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    width = reference.high - reference.low
    low, high = bootstrap_interval(values.tolist())
    assert low == pytest.approx(reference.low, abs=0.03 * width)
    assert high == pytest.approx(reference.high, abs=0.03 * width)


@pytest.mark.parametrize("name", SAMPLES)
def test_paired_difference_t_test_matches_scipy(name: str) -> None:
    baseline = np.random.default_rng(9).uniform(0, 1, len(SAMPLES[name]))
    system_values = baseline + SAMPLES[name]
    difference = paired_difference(values_by_query(system_values), values_by_query(baseline))
    reference = stats.ttest_rel(system_values, baseline)
    assert difference.t_p == pytest.approx(reference.pvalue, rel=1e-9)
    assert difference.mean == pytest.approx(np.mean(system_values - baseline))
    assert difference.standard_error == pytest.approx(stats.sem(system_values - baseline))


@pytest.mark.parametrize("name", SAMPLES)
def test_paired_difference_randomization_test_matches_scipy(name: str) -> None:
    reference = stats.permutation_test(
        (SAMPLES[name],),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(7),
    ).pvalue
    # four standard errors of the difference of two counts, of 10,000 draws and of 20,000; scipy doubles one tail
    tolerance = 4 * math.sqrt(reference * (1 - reference) / 10_000 + reference * (2 - reference) / 20_000) + 1e-4
    assert difference_from_zero(SAMPLES[name]).randomization_p == pytest.approx(reference, abs=tolerance)


def test_paired_difference_enumerates_signs_of_few_queries() -> None:
    values = SAMPLES["few"]
    reference = stats.permutation_test((values,), lambda v, axis: np.sum(v, axis=axis), permutation_type="samples")
    assert difference_from_zero(values).randomization_p == pytest.approx(reference.pvalue, abs=1e-12)


# --- by hand ---


def test_paired_difference_matches_manual_calculation() -> None:
    difference = paired_difference({"a": 0.5, "b": 0.7, "c": 0.2}, {"c": 0.3, "b": 0.4, "a": 0.5})
    assert (difference.better, difference.equal, difference.worse, difference.queries) == (1, 1, 1, 3)
    assert difference.mean == pytest.approx(0.2 / 3)
    # of the four combinations of signs, -.4, -.2, .2 and .4, all are as far from zero as .2
    assert difference.randomization_p == 1.0
    assert difference.low == pytest.approx(-0.1)
    assert difference.high == pytest.approx(0.3)


def test_paired_difference_of_equal_gains_has_zero_error() -> None:
    difference = difference_from_zero([0.25] * 6)
    assert (difference.mean, difference.standard_error, difference.low, difference.high) == (0.25, 0.0, 0.25, 0.25)
    assert difference.t_p == 0.0
    assert difference.randomization_p == 2 / 2**6, "all six heads or all six tails"


@pytest.mark.parametrize("count", [1, 2, 40])
def test_paired_difference_of_zeros_has_p_one_without_warning(count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        difference = difference_from_zero([0.0] * count)
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert (difference.t_p, difference.randomization_p) == (1.0, 1.0)
    assert (difference.better, difference.equal, difference.worse) == (0, count, 0)


def test_paired_difference_treats_rounding_errors_as_zero() -> None:
    assert difference_from_zero([1e-17, -3e-16, 0.0]) == PairedDifference(0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0, 3, 0)


def test_paired_difference_of_one_query_has_p_one() -> None:
    difference = difference_from_zero([0.3])
    assert math.isnan(difference.standard_error)
    assert (difference.mean, difference.low, difference.high, difference.t_p, difference.randomization_p) == (
        0.3,
        0.3,
        0.3,
        1.0,
        1.0,
    )


def test_paired_difference_sampled_p_value_is_never_zero() -> None:
    assert difference_from_zero([1.0] * 200).randomization_p == 1 / 10_001


def test_paired_difference_rejects_unmatched_queries() -> None:
    with pytest.raises(InputError, match="2 queries have a value in one run only, for example b"):
        paired_difference({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 0.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_paired_difference_rejects_non_finite_values(value: float) -> None:
    with pytest.raises(InputError, match="not a finite number"):
        paired_difference({"a": value, "b": 1.0}, {"a": 0.0, "b": 0.0})


@pytest.mark.parametrize("compare", [lambda: bootstrap_interval([]), lambda: paired_difference({}, {})])
def test_bootstrap_interval_and_paired_difference_reject_no_values(compare: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="no queries"):
        compare()


def test_paired_difference_is_independent_of_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = difference_from_zero(SAMPLES["skewed"])
    monkeypatch.setattr("rank_k.evaluation.significance._BATCH_VALUES", 97 * 10)
    assert difference_from_zero(SAMPLES["skewed"]) == expected


def test_paired_difference_of_many_queries_takes_little_memory() -> None:
    """10,000 draws over 1,000 queries would be 80 MB at once, and as much again for each step."""
    tracemalloc.start()
    difference_from_zero(np.random.default_rng(5).normal(0.01, 0.1, 1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


# --- properties ---

DIFFERENCES = st.lists(st.integers(-20, 20).map(lambda n: n / 20), min_size=1, max_size=25)


@settings(max_examples=40)
@given(values=DIFFERENCES)
@example(values=[0.0])
def test_paired_difference_mirrors_when_runs_are_swapped(values: list[float]) -> None:
    zeros = dict.fromkeys(values_by_query(values), 0.0)
    original = paired_difference(values_by_query(values), zeros)
    swapped = paired_difference(zeros, values_by_query(values))
    assert original.mean == pytest.approx(-swapped.mean)
    assert (original.better, original.worse) == (swapped.worse, swapped.better)
    assert original.t_p == pytest.approx(swapped.t_p)
    assert original.randomization_p == swapped.randomization_p
    assert min(values) - 1e-9 <= original.low <= original.high <= max(values) + 1e-9
    assert 0 <= original.t_p <= 1
    assert 0 < original.randomization_p <= 1


@settings(max_examples=20)
@given(values=st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=12), rng=st.randoms())
def test_paired_difference_ignores_query_order(values: dict[str, float], rng: Random) -> None:
    shuffled_values = dict(sorted(values.items(), key=lambda _: rng.random()))
    zeros = dict.fromkeys(values, 0.0)
    original, reordered = paired_difference(values, zeros), paired_difference(shuffled_values, zeros)
    assert repr(original) == repr(reordered)


# --- Holm ---


def test_holm_matches_manual_calculation() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([]) == []


@given(p_values=st.lists(st.floats(0, 1), max_size=12), alpha=st.floats(0.001, 0.999))
def test_holm_rejects_same_hypotheses_as_step_down_definition(p_values: list[float], alpha: float) -> None:
    """The definition: from the smallest on, reject as long as p <= alpha / (number left)."""
    rejected = set()
    for position, number in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        if (len(p_values) - position) * p_values[number] > alpha:
            break
        rejected.add(number)
    assert {number for number, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_uncorrected_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= min(1.0, len(p_values) * p) for p, c in zip(p_values, corrected, strict=True))
    by_size = sorted(range(len(p_values)), key=lambda n: p_values[n])
    assert [corrected[n] for n in by_size] == sorted(corrected)
