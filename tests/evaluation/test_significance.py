"""Comparing runs: by hand, and against scipy's own tests."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from rank_k.errors import InputError
from rank_k.evaluation.significance import PairedDifference, holm, interval, paired_difference

SAMPLES = {
    "identical": np.random.default_rng(1).normal(0.0, 0.1, 40),
    "better": np.random.default_rng(2).normal(0.05, 0.1, 43),
    "skewed": np.random.default_rng(3).exponential(0.1, 97) - 0.09,
    "mostly equal": np.random.default_rng(4).normal(0.1, 0.1, 60) * (np.arange(60) % 4 == 0),
    "few": np.array([0.1, 0.2, -0.05, 0.3, 0.12, 0.0, 0.04]),
}


def by_query(values: Iterable[float]) -> dict[str, float]:
    return {f"q{number:03}": float(value) for number, value in enumerate(values)}


def against_nothing(values: Iterable[float]) -> PairedDifference:
    """The comparison whose differences are `values`."""
    found = by_query(values)
    return paired_difference(found, dict.fromkeys(found, 0.0))


# --- against scipy ---


@pytest.mark.parametrize("name", SAMPLES)
def test_the_interval_is_scipys(name: str) -> None:
    values = SAMPLES[name]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    width = theirs.high - theirs.low
    low, high = interval(values.tolist(), resamples=20_000)
    assert low == pytest.approx(theirs.low, abs=0.03 * width)
    assert high == pytest.approx(theirs.high, abs=0.03 * width)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_t_test_is_scipys(name: str) -> None:
    baseline = np.random.default_rng(9).uniform(0, 1, len(SAMPLES[name]))
    ours = baseline + SAMPLES[name]
    found = paired_difference(by_query(ours), by_query(baseline))
    theirs = stats.ttest_rel(ours, baseline)
    assert found.t_p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.mean == pytest.approx(np.mean(ours - baseline))
    assert found.error == pytest.approx(stats.sem(ours - baseline))


@pytest.mark.parametrize("name", SAMPLES)
def test_the_randomization_test_is_scipys(name: str) -> None:
    theirs = stats.permutation_test(
        (SAMPLES[name],),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(7),
    ).pvalue
    # four standard errors of the difference of two counts, of 10,000 draws and of 20,000; scipy doubles one tail
    allowed = 4 * math.sqrt(theirs * (1 - theirs) / 10_000 + theirs * (2 - theirs) / 20_000) + 1e-4
    assert against_nothing(SAMPLES[name]).randomization_p == pytest.approx(theirs, abs=allowed)


def test_few_queries_are_counted_out_and_scipy_finds_the_same() -> None:
    values = SAMPLES["few"]
    theirs = stats.permutation_test((values,), lambda v, axis: np.sum(v, axis=axis), permutation_type="samples")
    assert against_nothing(values).randomization_p == pytest.approx(theirs.pvalue, abs=1e-12)


# --- by hand ---


def test_three_queries_by_hand() -> None:
    found = paired_difference({"a": 0.5, "b": 0.7, "c": 0.2}, {"c": 0.3, "b": 0.4, "a": 0.5})
    assert (found.better, found.equal, found.worse, found.queries) == (1, 1, 1, 3)
    assert found.mean == pytest.approx(0.2 / 3)
    # of the four combinations of signs, -.4, -.2, .2 and .4, all are as far from zero as .2
    assert found.randomization_p == 1.0
    assert found.low == pytest.approx(-0.1)
    assert found.high == pytest.approx(0.3)


def test_all_gain_the_same() -> None:
    found = against_nothing([0.25] * 6)
    assert (found.mean, found.error, found.low, found.high) == (0.25, 0.0, 0.25, 0.25)
    assert found.t_p == 0.0
    assert found.randomization_p == 2 / 2**6, "all six heads or all six tails"


@pytest.mark.parametrize("count", [1, 2, 40])
def test_no_difference_is_no_evidence_and_no_warning(count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = against_nothing([0.0] * count)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert (found.t_p, found.randomization_p) == (1.0, 1.0)
    assert (found.better, found.equal, found.worse) == (0, count, 0)


def test_what_rounding_leaves_is_no_difference() -> None:
    assert against_nothing([1e-17, -3e-16, 0.0]) == PairedDifference(0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0, 3, 0)


def test_one_query_has_no_error_and_proves_nothing() -> None:
    found = against_nothing([0.3])
    assert math.isnan(found.error)
    assert (found.mean, found.low, found.high, found.t_p, found.randomization_p) == (0.3, 0.3, 0.3, 1.0, 1.0)


def test_drawn_p_values_are_never_zero() -> None:
    assert against_nothing([1.0] * 200).randomization_p == 1 / 10_001


def test_queries_on_one_side_only_are_not_left_out_silently() -> None:
    with pytest.raises(InputError, match="2 queries have a value on one side only, for one b"):
        paired_difference({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 0.0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_rather_than_called_sure(value: float) -> None:
    with pytest.raises(InputError, match="not a finite number"):
        paired_difference({"a": value, "b": 1.0}, {"a": 0.0, "b": 0.0})


def test_nothing_to_compare() -> None:
    with pytest.raises(InputError, match="no queries"):
        paired_difference({}, {})
    with pytest.raises(InputError, match="level"):
        interval([1.0], level=95)
    with pytest.raises(InputError, match="resamples"):
        interval([1.0], resamples=0)


def test_memory_is_bounded_by_blocks_and_they_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = against_nothing(SAMPLES["skewed"])
    monkeypatch.setattr("rank_k.evaluation.significance._BLOCK", 97 * 10)
    assert against_nothing(SAMPLES["skewed"]) == whole


# --- properties ---

DIFFERENCES = st.lists(st.integers(-20, 20).map(lambda n: n / 20), min_size=1, max_size=25)


@settings(max_examples=40)
@given(values=DIFFERENCES)
@example(values=[0.0])
def test_exchanging_the_runs_mirrors_everything(values: list[float]) -> None:
    zeros = dict.fromkeys(by_query(values), 0.0)
    one = paired_difference(by_query(values), zeros, resamples=500)
    other = paired_difference(zeros, by_query(values), resamples=500)
    assert one.mean == pytest.approx(-other.mean)
    assert (one.better, one.worse) == (other.worse, other.better)
    assert one.t_p == pytest.approx(other.t_p)
    assert one.randomization_p == other.randomization_p
    assert min(values) - 1e-9 <= one.low <= one.high <= max(values) + 1e-9
    assert 0 <= one.t_p <= 1
    assert 0 < one.randomization_p <= 1


@settings(max_examples=20)
@given(values=st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=12), chance=st.randoms())
def test_the_order_of_the_queries_does_not_matter(values: dict[str, float], chance: Random) -> None:
    shuffled = dict(sorted(values.items(), key=lambda _: chance.random()))
    zeros = dict.fromkeys(values, 0.0)
    one, other = paired_difference(values, zeros, resamples=200), paired_difference(shuffled, zeros, resamples=200)
    assert repr(one) == repr(other)


# --- Holm ---


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([]) == []


@given(p_values=st.lists(st.floats(0, 1), max_size=12), alpha=st.floats(0.001, 0.999))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float], alpha: float) -> None:
    """The definition: from the smallest on, reject as long as p <= alpha / (number left)."""
    rejected = set()
    for place, number in enumerate(sorted(range(len(p_values)), key=lambda n: p_values[n])):
        if (len(p_values) - place) * p_values[number] > alpha:
            break
        rejected.add(number)
    assert {number for number, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= min(1.0, len(p_values) * p) for p, c in zip(p_values, corrected, strict=True))
    by_size = sorted(range(len(p_values)), key=lambda n: p_values[n])
    assert [corrected[n] for n in by_size] == sorted(corrected)
