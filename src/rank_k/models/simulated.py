"""A simulated model, which ranks by relevance judgments with noise. It is for tests, and for planning without costs.

The model ranks passages by their perceived relevance: the relevance grade plus three errors. Its responses look like
those of a language model: they contain a reasoning trace and ties, and a few are malformed.

    persistent    the error of a passage for a query, the same in every call: repeated calls do not reduce it
    composition   the error of a pair of passages: the perceived relevance of a passage depends on the other passages in
                  the window
    fresh         an error that is drawn again for each call and is not shared with other calls; it is larger in larger
                  windows

The position in the prompt also matters: passages at the start have an advantage, and differences between passages in
the middle are perceived as smaller. All errors depend only on ids and the seed. Different runs and strategies are
therefore compared with the same simulated model.
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
    """The errors of a simulated model. The unit of `sd`, `position_bias` and `tie_gap` is the grade.

    Noise is stated for one scale of grades, and `scaled_to` converts it to a different scale. It assumes that the range
    from grade 0 to the highest grade means the same difference in relevance on every scale, and that errors are a
    constant fraction of this range. The three fields in grades are therefore multiplied by the ratio of the highest
    grades. For example, the presets are stated for grades 0 to 3, so on binary judgments these fields have a third of
    their size. A highest grade above 3 counts as 3.

    On binary judgments, the simulated model is too good if many passages are almost relevant. If the grades of TREC DL
    2019 are reduced to two (2 and 3 are relevant), a factor of about 0.5 instead of 1/3 would keep nDCG@10 unchanged
    (`python -m benchmarks.calibrate_noise --binary`).

    Attributes:
        sd: The standard deviation of the sum of the three errors of a passage, in a window of 20 passages.
        persistent: The share of the persistent error in the variance of this sum.
        composition: The share of the composition error in this variance.
        fresh: The share of the fresh error in this variance.
        growth: The exponent of the growth of the fresh error: it is proportional to (window size / 20) ** `growth`.
        position_bias: The advantage of the passage presented first over the passage presented last.
        middle: The fraction by which differences in relevance are reduced for passages in the middle of the prompt.
        tie_gap: The maximum difference in perceived relevance between a passage and the best passage tied with it.
        malformed: The fraction of malformed answers in windows of 20 passages. It is proportional to the window size.
            Of the malformed answers, 40% contain no ranking, 40% are truncated, and 20% omit passages.
        query_spread: The sigma of a lognormal factor by which `sd` varies between queries.
        highest_grade: The highest grade, from 1 to 3, of the scale for which the noise is stated (default: 0, which
            means that the noise applies unchanged to every scale).
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
        """Return this noise, converted to a scale with this highest grade (from 1 to 3)."""
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
    """Return the highest grade of the judgments, limited to the range from 1 to 3, as `Noise` requires."""
    highest = max((grade for query_grades in grades.values() for grade in query_grades.values()), default=1)
    return min(max(highest, 1), 3)


PRESETS = {
    "none": Noise(),
    "strong": Noise(0.94, 0.92, 0.04, 0.04, 0.3, 0.35, 0.1, 0.05, 0.02, 0.3, highest_grade=3),
    "weak": Noise(1.6, 0.60, 0.10, 0.30, 0.6, 0.35, 0.1, 0.05, 0.06, 0.3, highest_grade=3),
}
"""`none` makes no errors, `strong` errs like today's best reasoning models, and `weak` like small models.

`strong` and `weak` are stated for grades from 0 to 3. The ratios of the errors in `strong` are chosen such that the
differences between strategies are those observed with five language models (the published comparison of BlitzRank,
table 3). The ratios in `weak` are an assumption. The `sd` of both is calibrated: with it, sliding windows of 20
passages with a stride of 10 over the published BM25 run of TREC DL 2019 reach nDCG@10 0.727 (`strong`) and 0.62
(`weak`); see `benchmarks/calibrate_noise.py`.
"""


class SimulatedModel:
    """A simulated model: it ranks passages by their grades, with noise.

    Args:
        grades: The judgments. Unjudged passages have grade 0.
        noise: The errors of the model, or the name of a preset. They are converted to the scale of `grades`.
        seed: The seed of all errors. Each seed gives a different simulated model.
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
        """Return the text of the answer: the ranking in `tiers`, or a malformed version of it."""
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
        """Return whether `ranking_text` returns the ranking in `tiers` unchanged."""
        return self._malformed_fraction(query_id, doc_ids, sample) is None

    def tiers(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> list[list[int]]:
        """Return the ranking: tiers of tied passages, best first. Passages are positions in the window, from 0."""
        return group_ties(self.perceived_relevance(query_id, doc_ids, sample), self.noise.tie_gap)

    def perceived_relevance(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> list[float]:
        """Return the perceived relevance of each passage in one call. The unit is the grade."""
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
        """Return None for a well-formed answer, else a number from 0 to 1 that determines how it is malformed."""
        chance = self.noise.malformed * len(doc_ids) / 20
        if not chance:
            return None
        draw = _uniform(_join(self._seed, "malformed", query_id, sample, *doc_ids))
        return None if draw >= chance else draw / chance


def group_ties(relevance: Sequence[float], tie_gap: float) -> list[list[int]]:
    """Return the positions by relevance, highest first, in tiers. A tier spans a relevance of at most `tie_gap`."""
    tiers: list[list[int]] = []
    for i in sorted(range(len(relevance)), key=relevance.__getitem__, reverse=True):  # stable: earlier positions first
        if tiers and relevance[tiers[-1][0]] - relevance[i] <= tie_gap:
            tiers[-1].append(i)
        else:
            tiers.append([i])
    return tiers


class _QueryErrors:
    """The errors of a simulated model for one query: normal draws with mean 0 and variance 1, before scaling.

    `difficulty` is the draw that scales `sd` for this query. The errors of passages and of pairs are cached, because
    other calls need them, too.
    """

    def __init__(self, seed: int, query_id: str) -> None:
        self.difficulty = _normal(_join(seed, "query", query_id))
        self._doc_key, self._pair_key, self._call_key = (
            _join(seed, kind, query_id, "") for kind in ("doc", "pair", "call")
        )
        self._persistent: dict[str, float] = {}
        self._pairs: dict[str, dict[str, float]] = {}

    def persistent(self, doc_ids: Sequence[str]) -> list[float]:
        """Return the persistent error of each passage, which is the same in every call."""
        for doc_id in doc_ids:
            if doc_id not in self._persistent:
                self._persistent[doc_id] = _normal(self._doc_key + doc_id)
        return [self._persistent[doc_id] for doc_id in doc_ids]

    def composition(self, doc_ids: Sequence[str]) -> list[float]:
        """Return the composition error of each passage: the sum of its errors in pairs with the others, scaled.

        In each pair, one passage gains what the other loses.
        """
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
            # Add one by one, because sum() rounds differently in newer versions of Python.
            errors.append(reduce(add, map(pairs.__getitem__, doc_ids), 0.0) / scale)
        return errors

    def fresh(self, sample: int, doc_ids: Sequence[str]) -> list[float]:
        """Return the fresh error of each passage, which depends on the window and the sample."""
        call = _join("", sample, *doc_ids)
        return [_normal(self._call_key + doc_id + call) for doc_id in doc_ids]


@lru_cache(maxsize=8)
def _query_errors(seed: int, query_id: str) -> _QueryErrors:
    """Return the errors of a query. Those of the last few queries are cached for their next windows."""
    return _QueryErrors(seed, query_id)


_SEPARATOR = "\x1f"


def _join(*names: str | int) -> str:
    return _SEPARATOR.join(map(str, names))


def _uniform(key: str) -> float:
    """Return a number in (0, 1) that depends only on `key`."""
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) * 2.0**-64


_inverse_normal_cdf = NormalDist().inv_cdf


def _normal(key: str) -> float:
    """Return a draw from the standard normal distribution that depends only on `key`."""
    draw = _uniform(key)
    return _inverse_normal_cdf(draw if 1e-12 < draw < 1 - 1e-12 else min(max(draw, 1e-12), 1 - 1e-12))
