"""Estimate the errors of a model from its answers and relevance judgments, as the `Noise` of a `SimulatedModel`.

The statistical model is that of `SimulatedModel`: the perceived relevance of a passage is its grade plus three
independent normal errors (persistent, composition and fresh), plus effects of its position in the prompt. The answer
lists the passages by perceived relevance. Each answer compares every two of its passages, so all parameters are
estimated from pairs of passages (Thurstone 1927, case V):

- `sd`, `position_bias` and `middle` come from a probit regression. The first passage of a pair is ranked higher with
  probability P(z < d / s), where z is a standard normal variable, d is the difference in grade, corrected for the
  effects of the two positions, and s is the standard deviation of the difference of the errors.
- The shares of the three errors come from the agreement of two answers about pairs of passages with equal grades. The
  larger the part of the error that the two answers share, the more often they agree (the orthant probability of two
  correlated normal variables; without position bias it is 1/2 + arcsin(r) / pi, Sheppard 1899). Answers about the same
  window share everything except the fresh error. Answers about different windows share the persistent error and part
  of the composition error. The fitted shares make the expected agreement equal to the observed agreement.
- `malformed` is the observed rate of malformed answers. `tie_gap` is the gap at which a simulated model with the other
  estimates ties as many passages as the real model did.

Only passages that no earlier round presented are compared (see `rank_k.simulation.observations`), and only in the first
two samples of each window. A parameter that the answers do not determine keeps its value from the preset "strong", and
the result lists it as assumed. Standard errors are clustered by query (sandwich estimator). The standard errors of the
shares treat `sd` and the effects of positions as known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import exp, pi, sqrt
from typing import Any

from rank_k.errors import InputError
from rank_k.evaluation.significance import Floats
from rank_k.models.simulated import PRESETS, Grades, Noise, SimulatedModel, group_ties, highest_grade
from rank_k.optional_deps import load
from rank_k.simulation.observations import Observation

DEFAULT = PRESETS["strong"]
"""The values of parameters that the answers do not determine."""

_REGULAR_SAMPLES = 2
"""Number of samples that every window has. Later samples are requested only if these disagree, so they are biased."""

_MIN_AGREEMENTS = 200
"""The minimum number of compared pairs of passages from which a share is estimated."""


@dataclass(frozen=True, slots=True)
class NoiseFit:
    """The estimated noise of a model.

    Attributes:
        noise: The noise, on the scale of grades of the judgments.
        errors: The standard error of each estimated field, by name.
        assumed: The source of the value of each field that is not estimated, by name.
        queries: The number of judged queries.
        observations: The number of answers.
        comparisons: The number of compared pairs of passages.
    """

    noise: Noise
    errors: Mapping[str, float]
    assumed: Mapping[str, str]
    queries: int
    observations: int
    comparisons: int


def fit_noise(observations: Sequence[Observation], grades: Grades) -> NoiseFit:
    """Return the maximum-likelihood estimate of the noise of a model, given judgments.

    Args:
        observations: The answers. Answers about queries without judgments are ignored.
        grades: The judgments. Unjudged passages have grade 0.

    Returns:
        The noise, its standard errors and the assumptions.

    Raises:
        InputError: If no window compares passages of different grades, or the answers are unrelated to the judgments.
        MissingExtra: If numpy or scipy is not installed.
    """
    judged = [observation for observation in observations if observation.query_id in grades and observation.doc_ids[1:]]
    if not judged:
        raise InputError(
            "no window compares passages of a judged query", "give the qrels of the collection that was reranked"
        )
    regular: dict[str, list[Observation]] = {}
    for observation in judged:
        if observation.sample < _REGULAR_SAMPLES:
            regular.setdefault(observation.query_id, []).append(observation)
    windows_of_20 = sum(len(observation.doc_ids) for observation in judged) / 20
    malformed = sum(not observation.is_complete for observation in judged) / windows_of_20
    noise = replace(DEFAULT, malformed=min(malformed, 1.0), tie_gap=0.0, highest_grade=highest_grade(grades))
    assumed = {
        "growth": "as in strong: not estimated from the sizes of windows",
        "query_spread": "as in strong: not estimated from the differences between queries",
    }
    noise, errors, comparisons = _fit_level(regular, grades, noise)
    noise = _fit_shares(regular, grades, noise, errors, assumed)
    noise = replace(noise, tie_gap=_fit_tie_gap(judged, grades, noise))
    noise = Noise(**{name: round(value, 4) for name, value in asdict(noise).items()})
    noise = replace(noise, persistent=round(1 - noise.composition - noise.fresh, 4))  # so that the shares sum to 1
    return NoiseFit(noise, errors, assumed, len(regular), len(judged), comparisons)


# --- the size of the error, and the effects of presentation ----------------------------------------


def _fit_level(
    queries: Mapping[str, Sequence[Observation]], grades: Grades, noise: Noise
) -> tuple[Noise, dict[str, float], int]:
    """Fit `sd`, `middle` and `position_bias` with a probit regression (Fisher scoring).

    Returns:
        The noise, the standard errors by field name, and the number of comparisons.
    """
    np = load("numpy")
    pairs = [
        np.concatenate([_compare_pairs(observation, grades[query_id]) for observation in observations])
        for query_id, observations in queries.items()
    ]
    query_index = np.repeat(np.arange(len(pairs)), list(map(len, pairs)))
    columns = np.concatenate(pairs)
    design, window_size, outcomes = columns[:, :3], columns[:, 3], columns[:, 4]
    if not design[:, 0].any():
        raise InputError(
            "no window compares two passages of different grades",
            "give qrels that judge more passages of these queries",
        )
    design = design / np.sqrt(2 * _error_variance(noise, window_size))[:, None]  # standard deviation for an sd of 1
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
            "the answers are unrelated to the judgments", "give the qrels of the collection that was reranked"
        )
    score_by_query = np.stack([np.bincount(query_index, column, len(pairs)) for column in score.T], axis=1)
    deviations = score_by_query @ np.linalg.inv(information)
    # The fields are 1 and the other two coefficients, divided by the coefficient of the grade. The delta method gives
    # their errors.
    sd = 1 / coefficients[0]
    fields = np.array([1.0, *coefficients[1:]]) * sd
    gradients = sd * np.eye(3)
    gradients[:, 0] = -sd * fields
    errors = np.sqrt(((deviations @ gradients.T) ** 2).sum(axis=0))
    noise = replace(noise, sd=sd, middle=min(max(fields[1], 0.0), 1.0), position_bias=max(fields[2], 0.0))
    return noise, dict(zip(("sd", "middle", "position_bias"), map(float, errors), strict=True)), len(outcomes)


def _compare_pairs(observation: Observation, grades: Mapping[str, int]) -> Floats:
    """Return a row for each pair of comparable passages of an observation.

    The first three columns are differences between the first and the second passage: in grade, in the effect of a
    position in the middle (for `middle` = 1), and in how early the passage was presented. The other columns are the
    window's size and the outcome (1: the first passage is ranked higher, 0: the second, 1/2: a tie).
    """
    np = load("numpy")
    size = len(observation.doc_ids)
    grade = np.array([float(grades.get(doc_id, 0)) for doc_id in observation.doc_ids])
    position = np.linspace(0, 1, size)
    attributes = np.stack([grade, (grade.mean() - grade) * 4 * position * (1 - position), -position], axis=1)
    places, tiers = np.array([*observation.comparable().values()], dtype=int).reshape(-1, 2).T
    first, second = np.triu_indices(len(places), 1)
    outcomes = (np.sign(tiers[second] - tiers[first]) + 1) / 2
    differences = attributes[places[first]] - attributes[places[second]]
    return np.column_stack([differences, np.full(len(first), float(size)), outcomes])  # type: ignore[no-any-return]


def _error_variance(noise: Noise, size: Floats) -> Floats:
    """Return half the variance of the difference between the errors of two passages, for an sd of 1.

    Args:
        noise: The noise.
        size: The sizes of the windows that contain the two passages.
    """
    growth = (size / 20) ** (2 * noise.growth)
    return noise.persistent + noise.composition * size / (size - 1) + noise.fresh * growth


def _mixed_probit(value: Floats, spread: float) -> tuple[Floats, Floats]:
    """Return P(z < value / s) and its derivative with respect to `value`, averaged over a lognormal s.

    The factor s varies because queries differ in difficulty.
    """
    np, special = load("numpy"), load("scipy.special")
    chance, slope = np.zeros(len(value)), np.zeros(len(value))
    for node, weight in zip(*np.polynomial.hermite_e.hermegauss(5), strict=True):  # Gauss-Hermite quadrature
        scale = exp(-spread * node)
        chance += weight / sqrt(2 * pi) * special.ndtr(value * scale)
        slope += weight / (2 * pi) * scale * np.exp(-((value * scale) ** 2) / 2)
    return chance, slope


# --- the shares of the three errors ----------------------------------------------------------------


def _fit_shares(
    queries: Mapping[str, Sequence[Observation]],
    grades: Grades,
    noise: Noise,
    errors: dict[str, float],
    assumed: dict[str, str],
) -> Noise:
    """Return `noise` with fitted shares of the three errors. Adds to `errors` and `assumed`."""
    same_window, other_window = _collect_agreements(queries, grades)
    shares = {"fresh": DEFAULT.fresh, "mix": DEFAULT.composition / (DEFAULT.composition + DEFAULT.persistent)}
    share_errors: dict[str, float] = {}
    for _ in range(4):  # each share is fitted with the current value of the other share
        for name, agreements in (("fresh", same_window), ("mix", other_window)):
            if agreements is not None:
                shares[name], share_errors[name] = _match_agreement(agreements, noise, shares, name)
    if same_window is None:
        assumed["fresh"] = "as in strong: too few windows have two samples (rerank with --samples 3 to estimate it)"
    if other_window is None:
        assumed["composition"] = (
            "ratio to persistent as in strong: too few pairs appear in several windows"
            " (rerank with --preset thorough to estimate it)"
        )
    else:
        share_errors["composition"] = (1 - shares["fresh"]) * share_errors.pop("mix")
    if share_errors:
        share_errors["persistent"] = sqrt(sum(error**2 for error in share_errors.values()))
    errors |= share_errors
    return _with_shares(noise, **shares)


def _with_shares(noise: Noise, fresh: float, mix: float) -> Noise:
    """Return `noise` with the share `fresh`; the fraction `mix` of the rest is composition error."""
    return replace(noise, fresh=fresh, composition=(1 - fresh) * mix, persistent=(1 - fresh) * (1 - mix))


def _collect_agreements(
    queries: Mapping[str, Sequence[Observation]], grades: Grades
) -> tuple[Floats | None, Floats | None]:
    """Return a row for every two observations of a query and every two passages of equal grade that both compare.

    The columns are the number of the query; the agreement (1: both observations have the same order, 0: they have
    opposite orders, 1/2: one has a tie); for each observation, how much earlier the first passage was presented, as a
    fraction of the window; the sizes of both windows; and the number of passages that both windows contain.

    Returns:
        The rows for two observations of the same window, and the rows for observations of different windows. Either is
        None if it has too few rows.
    """
    np = load("numpy")
    rows: dict[bool, list[Any]] = {True: [], False: []}
    for number, (query_id, observations) in enumerate(queries.items()):
        compared = [(observation, observation.comparable()) for observation in observations]
        for (first, first_places), (second, second_places) in combinations(compared, 2):
            common_ids = [doc_id for doc_id in first_places if doc_id in second_places]
            grade = np.array([grades[query_id].get(doc_id, 0) for doc_id in common_ids])
            left, right = np.triu_indices(len(common_ids), 1)
            left, right = (index[grade[left] == grade[right]] for index in (left, right))
            if not len(left):
                continue
            places = np.array([[first_places[doc_id], second_places[doc_id]] for doc_id in common_ids])
            position_lead, tier_lead = np.moveaxis(places[right] - places[left], -1, 0)
            agreement = (np.sign(tier_lead).prod(axis=1) + 1) / 2
            sizes = np.array([len(first.doc_ids), len(second.doc_ids)])
            shared = len({*first.doc_ids} & {*second.doc_ids})
            columns = np.broadcast_arrays(number, agreement, *(position_lead / (sizes - 1)).T, *sizes, shared)
            rows[{*first.doc_ids} == {*second.doc_ids}].append(np.stack(columns, axis=1))
    same_window, other_window = (
        np.concatenate(parts) if sum(map(len, parts)) >= _MIN_AGREEMENTS else None for parts in rows.values()
    )
    return same_window, other_window


def _match_agreement(agreements: Floats, noise: Noise, shares: Mapping[str, float], name: str) -> tuple[float, float]:
    """Return the value of the share `name` at which answers agree as often as observed, and its standard error.

    Answers agree less often if the share is larger. The standard error is clustered by query.
    """
    np = load("numpy")

    def expected(share: float) -> Floats:
        return _expected_agreement(agreements, _with_shares(noise, **{**shares, name: share}))

    observed = agreements[:, 1]
    share = _bisect(lambda share: bool(expected(share).mean() > observed.mean()), 1.0)
    step = 0.01 if share < 0.5 else -0.01
    agreement = expected(share)
    slope = (expected(share + step) - agreement).mean() / step
    surplus = np.bincount(agreements[:, 0].astype(int), observed - agreement)
    return share, float(abs(np.sqrt((surplus**2).sum()) / len(agreement) / slope)) if slope else float("nan")


def _expected_agreement(agreements: Floats, noise: Noise) -> Floats:
    """Return the probability that two answers, which share part of their errors, agree about two passages."""
    np, special = load("numpy"), load("scipy.special")
    _, _, first_lead, second_lead, first_size, second_size, shared = agreements.T
    first_variance, second_variance = _error_variance(noise, first_size), _error_variance(noise, second_size)
    covariance = noise.persistent + noise.composition * shared / np.sqrt((first_size - 1) * (second_size - 1))
    angle = np.arcsin(np.clip(covariance / np.sqrt(first_variance * second_variance), 0, 0.9999))
    first = noise.position_bias * first_lead / (noise.sd * np.sqrt(2 * first_variance))
    second = noise.position_bias * second_lead / (noise.sd * np.sqrt(2 * second_variance))
    # The probability of equal signs is an integral over the angle (Drezner and Wesolowsky 1990).
    same_sign = np.zeros(len(angle))
    for node, weight in zip(*np.polynomial.legendre.leggauss(10), strict=True):
        node_angle = angle * (node + 1) / 2
        distance = first**2 - 2 * first * second * np.sin(node_angle) + second**2
        same_sign += weight * np.exp(-distance / (2 * np.cos(node_angle) ** 2))
    same_sign *= angle / (4 * pi)
    first_chance, second_chance = special.ndtr(first), special.ndtr(second)
    return 2 * (first_chance * second_chance + same_sign) + 1 - first_chance - second_chance  # type: ignore[no-any-return]


def _bisect(is_below: Callable[[float], bool], high: float) -> float:
    """Return the smallest number between 0 and `high` for which `is_below` is false."""
    low = 0.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return high


# --- ties ------------------------------------------------------------------------------------------


def _fit_tie_gap(observations: Sequence[Observation], grades: Grades, noise: Noise) -> float:
    """Return the gap at which a simulated model with `noise` ties as many passages as the real model did."""
    complete = [observation for observation in observations if observation.is_complete]
    complete = [
        observation for observation in complete if len(observation.unseen) == len(observation.doc_ids)
    ] or complete
    tied_count = sum(len(observation.doc_ids) - len(observation.ranking.tiers) for observation in complete)
    if not tied_count:
        return 0.0
    judge = SimulatedModel(grades, noise)
    relevances = [
        judge.perceived_relevance(observation.query_id, observation.doc_ids, observation.sample)
        for observation in complete
    ]

    def ties_fewer(gap: float) -> bool:
        return sum(len(relevance) - len(group_ties(relevance, gap)) for relevance in relevances) < tied_count

    return _bisect(ties_fewer, 4 * max(noise.sd, 1.0))
