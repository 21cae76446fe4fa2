"""Sample candidate sets from first-stage runs.

By default, sets are drawn as in the Rank-K paper: two sets per query, one from ranks 1 to 20 and one from ranks 10 to
30 of the fused runs, each with 10 to 20 shuffled passages. For training from relevance judgments, `Sampling.positives`
controls how many relevant passages a set contains.

A set depends only on the seed, the query and the candidates of the query, so adding a query changes no other set. The
seed also determines the order of the queries: a file with more queries starts with the sets of a file with fewer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from random import Random

from rank_k.data.lines import read_objects
from rank_k.data.part_file import PartFile
from rank_k.distill.candidate_sets import EXPECTED_FORMAT, CandidateSet, encode_json_line, make_set_id
from rank_k.distill.near_duplicates import CONTAMINATION_SIMILARITY, NearDuplicateIndex
from rank_k.errors import InputError
from rank_k.types import PassageSource, Query

Grades = Mapping[str, Mapping[str, int]]
"""Qrels: `query_id -> {doc_id: grade}`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How sets are drawn. The defaults are those of the Rank-K paper. Ranges include both ends. Ranks count from 1.

    Args:
        sizes: The range from which the size of a set is drawn. If there are fewer passages to draw from, the set
            contains all of them, but there is no set with fewer passages than the minimum of this range.
        ranks: The ranges of ranks. The n-th set of a query is drawn from the n-th range (after the last range, the
            first one is used again).
        sets_per_query: The number of sets per query.
        positives: The range from which the number of relevant passages in a set is drawn. A query with fewer relevant
            passages uses all of them. They are drawn from the judgments, so the runs need not contain them. The first
            one has the highest grade of the query. For each further one, a grade is drawn, and then a passage with
            this grade. The other passages of the set come from `ranks` and are not judged relevant. Needs judgments
            (default: judgments are not used).
        none: The share of sets without passages of the highest grade. These sets may contain passages of lower
            relevant grades: from 0 to the maximum of `positives`.
        skip_negatives: The number of unjudged passages at the top of the ranking that are left out, because they may
            be relevant.
        seed: The seed of all random draws.

    Raises:
        InputError: If a value is out of range.
    """

    sizes: tuple[int, int] = (10, 20)
    ranks: tuple[tuple[int, int], ...] = ((1, 20), (10, 30))
    sets_per_query: int = 2
    positives: tuple[int, int] | None = None
    none: float = 0.0
    skip_negatives: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {"sizes": [self.sizes], "ranks": self.ranks, "positives": [self.positives] if self.positives else []}
        reversed_ranges = [f"{name} {a}-{b}" for name, pairs in ranges.items() for a, b in pairs if a > b]
        checks = (
            (self.sizes[0] >= 2, f"sizes start at {self.sizes[0]}", "give at least 2: one passage cannot be compared"),
            (not reversed_ranges, f"{', '.join(reversed_ranges)}: the range ends before it starts", "swap its numbers"),
            (
                self.ranks != () and all(a >= 1 for a, _ in self.ranks),
                "ranks must start at 1 or higher",
                "give ranges such as 1-20",
            ),
            (0 <= self.none <= 1, f"none is {self.none}", "give a share of the sets between 0 and 1"),
            (self.skip_negatives >= 0, f"skip_negatives is {self.skip_negatives}", "give 0 or more"),
            (
                self.positives is not None or not (self.none or self.skip_negatives),
                "none and skip_negatives can only be used with positives",
                "also give positives, the number of relevant passages per set, such as 1-3",
            ),
        )
        for is_valid, problem, remedy in checks:
            if not is_valid:
                raise InputError(problem, remedy)


def draw_set(
    query_id: str, ranking: Sequence[str], grades: Mapping[str, int] | None, number: int, sampling: Sampling
) -> tuple[str, ...] | str:
    """Return the document ids of a set in the order in which they are presented, or the reason why there is no set.

    Args:
        query_id: The id of the query.
        ranking: The ids of the candidates, best first.
        grades: The judgments of the query, or None.
        number: The number of the set of this query, from 0.
        sampling: How sets are drawn.

    Returns:
        The document ids, or the reason: "no_positives" (the query has no relevant passage) or "too_few" (there are
        fewer passages than the minimum size).
    """
    random = Random(f"{sampling.seed}|{number}|{query_id}")
    low, high = sampling.ranks[number % len(sampling.ranks)]
    size = random.randint(*sampling.sizes)
    pool, chosen = ranking[low - 1 : high], []
    if sampling.positives is not None:
        judged = grades or {}
        relevant = {doc_id for doc_id, grade in judged.items() if grade > 0}
        if not relevant:
            return "no_positives"
        chosen = _sample_relevant(random, judged, sampling.positives, random.random() < sampling.none)[:size]
        unjudged = [doc_id for doc_id in ranking if doc_id not in judged]
        excluded = relevant.union(unjudged[: sampling.skip_negatives])
        pool = [doc_id for doc_id in pool if doc_id not in excluded]
    chosen += random.sample(pool, min(size - len(chosen), len(pool)))
    if len(chosen) < sampling.sizes[0]:
        return "too_few"
    random.shuffle(chosen)
    return tuple(chosen)


def _sample_relevant(
    random: Random, grades: Mapping[str, int], count: tuple[int, int], without_best: bool
) -> list[str]:
    """Return the ids of the relevant passages for one set (see `Sampling.positives`)."""
    ids_by_grade: dict[int, list[str]] = {}
    for doc_id, grade in sorted(grades.items()):  # independent of the order of the judgments in their file
        if grade > 0:
            ids_by_grade.setdefault(grade, []).append(doc_id)
    best_grade = max(ids_by_grade)
    if without_best:
        del ids_by_grade[best_grade]
    count_drawn = random.randint(0 if without_best else count[0], count[1])
    chosen: list[str] = []
    while len(chosen) < count_drawn and ids_by_grade:
        grade = best_grade if not chosen and not without_best else random.choice(sorted(ids_by_grade))
        remaining = ids_by_grade[grade]
        chosen.append(remaining.pop(random.randrange(len(remaining))))
        if not remaining:
            del ids_by_grade[grade]
    return chosen


@dataclass(slots=True)
class Sampler:
    """Draws candidate sets for queries.

    Args:
        find_ranking: Returns the ids of a query's candidates, best first; empty if no run contains the query.
        queries: The queries to draw sets for.
        store: The source of the passages.
        sampling: How sets are drawn.
        source: The name of the collection.
        license: The license of the texts in the collection.
        grades: The relevance judgments.
        excluded_queries: Queries to leave out, such as evaluation queries. Their near duplicates are left out, too.
        counts: The number of "queries", "sets" and "passages" drawn, and of sets by their number of relevant passages
            ("with_2_relevant", for example). The number of queries left out: "contaminated" (near duplicates of an
            excluded query) and "not_ranked". The number of sets left out: "too_few" and "no_positives" (see
            `draw_set`) and "repeated" (the same passages as another set of the query).
    """

    find_ranking: Callable[[str], Sequence[str]]
    queries: Mapping[str, Query]
    store: PassageSource
    sampling: Sampling
    source: str
    license: str | None = None
    grades: Grades | None = None
    excluded_queries: NearDuplicateIndex = field(default_factory=lambda: NearDuplicateIndex(CONTAMINATION_SIMILARITY))
    counts: Counter[str] = field(default_factory=Counter)

    def sample_sets(self, queries_count: int | None = None) -> Iterator[CandidateSet]:
        """Yield sets, until `queries_count` queries have at least one set (default: the sets of all queries)."""
        for query_id in sorted(self.queries, key=self._order_key):
            if queries_count is not None and self.counts["queries"] >= queries_count:
                return
            candidate_sets = self._sample_query(self.queries[query_id])
            self.counts["queries"] += bool(candidate_sets)
            yield from candidate_sets

    def _order_key(self, query_id: str) -> bytes:
        """Return the sort key that gives the queries a random order, which depends on the seed."""
        return sha256(f"{self.sampling.seed}|{query_id}".encode("utf-8", "surrogatepass")).digest()

    def _sample_query(self, query: Query) -> list[CandidateSet]:
        ranking = self.find_ranking(query.query_id)
        if not ranking:
            self.counts["not_ranked"] += 1
            return []
        if self.excluded_queries.find(query.text) is not None:
            self.counts["contaminated"] += 1
            return []
        judged = None if self.grades is None else self.grades.get(query.query_id)
        candidate_sets: list[CandidateSet] = []
        for number in range(self.sampling.sets_per_query):
            doc_ids = draw_set(query.query_id, ranking, judged, number, self.sampling)
            if isinstance(doc_ids, str):
                self.counts[doc_ids] += 1
            elif any(set(doc_ids) == set(other.doc_ids) for other in candidate_sets):
                self.counts["repeated"] += 1
            else:
                candidate_sets.append(self._build_set(query, number, doc_ids, judged))
        return candidate_sets

    def _build_set(
        self, query: Query, number: int, doc_ids: tuple[str, ...], judged: Mapping[str, int] | None
    ) -> CandidateSet:
        self.counts.update(sets=1, passages=len(doc_ids))
        grades = None
        if judged is not None:
            grades = {doc_id: judged[doc_id] for doc_id in doc_ids if doc_id in judged}
            self.counts[f"with_{sum(grade > 0 for grade in grades.values())}_relevant"] += 1
        return CandidateSet(
            make_set_id(self.source, query.query_id, number, query.text, doc_ids),
            query.query_id,
            query.text,
            doc_ids,
            tuple(self.store.get(doc_id, query.query_id).text for doc_id in doc_ids),
            grades,
            self.source,
            self.license,
        )


def write_samples(sampler: Sampler, output: Path, queries_count: int | None = None) -> int:
    """Write the sets to `output`, and return the number of sets that it already contained.

    If the process is interrupted, `output` remains unchanged.

    Args:
        sampler: Draws the sets.
        output: The file to write.
        queries_count: The number of queries (default: all).

    Raises:
        InputError: If `output` contains a set that differs from the set at this position, or more sets.
    """
    has_rows = output.exists() and output.stat().st_size > 0
    existing_rows = read_objects(output, EXPECTED_FORMAT) if has_rows else iter(())
    existing_count = 0
    with PartFile(output) as file:
        for candidate_set, existing in zip_longest(sampler.sample_sets(queries_count), existing_rows):
            row = {} if candidate_set is None else asdict(candidate_set)
            row |= {name: list(value) for name, value in row.items() if isinstance(value, tuple)}  # as in JSON
            if existing is not None:
                number, existing_row = existing
                if changed := [name for name in row | existing_row if existing_row.get(name) != row.get(name)]:
                    raise InputError(
                        f"{output}:{number}: set {existing_row.get('set_id')} differs from the one that the current"
                        f" options and data would produce ({', '.join(changed)})",
                        "choose a different --output, or delete this file",
                    )
                existing_count += 1
            file.write(encode_json_line(row))
    return existing_count
