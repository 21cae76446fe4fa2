"""How a model errs, estimated from its answers and from judgments: the `Noise` of a judge that errs like it.

The model is that of `SimulatedModel`: a passage's worth in one look is its grade plus three independent normal errors
(of the passage, of the company, of the call) plus what presentation does, and the answer is the order of the worths.
An answer says of two passages which one came first, so that everything is read from pairs (Thurstone 1927, case V):

- The higher grade comes first with probability P(z < (difference of grades - middle + bias) / spread of the
  difference). Regressing who came first on grades and positions (a probit) gives `sd`, `position_bias` and `middle`.
- Two looks at a pair of equal grade agree more often, the more of the error they share (the orthant probability of
  two correlated normals; without bias 1/2 + arcsin(r) / pi, Sheppard 1899). Looks at the same window share all but
  the fresh error; looks in different windows share the persistent error and part of the company's. Matching the
  observed agreement gives the shares.
- `malformed` is counted. `tie_gap` is the gap at which a judge with the rest of the estimate ties as many passages.

Pairs count only where neither passage was shown in an earlier round (`rank_k.simulation.observations`), and only in the
first two looks at a window.

What the answers do not determine stays as in the preset "strong" and is named. Standard errors treat queries as the
units (a sandwich estimate over queries), those of the shares take `sd` and the biases as known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from math import exp, pi, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from rank_k.errors import InputError
from rank_k.models.simulated import PRESETS, Grades, Noise, SimulatedModel
from rank_k.optional_deps import load
from rank_k.simulation.observations import Comparisons, Observation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

DEFAULT = PRESETS["strong"]
"""What stays where the answers say nothing."""

_REGULAR_SAMPLES = 2
"""Looks at a window that are taken in any case. Later ones are a selection: they are taken where these disagree."""

_MIN_AGREEMENTS = 200
"""Comparisons of two looks below which nothing is read from how often they agree."""


@dataclass(frozen=True, slots=True)
class NoiseFit:
    """`errors`: standard errors of what was estimated. `assumed`: why the other fields are what they are."""

    noise: Noise
    errors: Mapping[str, float]
    assumed: Mapping[str, str]
    queries: int
    observations: int
    comparisons: int


def fit_noise(observations: Sequence[Observation], grades: Grades) -> NoiseFit:
    """The noise of the judge that most likely gave these answers, if passages are worth their `grades`.

    Unjudged passages have grade 0; queries without judgments are left out. Raises `InputError` where nothing can be
    told: no judged query, no two passages of different grades. Needs numpy.
    """
    judged_observations = [
        observation for observation in observations if observation.query_id in grades and len(observation.doc_ids) > 1
    ]
    if not judged_observations:
        raise InputError(
            "none of the windows compares passages of a judged query", "give the qrels of the collection asked"
        )
    by_query: dict[str, list[Observation]] = {}
    for observation in judged_observations:
        if observation.sample < _REGULAR_SAMPLES:
            by_query.setdefault(observation.query_id, []).append(observation)
    queries = [Comparisons(grades[query_id], query_observations) for query_id, query_observations in by_query.items()]
    assumed: dict[str, str] = {}
    errors: dict[str, float] = {}
    noise = replace(DEFAULT, malformed=_malformed_share(judged_observations), tie_gap=0.0)
    assumed["growth"] = "as in strong: the windows do not tell error by size apart"
    assumed["query_spread"] = "as in strong: the difference between queries is not told apart from chance"
    noise, level_errors = _fit_level(queries, noise)
    errors |= level_errors
    noise, level_errors, share_assumptions = _fit_shares(queries, noise)
    errors |= level_errors
    assumed |= share_assumptions
    noise = _round_fields(replace(noise, tie_gap=_fit_tie_gap(judged_observations, grades, noise)))
    comparisons = sum(len(query.outcomes) for query in queries)
    return NoiseFit(noise, errors, assumed, len(queries), len(judged_observations), comparisons)


def _round_fields(noise: Noise) -> Noise:
    """To what can be told; the shares still sum to 1."""
    rounded = Noise(**{name: round(value, 4) for name, value in asdict(noise).items()})
    return replace(rounded, persistent=round(1 - rounded.composition - rounded.fresh, 4))


# --- the size of the error, and what presentation does ---------------------------------------------


def _fit_level(queries: Sequence[Comparisons], noise: Noise) -> tuple[Noise, dict[str, float]]:
    """`sd`, `position_bias` and `middle`, with their standard errors: a probit, by Fisher scoring."""
    np = load("numpy")
    columns = [(query.grade_gap, -query.middle_loss, query.position_lead) for query in queries]
    design = np.concatenate([np.stack(column, axis=1) for column in columns])
    outcomes = np.concatenate([query.outcomes for query in queries])
    window_size = np.concatenate([query.window_size for query in queries])
    query_index = np.repeat(np.arange(len(queries)), [len(query.outcomes) for query in queries])
    if not len(outcomes) or not (design[:, 0] > 0).any():
        raise InputError(
            "no window compares two passages of different grades", "the noise cannot be told from these judgments"
        )
    spread = np.sqrt(2 * _error_variance(noise, window_size))  # of a difference, for an sd of 1
    design = design / spread[:, None]
    coefficients = np.array([1.0, 0.0, 0.0])
    for _ in range(50):
        chance, slope = _mixed_probit(design @ coefficients, noise.query_spread)
        weight = slope / np.clip(chance * (1 - chance), 1e-9, None)
        score = design * (weight * (outcomes - chance))[:, None]
        information = design.T @ (design * (weight * slope)[:, None]) + 1e-9 * np.eye(3)
        step = np.linalg.solve(information, score.sum(axis=0))
        coefficients = coefficients + np.clip(step, -1, 1)
        if abs(step).max() < 1e-8:
            break
    if not coefficients[0] > 1e-3:
        raise InputError(
            "the answers have nothing to do with the judgments", "check that the qrels belong to the collection asked"
        )
    by_query = np.stack([np.bincount(query_index, score[:, i], len(queries)) for i in range(3)], axis=1)
    inverse = np.linalg.inv(information)
    covariance = inverse @ by_query.T @ by_query @ inverse
    grade_coefficient, middle_coefficient, position_coefficient = (float(value) for value in coefficients)
    # sd = 1 / grade, middle = middle / grade, bias = bias / grade (of the coefficients): the delta method
    gradients = {
        "sd": np.array([-1 / grade_coefficient**2, 0, 0]),
        "middle": np.array([-middle_coefficient / grade_coefficient**2, 1 / grade_coefficient, 0]),
        "position_bias": np.array([-position_coefficient / grade_coefficient**2, 0, 1 / grade_coefficient]),
    }
    errors = {name: sqrt(float(gradient @ covariance @ gradient)) for name, gradient in gradients.items()}
    fitted = replace(
        noise,
        sd=1 / grade_coefficient,
        position_bias=max(position_coefficient / grade_coefficient, 0.0),
        middle=min(max(middle_coefficient / grade_coefficient, 0.0), 1.0),
    )
    return fitted, errors


def _error_variance(noise: Noise, size: Floats) -> Floats:
    """Of half the difference of two passages in a window of `size`, for an sd of 1."""
    growth = (size / 20) ** (2 * noise.growth)
    return noise.persistent + noise.composition * size / (size - 1) + noise.fresh * growth


_QUADRATURE_NODES = ((-2.857, 0.01126), (-1.356, 0.22208), (0.0, 0.53333), (1.356, 0.22208), (2.857, 0.01126))
"""Of Gauss-Hermite quadrature with five points, for a standard normal: place and weight."""


def _mixed_probit(value: Floats, spread: float) -> tuple[Floats, Floats]:
    """P(z < value / s) and its derivative by `value`, with s lognormal: queries differ in how hard they are."""
    np = load("numpy")
    chance, slope = np.zeros(len(value)), np.zeros(len(value))
    for node, weight in _QUADRATURE_NODES:
        scale = exp(-spread * node)
        chance += weight * _normal_cdf(value * scale)
        slope += weight * scale * np.exp(-((value * scale) ** 2) / 2) / sqrt(2 * pi)
    return chance, slope


def _normal_cdf(value: Floats) -> Floats:
    """P(z < value) to seven digits (Abramowitz and Stegun 1964, 7.1.26): numpy has no such function."""
    np = load("numpy")
    x = np.abs(value) / sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = series * np.exp(-x * x) / 2
    return np.where(value > 0, 1 - tail, tail)  # type: ignore[no-any-return]


# --- what part of it is of which kind --------------------------------------------------------------


class _AgreementRows(NamedTuple):
    """Looks in pairs at pairs of passages of equal grade, by row: the query, whether they agree (1/2 where one has
    a tie), how much earlier the one was shown in each look, the sizes of the windows, and how many passages both hold.
    """

    query: Floats
    agree: Floats
    leads: Floats
    sizes: Floats
    shared: Floats


def _agreement_rows(queries: Sequence[Comparisons]) -> tuple[_AgreementRows | None, _AgreementRows | None]:
    """In the same window, and in different ones."""
    np = load("numpy")
    rows: dict[bool, list[Any]] = {True: [], False: []}
    for number, query in enumerate(queries):
        for first_arrays, second_arrays in combinations(query.observations, 2):
            common_ids, in_first, in_second = np.intersect1d(
                first_arrays.ids, second_arrays.ids, assume_unique=True, return_indices=True
            )
            first_index, second_index = np.triu_indices(len(common_ids), 1)
            has_equal_grades = query.grade[common_ids[first_index]] == query.grade[common_ids[second_index]]
            first_index, second_index = first_index[has_equal_grades], second_index[has_equal_grades]
            if not len(first_index):
                continue
            signs = [
                np.sign(arrays.tiers[index][second_index] - arrays.tiers[index][first_index])
                for arrays, index in ((first_arrays, in_first), (second_arrays, in_second))
            ]
            leads = [
                (arrays.positions[index][second_index] - arrays.positions[index][first_index])
                / (len(arrays.window_ids) - 1)
                for arrays, index in ((first_arrays, in_first), (second_arrays, in_second))
            ]
            sizes = np.tile(
                [float(len(first_arrays.window_ids)), float(len(second_arrays.window_ids))], (len(first_index), 1)
            )
            agreement = (signs[0] * signs[1] + 1) / 2
            shared = np.full(len(first_index), float(len(first_arrays.id_set & second_arrays.id_set)))
            query_index = np.full(len(first_index), number)
            rows[first_arrays.id_set == second_arrays.id_set].append(
                (query_index, agreement, np.stack(leads, axis=1), sizes, shared)
            )
    return tuple(  # type: ignore[return-value]
        _AgreementRows(*map(np.concatenate, zip(*columns, strict=True)))
        if sum(len(row[0]) for row in columns) >= _MIN_AGREEMENTS
        else None
        for columns in (rows[True], rows[False])
    )


def _expected_agreement(rows: _AgreementRows, noise: Noise) -> Floats:
    """How often two looks agree by `noise`: both errors are a common part and one of their own."""
    np = load("numpy")
    first_size, second_size = rows.sizes.T
    overlap = rows.shared / np.sqrt((first_size - 1) * (second_size - 1))
    variances = np.stack([_error_variance(noise, first_size), _error_variance(noise, second_size)], axis=1)
    correlation = np.clip((noise.persistent + noise.composition * overlap)[:, None] / variances, 0, 0.9999)
    correlation = np.sqrt(correlation[:, :1] * correlation[:, 1:])  # the correlation of the two
    bias = noise.position_bias * rows.leads / (noise.sd * np.sqrt(2 * variances))
    first, second = bias.T
    # both come out the same way: the integral over the angle (Drezner and Wesolowsky 1990), ten points by Gauss
    angle = np.arcsin(correlation[:, 0])
    nodes, weights = np.polynomial.legendre.leggauss(10)
    same_sign = np.zeros(len(angle))
    for node, weight in zip(nodes, weights, strict=True):
        node_angle = angle * (node + 1) / 2
        distance = first**2 - 2 * first * second * np.sin(node_angle) + second**2
        same_sign += weight * np.exp(-distance / (2 * np.cos(node_angle) ** 2))
    first_probability, second_probability = _normal_cdf(first), _normal_cdf(second)
    same_sign *= angle / (4 * pi)
    return 2 * (first_probability * second_probability + same_sign) + 1 - first_probability - second_probability  # type: ignore[no-any-return]


def _fit_shares(queries: Sequence[Comparisons], noise: Noise) -> tuple[Noise, dict[str, float], dict[str, str]]:
    """The three shares, with standard errors, and what had to be assumed."""
    same_window_rows, other_window_rows = _agreement_rows(queries)
    errors: dict[str, float] = {}
    assumed: dict[str, str] = {}
    composition = DEFAULT.composition / (DEFAULT.composition + DEFAULT.persistent)

    def set_shares(composition: float, fresh: float) -> Noise:
        return replace(
            noise, fresh=fresh, composition=(1 - fresh) * composition, persistent=(1 - fresh) * (1 - composition)
        )

    def set_shares_by_composition(fresh: float, composition: float) -> Noise:
        return set_shares(composition, fresh)

    fresh = DEFAULT.fresh
    for _ in range(
        4 if same_window_rows and other_window_rows else 1
    ):  # each is found with the other one as it is known so far
        if same_window_rows:
            fresh, errors["fresh"] = _match_agreement(same_window_rows, partial(set_shares, composition))
        if other_window_rows:
            composition, error = _match_agreement(other_window_rows, partial(set_shares_by_composition, fresh))
            errors["composition"] = (1 - fresh) * error
    if not same_window_rows:
        assumed["fresh"] = "as in strong: hardly a window was asked twice (--samples 3 would tell)"
    if not other_window_rows:
        assumed["composition"] = (
            "to persistent as in strong: hardly a pair met again in other company (--preset thorough would tell)"
        )
    if same_window_rows or other_window_rows:
        errors["persistent"] = sqrt(sum(error**2 for error in errors.values()))
    return set_shares(composition, fresh), errors, assumed


def _match_agreement(rows: _AgreementRows, set_share: Callable[[float], Noise]) -> tuple[float, float]:
    """The share at which looks agree as often as they did (the larger it is, the less they do), by halving; and its
    standard error over queries."""
    np = load("numpy")
    observed = float(rows.agree.mean())
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        agrees_more = float(_expected_agreement(rows, set_share(middle)).mean()) > observed
        low, high = (middle, high) if agrees_more else (low, middle)
    share = (low + high) / 2
    step = 0.01 if share < 0.5 else -0.01
    agreement = _expected_agreement(rows, set_share(share))
    slope = float((_expected_agreement(rows, set_share(share + step)) - agreement).mean()) / step
    surplus = np.bincount(rows.query.astype(int), rows.agree - agreement)
    return share, abs(float(np.sqrt((surplus**2).sum())) / len(agreement) / slope) if slope else float("nan")


# --- what is counted -------------------------------------------------------------------------------


def _malformed_share(observations: Sequence[Observation]) -> float:
    """The share of answers that were malformed, at a window of 20."""
    malformed = sum(
        not observation.ranking.is_valid or len(observation.ranking.ranked_ids) < len(observation.doc_ids)
        for observation in observations
    )
    return min(malformed / sum(len(observation.doc_ids) / 20 for observation in observations), 1.0)


def _fit_tie_gap(observations: Sequence[Observation], grades: Grades, noise: Noise) -> float:
    """At which a judge with `noise` ties as many passages of these windows as were tied."""
    judge = SimulatedModel(grades, noise)
    complete = [
        observation
        for observation in observations
        if observation.ranking.is_valid and len(observation.ranking.ranked_ids) == len(observation.doc_ids)
    ]
    complete = [
        observation for observation in complete if observation.unseen.issuperset(observation.doc_ids)
    ] or complete
    tied_count = sum(len(observation.doc_ids) - len(observation.ranking.tiers) for observation in complete)
    relevances = [
        sorted(judge.perceived_relevance(observation.query_id, observation.doc_ids, observation.sample), reverse=True)
        for observation in complete
    ]
    low, high = 0.0, 4 * max(noise.sd, 1.0)
    if not tied_count:
        return 0.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if sum(_count_tied(relevance, middle) for relevance in relevances) < tied_count
            else (low, middle)
        )
    return high


def _count_tied(relevances: Sequence[float], gap: float) -> int:
    """How many of `relevances`, best first, join the tier of one before."""
    count, tier_best = 0, float("inf")
    for relevance in relevances:
        if tier_best - relevance <= gap:
            count += 1
        else:
            tier_best = relevance
    return count
