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

What the answers do not tell stays as in the preset "strong" and is named. Standard errors treat queries as the units
(a sandwich estimate over queries), those of the shares take `sd` and the biases as known.
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

_ALWAYS = 2
"""Looks at a window that are taken in any case. Later ones are a selection: they are taken where these disagree."""

_FEWEST = 200
"""Comparisons of two looks below which nothing is read from how often they agree."""


@dataclass(frozen=True, slots=True)
class NoiseFit:
    """`errors`: standard errors of what was estimated. `assumed`: why the other fields are what they are."""

    noise: Noise
    errors: Mapping[str, float]
    assumed: Mapping[str, str]
    queries: int
    looks: int
    comparisons: int


def fit_noise(looks: Sequence[Observation], grades: Grades) -> NoiseFit:
    """The noise of the judge that most likely gave these answers, if passages are worth their `grades`.

    Unjudged passages have grade 0; queries without judgments are left out. Raises `InputError` where nothing can be
    told: no judged query, no two passages of different grades. Needs numpy.
    """
    judged = [look for look in looks if look.query_id in grades and len(look.shown) > 1]
    if not judged:
        raise InputError(
            "none of the windows compares passages of a judged query", "give the qrels of the collection asked"
        )
    by_query: dict[str, list[Observation]] = {}
    for look in judged:
        if look.sample < _ALWAYS:
            by_query.setdefault(look.query_id, []).append(look)
    queries = [Comparisons(grades[query_id], of_query) for query_id, of_query in by_query.items()]
    assumed: dict[str, str] = {}
    errors: dict[str, float] = {}
    noise = replace(DEFAULT, malformed=_malformed(judged), tie_gap=0.0)
    assumed["growth"] = "as in strong: the windows do not tell error by size apart"
    assumed["query_spread"] = "as in strong: the difference between queries is not told apart from chance"
    noise, found = _level(queries, noise)
    errors |= found
    noise, found, told = _shares(queries, noise)
    errors |= found
    assumed |= told
    noise = _rounded(replace(noise, tie_gap=_tie_gap(judged, grades, noise)))
    comparisons = sum(len(query.first) for query in queries)
    return NoiseFit(noise, errors, assumed, len(queries), len(judged), comparisons)


def _rounded(noise: Noise) -> Noise:
    """To what can be told; the shares still sum to 1."""
    found = Noise(**{name: round(value, 4) for name, value in asdict(noise).items()})
    return replace(found, persistent=round(1 - found.composition - found.fresh, 4))


# --- the size of the error, and what presentation does ---------------------------------------------


def _level(queries: Sequence[Comparisons], noise: Noise) -> tuple[Noise, dict[str, float]]:
    """`sd`, `position_bias` and `middle`, with their standard errors: a probit, by Fisher scoring."""
    np = load("numpy")
    columns = [(q.gap, -q.blurred, q.lead) for q in queries]
    design = np.concatenate([np.stack(column, axis=1) for column in columns])
    first = np.concatenate([q.first for q in queries])
    size = np.concatenate([q.size for q in queries])
    owner = np.repeat(np.arange(len(queries)), [len(q.first) for q in queries])
    if not len(first) or not (design[:, 0] > 0).any():
        raise InputError(
            "no window compares two passages of different grades", "the noise cannot be told from these judgments"
        )
    spread = np.sqrt(2 * _variance(noise, size))  # of a difference, for an sd of 1
    design = design / spread[:, None]
    coefficients = np.array([1.0, 0.0, 0.0])
    for _ in range(50):
        chance, slope = _mixed(design @ coefficients, noise.query_spread)
        weight = slope / np.clip(chance * (1 - chance), 1e-9, None)
        score = design * (weight * (first - chance))[:, None]
        information = design.T @ (design * (weight * slope)[:, None]) + 1e-9 * np.eye(3)
        step = np.linalg.solve(information, score.sum(axis=0))
        coefficients = coefficients + np.clip(step, -1, 1)
        if abs(step).max() < 1e-8:
            break
    if not coefficients[0] > 1e-3:
        raise InputError(
            "the answers have nothing to do with the judgments", "check that the qrels belong to the collection asked"
        )
    by_query = np.stack([np.bincount(owner, score[:, i], len(queries)) for i in range(3)], axis=1)
    inverse = np.linalg.inv(information)
    covariance = inverse @ by_query.T @ by_query @ inverse
    grade, middle, bias = (float(value) for value in coefficients)
    # sd = 1 / grade, middle = middle / grade, bias = bias / grade: the delta method
    gradients = {
        "sd": np.array([-1 / grade**2, 0, 0]),
        "middle": np.array([-middle / grade**2, 1 / grade, 0]),
        "position_bias": np.array([-bias / grade**2, 0, 1 / grade]),
    }
    errors = {name: sqrt(float(gradient @ covariance @ gradient)) for name, gradient in gradients.items()}
    found = replace(
        noise, sd=1 / grade, position_bias=max(bias / grade, 0.0), middle=min(max(middle / grade, 0.0), 1.0)
    )
    return found, errors


def _variance(noise: Noise, size: Floats) -> Floats:
    """Of half the difference of two passages in a window of `size`, for an sd of 1."""
    growth = (size / 20) ** (2 * noise.growth)
    return noise.persistent + noise.composition * size / (size - 1) + noise.fresh * growth


_NODES = ((-2.857, 0.01126), (-1.356, 0.22208), (0.0, 0.53333), (1.356, 0.22208), (2.857, 0.01126))
"""Of Gauss-Hermite quadrature with five points, for a standard normal: place and weight."""


def _mixed(value: Floats, spread: float) -> tuple[Floats, Floats]:
    """P(z < value / s) and its derivative by `value`, with s lognormal: queries differ in how hard they are."""
    np = load("numpy")
    chance, slope = np.zeros(len(value)), np.zeros(len(value))
    for node, weight in _NODES:
        scale = exp(-spread * node)
        chance += weight * _below(value * scale)
        slope += weight * scale * np.exp(-((value * scale) ** 2) / 2) / sqrt(2 * pi)
    return chance, slope


def _below(value: Floats) -> Floats:
    """P(z < value) to seven digits (Abramowitz and Stegun 1964, 7.1.26): numpy has no such function."""
    np = load("numpy")
    x = np.abs(value) / sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = series * np.exp(-x * x) / 2
    return np.where(value > 0, 1 - tail, tail)  # type: ignore[no-any-return]


# --- what part of it is of which kind --------------------------------------------------------------


class _Agreement(NamedTuple):
    """Looks in pairs at pairs of passages of equal grade, by row: the query, whether they agree (1/2 where one has
    a tie), how much earlier the one was shown in each look, the sizes of the windows, and how many passages both hold.
    """

    query: Floats
    agree: Floats
    leads: Floats
    sizes: Floats
    shared: Floats


def _agreements(queries: Sequence[Comparisons]) -> tuple[_Agreement | None, _Agreement | None]:
    """In the same window, and in different ones."""
    np = load("numpy")
    rows: dict[bool, list[Any]] = {True: [], False: []}
    for number, query in enumerate(queries):
        for a, b in combinations(query.looks, 2):
            common, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
            one, other = np.triu_indices(len(common), 1)
            equal = query.grade[common[one]] == query.grade[common[other]]
            one, other = one[equal], other[equal]
            if not len(one):
                continue
            signs = [np.sign(s.tiers[i][other] - s.tiers[i][one]) for s, i in ((a, in_a), (b, in_b))]
            leads = [(s.places[i][other] - s.places[i][one]) / (len(s.all) - 1) for s, i in ((a, in_a), (b, in_b))]
            sizes = np.tile([float(len(a.all)), float(len(b.all))], (len(one), 1))
            agree = (signs[0] * signs[1] + 1) / 2
            shared = np.full(len(one), float(len(a.members & b.members)))
            owner = np.full(len(one), number)
            rows[a.members == b.members].append((owner, agree, np.stack(leads, axis=1), sizes, shared))
    return tuple(  # type: ignore[return-value]
        _Agreement(*map(np.concatenate, zip(*part, strict=True)))
        if sum(len(row[0]) for row in part) >= _FEWEST
        else None
        for part in (rows[True], rows[False])
    )


def _expected_agreement(rows: _Agreement, noise: Noise) -> Floats:
    """How often two looks agree by `noise`: both errors are a common part and one of their own."""
    np = load("numpy")
    one, other = rows.sizes.T
    overlap = rows.shared / np.sqrt((one - 1) * (other - 1))
    variances = np.stack([_variance(noise, one), _variance(noise, other)], axis=1)
    common = np.clip((noise.persistent + noise.composition * overlap)[:, None] / variances, 0, 0.9999)
    common = np.sqrt(common[:, :1] * common[:, 1:])  # the correlation of the two
    bias = noise.position_bias * rows.leads / (noise.sd * np.sqrt(2 * variances))
    first, second = bias.T
    # both come out the same way: the integral over the angle (Drezner and Wesolowsky 1990), ten points by Gauss
    angle = np.arcsin(common[:, 0])
    nodes, weights = np.polynomial.legendre.leggauss(10)
    both = np.zeros(len(angle))
    for node, weight in zip(nodes, weights, strict=True):
        turned = angle * (node + 1) / 2
        distance = first**2 - 2 * first * second * np.sin(turned) + second**2
        both += weight * np.exp(-distance / (2 * np.cos(turned) ** 2))
    one_way, other_way = _below(first), _below(second)
    both *= angle / (4 * pi)
    return 2 * (one_way * other_way + both) + 1 - one_way - other_way  # type: ignore[no-any-return]


def _shares(queries: Sequence[Comparisons], noise: Noise) -> tuple[Noise, dict[str, float], dict[str, str]]:
    """The three shares, with standard errors, and what had to be assumed."""
    same, different = _agreements(queries)
    errors: dict[str, float] = {}
    assumed: dict[str, str] = {}
    company = DEFAULT.composition / (DEFAULT.composition + DEFAULT.persistent)

    def split(company: float, fresh: float) -> Noise:
        return replace(noise, fresh=fresh, composition=(1 - fresh) * company, persistent=(1 - fresh) * (1 - company))

    def split_back(fresh: float, company: float) -> Noise:
        return split(company, fresh)

    fresh = DEFAULT.fresh
    for _ in range(4 if same and different else 1):  # each is found with the other one as it is known so far
        if same:
            fresh, errors["fresh"] = _matching(same, partial(split, company))
        if different:
            company, error = _matching(different, partial(split_back, fresh))
            errors["composition"] = (1 - fresh) * error
    if not same:
        assumed["fresh"] = "as in strong: hardly a window was asked twice (--samples 3 would tell)"
    if not different:
        assumed["composition"] = (
            "to persistent as in strong: hardly a pair met again in other company (--preset thorough would tell)"
        )
    if same or different:
        errors["persistent"] = sqrt(sum(error**2 for error in errors.values()))
    return split(company, fresh), errors, assumed


def _matching(rows: _Agreement, split: Callable[[float], Noise]) -> tuple[float, float]:
    """The share at which looks agree as often as they did (the larger it is, the less they do), by halving; and its
    standard error over queries."""
    np = load("numpy")
    observed = float(rows.agree.mean())
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        more = float(_expected_agreement(rows, split(middle)).mean()) > observed
        low, high = (middle, high) if more else (low, middle)
    found = (low + high) / 2
    step = 0.01 if found < 0.5 else -0.01
    here = _expected_agreement(rows, split(found))
    slope = float((_expected_agreement(rows, split(found + step)) - here).mean()) / step
    surplus = np.bincount(rows.query.astype(int), rows.agree - here)
    return found, abs(float(np.sqrt((surplus**2).sum())) / len(here) / slope) if slope else float("nan")


# --- what is counted -------------------------------------------------------------------------------


def _malformed(looks: Sequence[Observation]) -> float:
    """The share of answers that were malformed, at a window of 20."""
    bad = sum(not look.order.is_valid or len(look.order.ranked_ids) < len(look.shown) for look in looks)
    return min(bad / sum(len(look.shown) / 20 for look in looks), 1.0)


def _tie_gap(looks: Sequence[Observation], grades: Grades, noise: Noise) -> float:
    """At which a judge with `noise` ties as many passages of these windows as were tied."""
    judge = SimulatedModel(grades, noise)
    whole = [look for look in looks if look.order.is_valid and len(look.order.ranked_ids) == len(look.shown)]
    whole = [look for look in whole if look.unseen.issuperset(look.shown)] or whole
    tied = sum(len(look.shown) - len(look.order.tiers) for look in whole)
    worths = [sorted(judge.perceived_relevance(look.query_id, look.shown, look.sample), reverse=True) for look in whole]
    low, high = 0.0, 4 * max(noise.sd, 1.0)
    if not tied:
        return 0.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(_tied(worth, middle) for worth in worths) < tied else (low, middle)
    return high


def _tied(worths: Sequence[float], gap: float) -> int:
    """How many of `worths`, best first, join the tier of one before."""
    count, head = 0, float("inf")
    for worth in worths:
        if head - worth <= gap:
            count += 1
        else:
            head = worth
    return count
