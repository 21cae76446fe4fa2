"""A judge made of judgments and noise: to test with, and to plan before paying.

It sees what a passage is worth as its grade plus three errors, and answers as a model would, with a trace,
ties, and now and then a malformed answer:

    persistent    of a passage for a query, the same in every call: repeating does not help against it
    composition   of a pair of passages, so that who wins depends on who else is in the window
    fresh         of a call, larger in larger windows

plus what presentation does: a bonus for passages shown first, and passages in the middle seen less sharply.
Every error is a function of ids and seed alone, so that two runs, and two strategies, meet the same judge.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, reduce
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
    """How a judge errs. Standard deviations and biases are in grades.

    `sd`: of all errors of one look at one passage together; the shares say what part of its variance each of
    the three has. `growth`: fresh error grows as (window / 20) to this power. `position_bias`: from the first
    passage shown to the last. `middle`: how much of the differences is lost on passages in the middle.
    `tie_gap`: closer than this is a tie. `malformed`: share of answers malformed at 20 passages (of these 40 %
    hold no order, 40 % are cut short, 20 % forget ids), in proportion to the window. `query_spread`: sigma of
    the lognormal factor by which queries differ in `sd`.
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


PRESETS = {
    "none": Noise(),
    "strong": Noise(0.94, 0.92, 0.04, 0.04, 0.3, 0.35, 0.1, 0.05, 0.02, 0.3),
    "weak": Noise(1.6, 0.60, 0.10, 0.30, 0.6, 0.35, 0.1, 0.05, 0.06, 0.3),
}
"""`strong` errs like today's best reasoning models, `weak` like small ones.

The shape of `strong` is the one whose strategies differ from each other as those of five language models did (the
published comparison of BlitzRank, table 3); that of `weak` is an assumption. Their `sd` is what makes sliding
windows of 20 with a stride of 10 over the published BM25 run of TREC DL 2019 reach nDCG@10 .727 and .62
(`benchmarks/calibrate_noise.py`).
"""


class SimulatedModel:
    """Ranks windows by `grades` with `noise`. Unjudged passages have grade 0. `seed` makes another judge."""

    def __init__(
        self, grades: Grades, noise: Noise | str = "none", *, seed: int = 0, context_length: int = 32_768
    ) -> None:
        self._grades = grades
        self.noise = PRESETS[noise] if isinstance(noise, str) else noise
        self._seed = seed
        self.context_length = context_length
        self.capabilities = Capabilities()
        identity_json = json.dumps([grades, asdict(self.noise), seed], sort_keys=True)
        self.identity = f"simulated-{hashlib.sha256(identity_json.encode()).hexdigest()[:16]}"
        self.name = "simulated"

    async def prepare(self) -> None:
        """Nothing to find out."""

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
        """Nothing to free."""

    def ranking_text(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> str:
        """The text of the answer: `tiers` written down, or what a malformed answer makes of them."""
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
        """Whether `ranking_text` is `tiers` written down."""
        return self._malformed_fraction(query_id, doc_ids, sample) is None

    def tiers(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> list[list[int]]:
        """The order of the window as 0-based positions, best first, ties together."""
        return group_ties(self.perceived_relevance(query_id, doc_ids, sample), self.noise.tie_gap)

    def perceived_relevance(self, query_id: str, doc_ids: Sequence[str], sample: int = 0) -> list[float]:
        """What each passage seems to be worth in that look, in grades."""
        noise, size = self.noise, len(doc_ids)
        grades = self._grades.get(query_id, {})
        relevance = [float(grades.get(doc_id, 0)) for doc_id in doc_ids]
        if noise.middle and size > 2:
            mean = fmean(relevance)
            for i, value in enumerate(relevance):
                centrality = 4 * (i / (size - 1)) * (1 - i / (size - 1))
                relevance[i] = mean + (value - mean) * (1 - noise.middle * centrality)
        if noise.sd:
            errors = _query_errors(self._seed, query_id)
            sd = noise.sd * math.exp(noise.query_spread * errors.difficulty)
            components: list[tuple[float, Iterable[float]]] = [
                (sd * math.sqrt(noise.persistent), map(errors.persistent.__getitem__, doc_ids))
            ]
            if noise.composition:
                components.append((sd * math.sqrt(noise.composition), errors.composition(doc_ids)))
            growth = math.sqrt(noise.fresh) * (size / 20) ** noise.growth
            if growth:
                components.append((sd * growth, errors.fresh(doc_ids, sample)))
            for scale, draws in components:
                relevance = [value + scale * error for value, error in zip(relevance, draws, strict=True)]
        if noise.position_bias and size > 1:
            relevance = [value - noise.position_bias * i / (size - 1) for i, value in enumerate(relevance)]
        return relevance

    def _malformed_fraction(self, query_id: str, doc_ids: Sequence[str], sample: int) -> float | None:
        """None for an answer that is well formed, else a number from 0 to 1 that says in what way it is not."""
        chance = self.noise.malformed * len(doc_ids) / 20
        if not chance:
            return None
        draw = _uniform(_join_names(str(self._seed), "malformed", query_id, str(sample), *doc_ids))
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
    """All that one query's passages can meet before the judges of one seed: draws of mean 0 and variance 1.

    `level`: of the query. `persistent`: by passage. Those that other calls will meet again are kept.
    """

    def __init__(self, seed: int, query_id: str) -> None:
        self.difficulty = _normal(_join_names(str(seed), "query", query_id))
        self.persistent = _PersistentErrors(_join_names(str(seed), "doc", query_id, ""))
        self._pair_prefix = _join_names(str(seed), "pair", query_id, "")
        self._call_prefix = _join_names(str(seed), "call", query_id, "")
        self._composition_errors: dict[str, _CompositionErrors] = {}

    def composition(self, doc_ids: Sequence[str]) -> list[float]:
        """The error that the others in the window cause to each: antisymmetric in pairs."""
        errors_by_doc = self._composition_errors
        for doc_id in doc_ids:
            if doc_id not in errors_by_doc:
                errors_by_doc[doc_id] = _CompositionErrors(doc_id, errors_by_doc, self._pair_prefix)
        scale = math.sqrt(max(len(doc_ids) - 1, 1))
        # added one by one: sum() rounds differently in newer Pythons
        return [reduce(add, map(errors_by_doc[doc_id].__getitem__, doc_ids), 0.0) / scale for doc_id in doc_ids]

    def fresh(self, doc_ids: Sequence[str], sample: int) -> list[float]:
        """Of one call, which no other has."""
        call_key = _join_names("", str(sample), *doc_ids)
        return [_normal(self._call_prefix + _join_names(doc_id) + call_key) for doc_id in doc_ids]


class _PersistentErrors(dict[str, float]):
    """By passage; drawn when first asked for."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix

    def __missing__(self, doc_id: str) -> float:
        error = self[doc_id] = _normal(self._prefix + _join_names(doc_id))
        return error


class _CompositionErrors(dict[str, float]):
    """What the company of each other passage adds to one passage; what it gains, the other loses."""

    def __init__(self, doc_id: str, errors_by_doc: dict[str, _CompositionErrors], prefix: bytes) -> None:
        self._doc_id, self._errors_by_doc = doc_id, errors_by_doc
        self._encoded_id = _join_names(doc_id)
        self._lower_id_prefix = prefix + self._encoded_id + _SEPARATOR
        self[doc_id] = 0.0

    def __missing__(self, other_id: str) -> float:
        other = self._errors_by_doc[other_id]
        has_lower_id = self._doc_id < other_id
        error = _normal(
            self._lower_id_prefix + other._encoded_id if has_lower_id else other._lower_id_prefix + self._encoded_id
        )
        self[other_id] = -error if has_lower_id else error
        other[self._doc_id] = -self[other_id]
        return self[other_id]


@lru_cache(maxsize=8)
def _query_errors(seed: int, query_id: str) -> _QueryErrors:
    """Kept for the last few queries: a strategy, and others after it, come back to the same passages."""
    return _QueryErrors(seed, query_id)


_SEPARATOR = b"\x1f"


def _join_names(*names: str) -> bytes:
    return "\x1f".join(names).encode("utf-8", "surrogateescape")


def _uniform(key: bytes) -> float:
    """A number in (0, 1) that depends on `key` alone."""
    return (int.from_bytes(blake2b(key, digest_size=8).digest(), "big") + 0.5) * 2.0**-64


_inverse_normal_cdf = NormalDist().inv_cdf


def _normal(key: bytes) -> float:
    draw = _uniform(key)
    return _inverse_normal_cdf(draw if 1e-12 < draw < 1 - 1e-12 else min(max(draw, 1e-12), 1 - 1e-12))


def with_sd(noise: Noise, sd: float) -> Noise:
    """`noise` at another level."""
    return replace(noise, sd=sd)
