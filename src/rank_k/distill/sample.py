"""First-stage runs -> candidate sets, as the Rank-K paper draws them: 10 to 20 passages from ranks 1 to 20 and from
ranks 10 to 30 of the fused runs, two sets a query, shuffled. Or, for training from labels, with a say in how many
relevant passages a set holds.

Everything drawn depends on the seed, the query and its candidates alone: another query more changes no set. Queries
come in an order drawn by the seed, so that asking for more of them continues the same file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol

from rank_k.distill.candidate_sets import CandidateSet, CandidateSetAppender, make_set_id
from rank_k.distill.near_duplicates import NearDuplicateIndex
from rank_k.errors import InputError
from rank_k.types import PassageSource, Query

Grades = Mapping[str, Mapping[str, int]]
"""Qrels: `query_id -> {doc_id: grade}`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How sets are drawn; the defaults are the paper's. Ranges are inclusive, ranks count from 1.

    The n-th set of a query is of a size drawn from `sizes` and from the n-th of `ranks` (which begin again where
    there are more sets than ranges). A query whose range has fewer passages gives all of them, if they are at least
    the smallest size.

    With `positives` (needs judgments): so many passages judged relevant are in the set, wherever they were ranked
    or if they were not, as far as there are enough. The first of them has the highest grade that the query has, for
    the others a grade is drawn, then a passage of it. In a share `none` of the sets there is none of the highest
    grade, and from 0 on of lower ones. The rest are passages of the range not judged relevant. Of the unjudged ones
    the first `skip_negatives` of the whole ranking are left out: so high up, they may be relevant.
    """

    sizes: tuple[int, int] = (10, 20)
    ranks: tuple[tuple[int, int], ...] = ((1, 20), (10, 30))
    sets_per_query: int = 2
    positives: tuple[int, int] | None = None
    none: float = 0.0
    skip_negatives: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sizes[0] < 2:
            raise InputError(f"a set of {self.sizes[0]} passages", "give sizes from 2: one passage cannot be compared")
        ranges = (("sizes", self.sizes), *(("ranks", pair) for pair in self.ranks), ("positives", self.positives))
        for name, pair in ranges:
            if pair is not None and pair[0] > pair[1]:
                raise InputError(f"{name} {pair[0]}-{pair[1]} begin after their end", "write the smaller number first")
        if not self.ranks or min(low for low, _ in self.ranks) < 1:
            raise InputError("ranks count from 1", "write ranges such as 1-20")
        if not 0 <= self.none <= 1:
            raise InputError(f"none is {self.none}", "give a share of the sets, from 0 to 1")
        if self.skip_negatives < 0:
            raise InputError(f"skip_negatives is {self.skip_negatives}", "give 0 or more")
        if self.positives is None and (self.none or self.skip_negatives):
            raise InputError("positives are not asked for, but how to leave some out", "say how many, such as 1-3")


class SampledSet(NamedTuple):
    """A set before its texts are read."""

    set_id: str
    query: Query
    doc_ids: tuple[str, ...]
    grades: Mapping[str, int] | None


class Rankings(Protocol):
    def ranking(self, query_id: str) -> Sequence[str]:
        """Candidates of a query, best first; empty where there are none."""


def draw_set(
    query_id: str, ranking: Sequence[str], grades: Mapping[str, int] | None, number: int, sampling: Sampling
) -> tuple[str, ...] | str:
    """The documents of the `number`-th set (from 0) of a query in the order shown, or why there is none."""
    random = Random(f"{sampling.seed}|{number}|{query_id}")
    low, high = sampling.ranks[number % len(sampling.ranks)]
    size = random.randint(*sampling.sizes)
    ranked_pool = ranking[low - 1 : high]
    if sampling.positives is None:
        chosen = random.sample(ranked_pool, min(size, len(ranked_pool)))
    else:
        judged = grades or {}
        relevant = {doc_id for doc_id, grade in judged.items() if grade > 0}
        if not relevant:
            return "no_positives"
        chosen = _sample_relevant(random, judged, sampling.positives, random.random() < sampling.none)[:size]
        unjudged = [doc_id for doc_id in ranking if doc_id not in judged]
        excluded_ids = relevant.union(unjudged[: sampling.skip_negatives])
        negatives = [doc_id for doc_id in ranked_pool if doc_id not in excluded_ids]
        chosen += random.sample(negatives, min(size - len(chosen), len(negatives)))
    if len(chosen) < sampling.sizes[0]:
        return "too_few"
    random.shuffle(chosen)
    return tuple(chosen)


def _sample_relevant(
    random: Random, grades: Mapping[str, int], count: tuple[int, int], without_best: bool
) -> list[str]:
    """Relevant passages for one set."""
    ids_by_grade: dict[int, list[str]] = {}
    for doc_id, grade in sorted(grades.items()):  # not in the order in which somebody wrote judgments down
        if grade > 0:
            ids_by_grade.setdefault(grade, []).append(doc_id)
    best_ids = ids_by_grade[max(ids_by_grade)]
    if without_best:
        del ids_by_grade[max(ids_by_grade)]
    count_drawn = random.randint(0 if without_best else count[0], count[1])
    chosen: list[str] = []
    while len(chosen) < count_drawn and ids_by_grade:
        remaining = best_ids if not chosen and not without_best else ids_by_grade[random.choice(sorted(ids_by_grade))]
        chosen.append(remaining.pop(random.randrange(len(remaining))))
        ids_by_grade = {grade: doc_ids for grade, doc_ids in ids_by_grade.items() if doc_ids}
    return chosen


@dataclass(slots=True)
class Sampler:
    """Draws the sets of `queries`. `excluded_queries`: queries that must not be trained on.

    `counts`: "queries", "sets" and "passages"; "with_2_relevant" and the like, sets; and what was left out: queries
    "contaminated" and "not_ranked", sets "too_few", "no_positives" and "repeated".
    """

    rankings: Rankings
    queries: Mapping[str, Query]
    sampling: Sampling
    source: str
    grades: Grades | None = None
    excluded_queries: NearDuplicateIndex | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def sample_sets(self, queries_count: int | None = None) -> Iterator[SampledSet]:
        """The sets of the first `queries_count` queries that have any (None: of all)."""
        for query_id in sorted(self.queries, key=lambda query_id: _query_order_key(self.sampling.seed, query_id)):
            if queries_count is not None and self.counts["queries"] >= queries_count:
                return
            sampled_sets = self._sample_query(self.queries[query_id])
            self.counts["queries"] += bool(sampled_sets)
            yield from sampled_sets

    def _sample_query(self, query: Query) -> list[SampledSet]:
        ranking = self.rankings.ranking(query.query_id)
        if not ranking:
            self.counts["not_ranked"] += 1
            return []
        if self.excluded_queries is not None and self.excluded_queries.find(query.text) is not None:
            self.counts["contaminated"] += 1
            return []
        judged = None if self.grades is None else self.grades.get(query.query_id)
        sampled_sets: list[SampledSet] = []
        for number in range(self.sampling.sets_per_query):
            doc_ids = draw_set(query.query_id, ranking, judged, number, self.sampling)
            if isinstance(doc_ids, str):
                self.counts[doc_ids] += 1
            elif any(set(doc_ids) == set(other.doc_ids) for other in sampled_sets):
                self.counts["repeated"] += 1
            else:
                grades = None if judged is None else {doc_id: judged[doc_id] for doc_id in doc_ids if doc_id in judged}
                set_id = make_set_id(self.source, query.query_id, number, query.text, doc_ids)
                sampled_sets.append(SampledSet(set_id, query, doc_ids, grades))
                self._count_set(doc_ids, grades)
        return sampled_sets

    def _count_set(self, doc_ids: Sequence[str], grades: Mapping[str, int] | None) -> None:
        relevant = sum(grade > 0 for grade in (grades or {}).values())
        self.counts.update(sets=1, passages=len(doc_ids))
        self.counts[f"with_{relevant}_relevant"] += grades is not None


def write_samples(
    sampler: Sampler,
    store: PassageSource,
    output: str | Path,
    queries_count: int | None = None,
    license: str | None = None,
) -> int:
    """Write the sets to `output`, going on where an earlier run was stopped; returns how many were there already.

    Raises `InputError` if `output` holds anything but a beginning of the same sets.
    """
    existing_count = 0
    with CandidateSetAppender(output) as file:
        for sampled, existing in zip_longest(sampler.sample_sets(queries_count), file.existing_rows()):
            candidate_set = None if sampled is None else _load_texts(sampled, store, sampler.source, license)
            if existing is not None:
                number, existing_row = existing
                if candidate_set is None or existing_row != _json_form(candidate_set):
                    raise InputError(
                        f"{output}:{number}: the set {existing_row.get('set_id')} is not what belongs there"
                        f" ({_describe_difference(existing_row, candidate_set)})",
                        "it was made with other options or data: name another --output, or remove it",
                    )
                existing_count += 1
            elif candidate_set is not None:
                file.write(candidate_set)
    return existing_count


def _load_texts(sampled: SampledSet, store: PassageSource, source: str, license: str | None) -> CandidateSet:
    query_id = sampled.query.query_id
    passages = tuple(store.get(doc_id, query_id).text for doc_id in sampled.doc_ids)
    return CandidateSet(
        sampled.set_id, query_id, sampled.query.text, sampled.doc_ids, passages, sampled.grades, source, license
    )


def _describe_difference(existing_row: Mapping[str, Any], candidate_set: CandidateSet | None) -> str:
    """In what a set that is there is another one than would be written."""
    if candidate_set is None:
        return "nothing more does"
    if existing_row.get("set_id") != candidate_set.set_id:
        return f"{candidate_set.set_id} does"
    return "another " + ", ".join(
        name for name, value in _json_form(candidate_set).items() if existing_row.get(name) != value
    )


def _json_form(candidate_set: CandidateSet) -> dict[str, Any]:
    """The set as its line of JSON says it."""
    return asdict(candidate_set) | {"doc_ids": [*candidate_set.doc_ids], "passages": [*candidate_set.passages]}


def _query_order_key(seed: int, query_id: str) -> bytes:
    """Where a query comes in the order drawn by `seed`."""
    return sha256(f"{seed}|{query_id}".encode("utf-8", "surrogatepass")).digest()
