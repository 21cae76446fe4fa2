"""A simulated judge, made of judgments and noise: for tests, and for planning before paying for calls.

The perceived relevance of a passage is its grade plus three errors. The judge answers like a model: with a reasoning
trace, with ties, and now and then with a malformed answer.

    persistent    of a passage for a query, the same in every call: repeating does not help against it
    composition   of a pair of passages, so that the winner depends on the other passages of the window
    fresh         of a call, larger in larger windows

Presentation matters too: passages at the start have an advantage, and differences in the middle are perceived less.
Every error is a function of ids and seed alone, so that all runs and all strategies meet the same judge.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial, reduce
from hashlib import blake2b
from operator import add
from statistics import NormalDist, fmean
from typing import Any

from rank_k.models.base import Capabilities
from rank_k.types import OnChunk, Request, Response, StreamChunk, Usage

Grades = Mapping[str, Mapping[str, int]]
"""Qrels: query id -> doc id -> grade."""


@dataclass(frozen=True, slots=True)
class Noise:
    """The errors of a judge. `sd`, `position_bias` and `tie_gap` are in grades, the other fields are fractions.

    A noise is stated for a scale of grades and scaled to other judgments (`scaled_to`): the range from grade 0 to the
    highest grade stands for the same difference in relevance on every scale, and a judge errs by the same fraction of
    it. The three fields in grades are therefore multiplied by the ratio of the highest grades. The presets, which are
    stated for grades 0 to 3, have a third of their size on binary judgments. A highest grade above 3 counts as 3.

    On binary judgments this judge is optimistic where many passages are almost relevant. If TREC DL 2019 is judged by
    two grades (2 and 3 are relevant), a factor of about 0.5 instead of 1/3 keeps nDCG@10 unchanged
    (`python -m benchmarks.calibrate_noise --binary`).

    Attributes:
        sd: Standard deviation of the sum of the three errors of one passage in one answer.
        persistent: Share of the persistent error in its variance.
        composition: Share of the composition error.
        fresh: Share of the fresh error.
        growth: The fresh error grows as (window / 20) to this power.
        position_bias: Advantage of the passage presented first over the last.
        middle: Fraction of the differences that is lost on passages in the middle.
        tie_gap: Passages closer than this are tied.
        malformed: Fraction of malformed answers at 20 passages; it is proportional to the window. Of these, 40% hold no
            order, 40% are truncated, and 20% omit passages.
        query_spread: Sigma of the lognormal factor by which queries differ in `sd`.
        highest_grade: The highest grade, from 1 to 3, of the scale that the noise is stated for (default: 0, which
            means that the noise applies to every scale unchanged).
    """

    sd: float = 0.0
    persistent: float = 1.0
    composition: float = 0.0
    fresh: float = 0.0
    growth: float = 0.0
    position_bias: float = 0.0
    middle: float = 0.0
    tie_gap: float = 0.0
    malformed: float = 0.0
    query_spread: float = 0.0
    highest_grade: int = 0

    def scaled_to(self, highest_grade: int) -> Noise:
        """Return the same noise for judgments with this highest grade, from 1 to 3."""
        if not self.highest_grade:
            return self
        factor = highest_grade / self.highest_grade
        return replace(
            self,
            sd=self.sd * factor,
            position_bias=self.position_bias * factor,
            tie_gap=self.tie_gap * factor,
            highest_grade=highest_grade,
        )


def highest_grade(grades: Grades) -> int:
    """Return the highest grade of the judgments, limited to the range from 1 to 3, as `Noise` counts it."""
    highest = max((grade for query_grades in grades.values() for grade in query_grades.values()), default=1)
    return min(max(highest, 1), 3)


PRESETS = {
    "none": Noise(),
    "strong": Noise(0.94, 0.92, 0.04, 0.04, 0.3, 0.35, 0.1, 0.05, 0.02, 0.3, highest_grade=3),
    "weak": Noise(1.6, 0.60, 0.10, 0.30, 0.6, 0.35, 0.1, 0.05, 0.06, 0.3, highest_grade=3),
}
"""`strong` errs like today's best reasoning models, `weak` like small ones. Both are stated for grades from 0 to 3.

With the shape of `strong`, strategies differ from each other as they did with five language models (the published
comparison of BlitzRank, table 3); the shape of `weak` is an assumption. Their `sd` is that at which sliding windows of
20 with a stride of 10 over the published BM25 run of TREC DL 2019 reach nDCG@10 0.727 and 0.62
(`benchmarks/calibrate_noise.py`).
"""


class SimulatedModel:
    """A model that ranks windows by grades with noise.

    Args:
        grades: The judgments. Unjudged passages have grade 0.
        noise: How the judge errs, or the name of a preset. It is scaled to the highest grade of `grades`.
        seed: The seed of all errors. Another seed simulates another judge.
        context_length: The context length in tokens.
    """

    name = "simulated"

    def __init__(
        self, grades: Grades, noise: Noise | str = "none", *, seed: int = 0, context_length: int = 32_768
    ) -> None:
        self._grades = grades
        unscaled_noise = PRESETS[noise] if isinstance(noise, str) else noise
        self.noise = unscaled_noise.scaled_to(highest_grade(grades))
        self._seed = seed
        self.context_length = context_length
        self.capabilities = Capabilities()
        noise_fields = {name: value for name, value in asdict(self.noise).items() if name != "highest_grade"}
        identity_json = json.dumps([grades, noise_fields, seed], sort_keys=True)
        self.identity = f"simulated-{hashlib.sha256(identity_json.encode()).hexdigest()[:16]}"

    async def prepare(self) -> None:
        """Do nothing."""

    def request_body(self, request: Request) -> Mapping[str, Any]:
        return {"query": request.context.query_id, "window": request.context.doc_ids, "reasoning": request.reasoning}

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        query_id, doc_ids = request.context.query_id, request.context.doc_ids
        ranking = self.ranking_text(query_id, doc_ids, request.sample)
        reasoning = (
            ""
            if request.reasoning is False
            else " ".join(f"Passage [{i + 1}] is weighed." for i in range(len(doc_ids)))
        )
        stopped = on_chunk is not None and on_chunk(StreamChunk(reasoning, ranking))
        prompt_tokens = sum(len(message.content) for message in request.messages) // 4
        usage = Usage(prompt_tokens, (len(reasoning) + len(ranking)) // 4, len(reasoning) // 4, 0, True)
        return Response(ranking, reasoning or None, "stopped" if stopped else "stop", usage)

    async def count_tokens(self, text: str) -> int | None:
        return None

    async def close(self) -> None:
        """Do nothing."""

    def ranking_text(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> str:
        """Return the text of the answer: `tiers`, or a malformed version of it."""
        ranking = " > ".join(" = ".join(f"[{i + 1}]" for i in tier) for tier in self.tiers(query_id, doc_ids, sample))
        malformed_fraction = self._malformed_fraction(query_id, doc_ids, sample)
        if malformed_fraction is None:
            return ranking
        if malformed_fraction < 0.4:
            return "The passages are hard to compare."
        if malformed_fraction < 0.8:
            return ranking[: len(ranking) // 2].rpartition(" ")[0]
        listed_tiers = [tier for position, tier in enumerate(ranking.split(" > ")) if position % 5 != 4]
        return " > ".join(listed_tiers)

    def is_well_formed(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> bool:
        """Return whether `ranking_text` is exactly `tiers`."""
        return self._malformed_fraction(query_id, doc_ids, sample) is None

    def tiers(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> list[list[int]]:
        """Return the positions of the window (from 0) by perceived relevance, in tiers of tied passages."""
        return group_ties(self.perceived_relevance(query_id, doc_ids, sample), self.noise.tie_gap)

    def perceived_relevance(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> list[float]:
        """Return the perceived relevance of each passage in one answer, in grades."""
        noise, size = self.noise, len(doc_ids)
        grades = self._grades.get(query_id, {})
        relevance = [float(grades.get(doc_id, 0)) for doc_id in doc_ids]
        position = [i / max(size - 1, 1) for i in range(size)]
        if noise.middle and size > 2:
            mean = fmean(relevance)
            for i, value in enumerate(relevance):
                centrality = 4 * position[i] * (1 - position[i])
                relevance[i] = mean + (value - mean) * (1 - noise.middle * centrality)
        if noise.sd:
            errors = _query_errors(self._seed, query_id)
            sd = noise.sd * math.exp(noise.query_spread * errors.difficulty)
            for scale, draw in (
                (math.sqrt(noise.persistent), errors.persistent),
                (math.sqrt(noise.composition), errors.composition),
                (math.sqrt(noise.fresh) * (size / 20) ** noise.growth, partial(errors.fresh, sample)),
            ):
                if scale:
                    draws = zip(relevance, draw(doc_ids), strict=True)
                    relevance = [value + sd * scale * error for value, error in draws]
        return [value - noise.position_bias * place for value, place in zip(relevance, position, strict=True)]

    def _malformed_fraction(self, query_id: str, doc_ids: Sequence[str], sample: int) -> float | None:
        """Return None for a well-formed answer, else a number from 0 to 1 that decides how it is malformed."""
        chance = self.noise.malformed * len(doc_ids) / 20
        if not chance:
            return None
        draw = _uniform(_join(self._seed, "malformed", query_id, sample, *doc_ids))
        return None if draw >= chance else draw / chance


def group_ties(relevance: Sequence[float], tie_gap: float) -> list[list[int]]:
    """Return the positions by relevance, highest first. Those closer than `tie_gap` to the first of a tier join it."""
    tiers: list[list[int]] = []
    for i in sorted(range(len(relevance)), key=relevance.__getitem__, reverse=True):  # stable: earlier positions first
        if tiers and relevance[tiers[-1][0]] - relevance[i] <= tie_gap:
            tiers[-1].append(i)
        else:
            tiers.append([i])
    return tiers


class _QueryErrors:
    """The errors of one query before the judges of one seed: draws of mean 0 and variance 1.

    `difficulty` is that of the query. Persistent errors and those of pairs are kept, since other calls need them again.
    """

    def __init__(self, seed: int, query_id: str) -> None:
        self.difficulty = _normal(_join(seed, "query", query_id))
        self._doc_key, self._pair_key, self._call_key = (
            _join(seed, kind, query_id, "") for kind in ("doc", "pair", "call")
        )
        self._persistent: dict[str, float] = {}
        self._pairs: dict[str, dict[str, float]] = {}

    def persistent(self, doc_ids: Sequence[str]) -> list[float]:
        """Return the error of each passage that is the same in every call."""
        for doc_id in doc_ids:
            if doc_id not in self._persistent:
                self._persistent[doc_id] = _normal(self._doc_key + doc_id)
        return [self._persistent[doc_id] for doc_id in doc_ids]

    def composition(self, doc_ids: Sequence[str]) -> list[float]:
        """Return the error that the others in the window cause to each. What one of a pair gains, the other loses."""
        scale = math.sqrt(max(len(doc_ids) - 1, 1))
        errors = []
        for doc_id in doc_ids:
            pairs = self._pairs.setdefault(doc_id, {doc_id: 0.0})
            for other_id in doc_ids:
                if other_id not in pairs:
                    low, high = (doc_id, other_id) if doc_id < other_id else (other_id, doc_id)
                    error = _normal(self._pair_key + low + _SEPARATOR + high)
                    self._pairs.setdefault(low, {low: 0.0})[high] = -error
                    self._pairs.setdefault(high, {high: 0.0})[low] = error
            # Added one by one, because sum() rounds differently in newer versions of Python.
            errors.append(reduce(add, map(pairs.__getitem__, doc_ids), 0.0) / scale)
        return errors

    def fresh(self, sample: int, doc_ids: Sequence[str]) -> list[float]:
        """Return the error of each passage that only this call has."""
        call = _join("", sample, *doc_ids)
        return [_normal(self._call_key + doc_id + call) for doc_id in doc_ids]


@lru_cache(maxsize=8)
def _query_errors(seed: int, query_id: str) -> _QueryErrors:
    """Return the errors of a query. Those of the last few queries are kept for the next window or strategy."""
    return _QueryErrors(seed, query_id)


_SEPARATOR = "\x1f"


def _join(*names: str | int) -> str:
    return _SEPARATOR.join(map(str, names))


def _uniform(key: str) -> float:
    """Return a number in (0, 1) that depends on `key` alone."""
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) * 2.0**-64


_inverse_normal_cdf = NormalDist().inv_cdf


def _normal(key: str) -> float:
    """Return a draw from the standard normal distribution that depends on `key` alone."""
    draw = _uniform(key)
    return _inverse_normal_cdf(draw if 1e-12 < draw < 1 - 1e-12 else min(max(draw, 1e-12), 1 - 1e-12))
